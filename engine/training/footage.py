"""Stages on a folder of captioned videos: `autoencoder`, and for any preset `tokenizer` and `planner` (Eq. 1 to 4).

Nothing is known of these videos but pixels and captions, so features are the extractor's, and loss and figures are the
paper's alone. A tenth of the videos is held out where there are ten.
Shapes: `B` batch, `F` frames, `T` semantic or latent frames, `D` feature channels, `h` x `w` feature grid, `L` text
tokens, `N` tokens of groups, `H` x `W` pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.perceptual.tiny_vae import TinyVAE, TinyVAEConfig
from engine.published_text import PublishedText
from engine.semantic.planner import Planner
from engine.semantic.theia import Theia
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text import SmallT5
from engine.training.autoencoder import LATENTS, AutoencoderStage, pixels, psnr
from engine.training.dataset import VideoFolder
from engine.training.planning import TextPlanner, learn_geometry
from engine.training.tokens import LONG_EVERY, SHORT_FRAMES
from engine.weights import save_component

HELD_OUT_EVERY = 10  # videos
HELD_OUT_SAMPLES = 4
SPREAD_CLIPS = 64  # that the features' spread is measured on
LEAST_SPREAD = 0.01  # of the mean variance: what hardly ever varies does not outweigh all that does
NULL_TEXT_SHARE, NULL_MOTION_SHARE, NULL_FRAMES_SHARE = 0.1, 0.5, 0.5
TWO_GROUPS_SHARE = 0.5  # of the planner's samples, where videos are long enough
CONTINUOUS_STEPS = 300  # of a small tokenizer pass vectors unrounded; its codebook starts from clusters of them
START_STEP = 4  # frames from one place where a stretch may begin to the next: some come again, and are kept
KEPT_BYTES = 2 << 30  # of videos, and of each kind of what was made of the stretches seen last


def frames_of(semantic: int) -> int:
    """Video frames that so many semantic or latent frames from the start of a video stand for."""
    return 1 + (semantic - 1) * FRAMES_PER_LATENT


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of a video: its number, its first frame, and how many semantic frames long it is."""

    number: int
    start: int
    semantic: int


Key = TypeVar("Key")
Made = TypeVar("Made")


