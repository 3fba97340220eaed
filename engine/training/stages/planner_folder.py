"""Stage `planner` on a folder of captioned videos, for any preset (paper Eq. 4).

Shapes: `B` batch, `T` semantic or latent frames, `D` feature channels, `h` x `w` feature grid, `L` text tokens of width
`K`, `N` tokens of groups.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.config import EngineConfig
from engine.loading.weights import save_component
from engine.semantic.planner import Planner
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.published import PublishedText
from engine.text.small_t5 import SmallT5, scaled_embeddings
from engine.training.folder import HELD_OUT_SAMPLES, Footage, Place, kept
from engine.training.stages.planner import (
    NULL_FRAMES_SHARE,
    NULL_MOTION_SHARE,
    NULL_TEXT_SHARE,
    TextPlanner,
    learn_geometry,
)
from engine.training.stages.text import TEXT_STD

TWO_GROUPS_SHARE = 0.5  # of the samples, where videos are long enough


def motion_score(features: Tensor) -> float:
    """0 (still) to 1: how much features [1, T, D, h, w] change from frame to frame, over their spread.

    The paper does not say how its score is measured; this is ours.
    """
    change = features.diff(dim=1).abs().mean() / features.std().clamp(min=1e-6)
    return float(1 - torch.exp(-change))


class FootagePlanner:
    """Trains `Planner` on the codes of one group or two; a small text encoder is trained along, a published is not."""

    def __init__(
        self,
        config: EngineConfig,
        footage: Footage,
        tokenizer: SemanticTokenizer,
        text: SmallT5 | PublishedText,
        seed: int,
        weights: Path,
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.footage, self.seed, self.weights = config, footage, seed, weights
        self.tokenizer = tokenizer.requires_grad_(False).to(footage.device).eval()
        self.planned = kept(self._planned, 8 * 2 * config.tokenizer.group_tokens)
        self.planner = Planner(config.planner)
        if not config.published:
            learn_geometry(self.planner, tokenizer.cpu())
            tokenizer.to(footage.device)
        if isinstance(text, SmallT5):
            scaled_embeddings(text, TEXT_STD)
        self.text = text
        whole = TextPlanner(text, self.planner) if isinstance(text, SmallT5) else self.planner
        self.module: nn.Module = whole.to(footage.device)

    def hidden(self) -> list[nn.Parameter]:
        return [] if self.config.published else [p for p in self.planner.blocks.parameters() if p.ndim == 2]

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"planner {self.seed} {step}")
        loss = self.nats([self.sample(rng, held_out=False) for _ in range(batch)], rng)
        return loss, {"nats": loss.item()}

    def sample(self, rng: random.Random, held_out: bool) -> Place:
        """One group, or two where the video is long enough."""
        group = self.config.tokenizer.frames
        number = self.footage.pick(rng, held_out)
        groups = 2 if self.footage.fits(number, 2 * group) and rng.random() < TWO_GROUPS_SHARE else 1
        return self.footage.place(number, groups * group, rng)

    def nats(self, places: list[Place], rng: random.Random) -> Tensor:
        """Mean negative log-likelihood of the codes of stretches."""
        texts = self.embedded([self.footage.caption(place) for place in places])
        alike: dict[tuple[int, int], list[int]] = {}  # rows of a batch have one length
        for row, (place, text) in enumerate(zip(places, texts, strict=True)):
            alike.setdefault((place.semantic, text.shape[1]), []).append(row)
        parts = [
            self._nats([places[row] for row in rows], torch.cat([texts[row] for row in rows]), rng)
            for rows in alike.values()
        ]
        return torch.cat(parts).mean()

    def embedded(self, captions: list[str]) -> list[Tensor]:
        """Each caption as the planner reads it, [1, L, K]; with a gradient where the text encoder is trained."""
        if isinstance(self.text, SmallT5):
            with torch.autocast(self.footage.device, torch.bfloat16):
                return list(self.text.encode(captions).float().split(1))
        # Embeddings made for generation only cannot take part in a gradient.
        return [self.text.embed(caption).planner.clone() for caption in captions]

    def _nats(self, places: list[Place], text: Tensor, rng: random.Random) -> Tensor:
        """[B], of stretches of one length under [B, L, K]."""
        codes, scores = zip(*map(self.planned, places), strict=True)
        tokens, is_code = self.sequence(torch.stack(codes))
        nulls, missing = self.config.planner.null_micro, math.nan
        motion = [missing if nulls and rng.random() < NULL_MOTION_SHARE else one for one in scores]
        frames = [missing if nulls and rng.random() < NULL_FRAMES_SHARE else place.semantic for place in places]
        null = [rng.random() < NULL_TEXT_SHARE for _ in places]
        with torch.autocast(self.footage.device, torch.bfloat16):
            numbers = (torch.tensor(values, device=text.device) for values in (frames, motion, null))
            prefix = self.planner.prefix(text, *numbers)
            rest = self.planner.embed(tokens[:, :-1], prefix.pooled)
            hidden = self.planner.transform(torch.cat([prefix.embeddings, rest], dim=1))[:, -tokens.shape[1] :]
            logits = self.planner.logits(hidden[:, is_code])
        return nnf.cross_entropy(logits.transpose(1, 2), tokens[:, is_code], reduction="none").mean(1)

    @torch.no_grad()
    def _planned(self, place: Place) -> tuple[Tensor, float]:
        """Codes [groups * codes] of a stretch of whole groups, and its motion score."""
        features = self.footage.features(place)
        groups = features.split(self.config.tokenizer.frames, dim=1)
        return torch.cat([self.tokenizer.encode(group)[0] for group in groups]), motion_score(features)

    def sequence(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, groups * codes] of whole groups -> their tokens [B, N], and which of the N are codes."""
        groups = codes.shape[1] // self.config.tokenizer.group_tokens
        layout = self.config.planner.layout(self.config.tokenizer.frames) * groups
        fixed = torch.tensor([-1 if token is None else token for token in layout], device=codes.device)
        tokens = fixed.repeat(len(codes), 1)
        tokens[:, fixed < 0] = codes
        return tokens, fixed < 0

    def evaluate(self) -> dict[str, float]:
        rng = random.Random(f"planner held out {self.seed}")
        return {"nats": float(self.nats([self.sample(rng, held_out=True) for _ in range(HELD_OUT_SAMPLES)], rng))}

    def export(self) -> None:
        save_component(self.weights, "planner", self.planner)
        if isinstance(self.text, SmallT5):
            save_component(self.weights, "text", self.text)