def kept(make: Callable[[Key], Made], item_bytes: int) -> Callable[[Key], Made]:
    """The same function, which makes nothing twice as long as KEPT_BYTES suffice for items of about `item_bytes`."""
    return lru_cache(max(1, KEPT_BYTES // item_bytes))(make)


class Footage:
    """Random stretches of a folder's videos, in a preset's size, and their features."""

    def __init__(self, folder: Path, config: EngineConfig, extractor: Theia | TinyVAE, device: str) -> None:
        """`extractor` has its weights, where features are needed. Raises ValueError as `VideoFolder` does."""
        least = frames_of(max(config.tokenizer.frames, config.prompt_latents + config.new_latents))
        self.videos = VideoFolder(folder, config.height_px, config.width_px, config.fps, least)
        self.extractor, self.device = extractor.requires_grad_(False).to(device).eval(), device
        tokenizer = config.tokenizer
        self.whole = kept(self._whole, 3 * config.height_px * config.width_px * max(self.videos.lengths))
        self.features = kept(self._features, 4 * tokenizer.frames * tokenizer.feature_dim * math.prod(tokenizer.grid))

    def pick(self, rng: random.Random, held_out: bool) -> int:
        """Number of a video; of any where there are too few to hold some out."""
        every = range(len(self.videos))
        chosen = [number for number in every if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out]
        return rng.choice(chosen or list(every))

    def fits(self, number: int, semantic: int) -> bool:
        """Whether a video has so many semantic frames."""
        return self.videos.lengths[number] >= frames_of(semantic)

    def place(self, number: int, semantic: int, rng: random.Random) -> Place:
        """A random stretch of a video that is long enough."""
        starts = self.videos.lengths[number] - frames_of(semantic)
        return Place(number, START_STEP * rng.randrange(starts // START_STEP + 1), semantic)

    def caption(self, place: Place) -> str:
        return self.videos.entries[place.number].caption

    def video(self, place: Place) -> Tensor:
        """uint8 [1, F, 3, H, W]."""
        return self.stretch(place.number, place.start, frames_of(place.semantic))[None].to(self.device)

    def stretch(self, number: int, start: int, frames: int) -> Tensor:
        """uint8 [F, 3, H, W]. Videos that all fit into KEPT_BYTES are read once, others each time."""
        videos = self.videos
        if 3 * videos.height * videos.width * sum(videos.lengths) > KEPT_BYTES:
            return videos.cut(number, start, frames)
        return self.whole(number)[start : start + frames]

    def _whole(self, number: int) -> Tensor:
        """uint8 [F, 3, H, W]."""
        return self.videos.cut(number, 0, self.videos.lengths[number])

    @torch.no_grad()
    def _features(self, place: Place) -> Tensor:
        """[1, T, D, h, w] float32 of the first frame and every fourth after it.

        An autoencoder gives its latents, 2x2 neighbours side by side.
        """
        video = self.video(place)
        with torch.autocast(self.device, torch.bfloat16):
            if isinstance(self.extractor, TinyVAE):
                latents = self.extractor.encode(pixels(video), self.extractor.new_state())
                return nnf.pixel_unshuffle(latents[0], 2)[None].float()
            features: Tensor = self.extractor(video[:, ::FRAMES_PER_LATENT])
        return features.float()


class FootageAutoencoder(AutoencoderStage):
    """Trains `TinyVAE` on crops from anywhere in the videos."""

    def __init__(self, config: TinyVAEConfig, footage: Footage, seed: int, weights: Path) -> None:
        self.footage = footage
        super().__init__(config, seed, footage.device, weights, self.anywhere)

    def anywhere(self, rng: random.Random, count: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Frames uint8 [1, F, 3, H, W] of a random place, and where to look [2] in px, which is anywhere."""
        videos = self.footage.videos
        number = self.footage.pick(rng, held_out)
        video = self.footage.stretch(number, rng.randrange(videos.lengths[number] - count + 1), count)
        return video[None], torch.tensor([rng.uniform(0, videos.width), rng.uniform(0, videos.height)])

    def evaluate(self) -> dict[str, float]:
        """PSNR of held-out videos, in dB."""
        rng, errors = random.Random(f"autoencoder held out {self.seed}"), []
        for _ in range(HELD_OUT_SAMPLES):
            video = pixels(self.anywhere(rng, frames_of(LATENTS), held_out=True)[0].to(self.device))
            with torch.autocast(self.device, torch.bfloat16):
                again = self.vae.decode(self.vae.encode(video, self.vae.new_state()), self.vae.new_state())
            errors.append((again.float().clamp(-1, 1) - video).square().mean())
        return {"psnr_db": psnr(torch.stack(errors))}


class FootageTokenizer:
    """Trains `SemanticTokenizer`: squared error of the features in units of their variance, plus the commitment."""

    def __init__(self, config: EngineConfig, footage: Footage, seed: int, weights: Path) -> None:
        torch.manual_seed(seed)
        self.footage, self.seed, self.weights = footage, seed, weights
        self.frames, self.small = config.tokenizer.frames, not config.published
        self.tokenizer = SemanticTokenizer(config.tokenizer)
        self.module: nn.Module = self.tokenizer.to(footage.device)
        rng = random.Random(f"footage {seed}")
        # Clip by clip: at full size features of so many take gigabytes.
        clips = (self.sample(rng, held_out=False).double() for _ in range(SPREAD_CLIPS))
        moments = [torch.stack([x.mean((0, 1, 3, 4)) for x in (clip, clip.square())]) for clip in clips]
        mean, square = torch.stack(moments).mean(0)
        variance = square - mean.square()
        if config.tokenizer.normalize:
            self.tokenizer.mean.copy_(mean)
            self.tokenizer.std.copy_(variance.clamp(min=0).sqrt())
        self.scale = (1 / variance.clamp(min=LEAST_SPREAD * variance.mean().item())).float()[:, None, None]
        self.held_out = torch.cat([self.sample(rng, held_out=True) for _ in range(HELD_OUT_SAMPLES)])

    def hidden(self) -> list[nn.Parameter]:
        blocks = (*self.tokenizer.encoder.blocks.parameters(), *self.tokenizer.decoder.blocks.parameters())
        return [p for p in blocks if p.ndim == 2]

    def sample(self, rng: random.Random, held_out: bool) -> Tensor:
        """Features [1, T, D, h, w] of a group."""
        return self.footage.features(self.footage.place(self.footage.pick(rng, held_out), self.frames, rng))

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"tokenizer {self.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        # Mostly short groups: frames are causal, and attention is quadratic.
        length = SHORT_FRAMES if self.small and step % LONG_EVERY else self.frames
        features = torch.cat([self.sample(rng, held_out=False) for _ in range(batch)])[:, :length]
        with torch.autocast(self.footage.device, torch.bfloat16):
            output = self.tokenizer(features, quantize=not self.small or step >= CONTINUOUS_STEPS)
        error = ((output.reconstruction.float() - features).square() * self.scale).mean()
        return error + output.commitment, {"error": error.item(), "perplexity": output.perplexity.item()}

    def evaluate(self) -> dict[str, float]:
        """Squared error of held-out features through tokens, in units of their variance."""
        again = self.tokenizer.decode(self.tokenizer.encode(self.held_out))
        return {"error": float(((again - self.held_out).square() * self.scale).mean())}

    def export(self) -> None:
        save_component(self.weights, "tokenizer", self.tokenizer)


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
        self.planner = Planner(config.planner)
        if not config.published:
            learn_geometry(self.planner, tokenizer.cpu())
            tokenizer.to(footage.device)
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
        # Embeddings made for generation only cannot take part in a gradient.
        texts = [self.text.embed(self.footage.caption(place)).planner.clone() for place in places]
        alike: dict[tuple[int, int], list[int]] = {}  # rows of a batch have one length
        for row, (place, text) in enumerate(zip(places, texts, strict=True)):
            alike.setdefault((place.semantic, text.shape[1]), []).append(row)
        parts = [
            self._nats([places[row] for row in rows], torch.cat([texts[row] for row in rows]), rng)
            for rows in alike.values()
        ]
        return torch.cat(parts).mean()

    def _nats(self, places: list[Place], text: Tensor, rng: random.Random) -> Tensor:
        """[B], of stretches of one length under [B, L, K]."""
        features = [self.footage.features(place) for place in places]
        tokens, is_code = self.sequence(torch.cat(features))
        nulls, missing = self.config.planner.null_micro, math.nan
        motion = [missing if nulls and rng.random() < NULL_MOTION_SHARE else motion_score(one) for one in features]
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
    def sequence(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, T, D, h, w] of whole groups -> their tokens [B, N], and which of the N are codes."""
        group, device = self.config.tokenizer.frames, features.device
        layout = self.config.planner.layout(group)
        fixed = torch.tensor([-1 if token is None else token for token in layout], device=device)
        parts = []
        for part in features.split(group, dim=1):
            tokens = fixed.repeat(len(part), 1)
            tokens[:, fixed < 0] = self.tokenizer.encode(part)
            parts.append(tokens)
        return torch.cat(parts, dim=1), (fixed < 0).repeat(len(parts))

    def evaluate(self) -> dict[str, float]:
        rng = random.Random(f"planner held out {self.seed}")
        return {"nats": float(self.nats([self.sample(rng, held_out=True) for _ in range(HELD_OUT_SAMPLES)], rng))}

    def export(self) -> None:
        save_component(self.weights, "planner", self.planner)
        if isinstance(self.text, SmallT5):
            save_component(self.weights, "text", self.text)
