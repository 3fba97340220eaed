"""Stage `planner`: text to semantic tokens (paper Eq. 4), with the text encoder trained along.

A sample is two groups in a row: the second is planned under the first as context, as in endless planning. In some,
the caption changes between them and the first is cut short, as after a prompt change. Features come from the world
without pixels, so data are endless; encoded groups stay in a pool for a while, their captions are worded anew.
Shapes: `B` samples, `N` tokens, `V` vocabulary.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.kv_cache import KVCache
from engine.semantic.planner import Planner
from engine.semantic.sampling import SamplingConfig, gumbel, sample_code
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text import SmallT5, scaled_embeddings
from engine.training import reading, teacher, world
from engine.training.captions import Label, caption, random_label
from engine.weights import save_component

TEXT_STD = 0.3
NULL_TEXT_SHARE, NULL_MOTION_SHARE, NULL_FRAMES_SHARE = 0.1, 0.5, 0.5
CHANGE_SHARE = 0.25  # batches whose caption changes between the groups
FIRST_SHARE = 0.5  # other samples whose first group starts a video, and is judged too
POOL, START_POOL, REFRESH = 6000, 400, 0.3  # samples kept, made before the first step, made anew per sample
ENCODE_BATCH = 16
HELD_OUT = 96
MOTION = {"still": 0.0, "slow": 0.3, "medium": 0.6, "fast": 1.0}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two groups in a row."""

    codes: tuple[Tensor, Tensor]  # int64 [codes of the first, whole or cut], [codes of a full group]
    labels: tuple[Label, Label]
    starts: bool  # the first group is the beginning of a video


def motion_score(label: Label) -> float:
    """0 (still) to 1 (fast)."""
    return MOTION["still" if label.direction == "still" else label.speed]


class TextPlanner(nn.Module):
    """What this stage trains."""

    def __init__(self, text: SmallT5, planner: Planner) -> None:
        super().__init__()
        self.text = text
        self.planner = planner


class PlannerStage:
    """Trains `Planner` and `SmallT5`."""

    def __init__(
        self, config: EngineConfig, text: SmallT5, tokenizer: SemanticTokenizer, seed: int, device: str, weights: Path
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.seed, self.device, self.weights = config, seed, device, weights
        self.tokenizer = tokenizer.to(device).eval()
        scaled_embeddings(text, TEXT_STD)
        self.planner = Planner(config.planner)
        self.text = text
        self.module: nn.Module = TextPlanner(text, self.planner).to(device)
        self.pools: dict[bool, list[Pair]] = {False: [], True: []}  # by whether the caption changes
        self.drawn = 0
        rng = random.Random(f"planner held out {seed}")
        self.held_out = [random_label(rng, held_out=True) for _ in range(HELD_OUT)]
        self.held_out_captions = [caption(label, rng) for label in self.held_out]

    def hidden(self) -> list[nn.Parameter]:
        return []

    @torch.no_grad()
    def make_pairs(self, rng: random.Random, changes: bool) -> list[Pair]:
        """ENCODE_BATCH pairs; with `changes`, all first groups are cut to one random length."""
        frames = self.config.tokenizer.frames
        first = rng.randrange(1, frames + 1) if changes else frames
        before = [random_label(rng) for _ in range(ENCODE_BATCH)]
        after = [random_label(rng) if changes else label for label in before]
        starts = [rng.random() < FIRST_SHARE for _ in before]
        spec = world.sample(before, rng).to(self.device)
        begin = torch.tensor([[0 if s else FRAMES_PER_LATENT * rng.randrange(150)] for s in starts], device=self.device)
        steps = torch.arange(first + frames, device=self.device) * FRAMES_PER_LATENT
        where = begin + steps
        changed = world.relabel(spec, after, where[:, first].float()) if changes else spec
        codes = [
            self.tokenizer.encode(teacher.maps(s, w)).cpu()
            for s, w in ((spec, where[:, :first]), (changed, where[:, first:]))
        ]
        return [
            Pair((codes[0][row], codes[1][row]), (before[row], after[row]), starts[row]) for row in range(ENCODE_BATCH)
        ]

    def refill(self, rng: random.Random, changes: bool, wanted: int) -> None:
        pool = self.pools[changes]
        while wanted > 0:
            pool.extend(self.make_pairs(rng, changes))
            wanted -= ENCODE_BATCH
        del pool[:-POOL]

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"planner {self.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        for changes in (False, True):
            if len(self.pools[changes]) < START_POOL:
                self.refill(rng, changes, START_POOL)
        changes = rng.random() < CHANGE_SHARE
        if rng.random() < batch * REFRESH / ENCODE_BATCH:
            self.refill(rng, changes, 1)
        pool = self.pools[changes]
        # A batch needs first groups of one length; those made together have it.
        one = rng.choice(pool)
        alike = [pair for pair in pool if len(pair.codes[0]) == len(one.codes[0])]
        pairs = [rng.choice(alike) for _ in range(batch)]
        return self.pairs_loss(pairs, rng)

    def pairs_loss(self, pairs: list[Pair], rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        """Mean negative log-likelihood of the codes in nats, and the parts of it."""
        first, tokens, is_code = self.sequence(pairs)
        judged = is_code.clone()
        for row, pair in enumerate(pairs):
            if not (pair.starts and pair.labels[0] == pair.labels[1]):
                judged[row, :first] = False  # the text does not tell of it
        with torch.autocast(self.device, torch.bfloat16):
            prefix = self.prefix([pair.labels[1] for pair in pairs], rng)
            embeddings = torch.cat([prefix.embeddings, self.planner.embed(tokens[:, :-1], prefix.pooled)], dim=1)
            logits = self.planner(embeddings)[:, prefix.embeddings.shape[1] - 1 :]
        nats = nnf.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)
        loss = (nats * judged).sum() / judged.sum()
        second = (nats * judged)[:, first:].sum() / judged[:, first:].sum()
        return loss, {"second_group": second.item()}

    def sequence(self, pairs: list[Pair]) -> tuple[int, Tensor, Tensor]:
        """Length of the first group, tokens [B, N] of both, and which of them are codes [B, N]."""
        planner, tokenizer = self.config.planner, self.config.tokenizer
        parts, lengths = [], []
        for which in (0, 1):
            codes = torch.stack([pair.codes[which] for pair in pairs]).to(self.device)
            layout = planner.layout(tokenizer.frames_of(codes.shape[1]))
            fixed = torch.tensor([-1 if token is None else token for token in layout], device=self.device)
            group = fixed.repeat(len(pairs), 1)
            group[:, fixed < 0] = codes
            parts.append(group)
            lengths.append(len(layout))
        tokens = torch.cat(parts, dim=1)
        return lengths[0], tokens, tokens < planner.codebook_size

    def prefix(self, labels: list[Label], rng: random.Random):  # type: ignore[no-untyped-def]
        captions = [caption(label, rng) for label in labels]
        missing = float("nan")
        motion = [missing if rng.random() < NULL_MOTION_SHARE else motion_score(label) for label in labels]
        frames = [missing if rng.random() < NULL_FRAMES_SHARE else rng.choice((13.0, 26.0)) for _ in labels]
        null = [rng.random() < NULL_TEXT_SHARE for _ in labels]
        tensors = (torch.tensor(values, device=self.device) for values in (frames, motion, null))
        return self.planner.prefix(self.text.encode(captions), *tensors)

    @torch.no_grad()
    def sample(self, captions: list[str], context: Tensor | None, sampling: SamplingConfig, seed: int) -> Tensor:
        """Codes [B, codes] of a group under captions, after `context` [B, N] tokens."""
        planner, config = self.planner, self.config.planner
        generator = torch.Generator().manual_seed(seed)
        with torch.autocast(self.device, torch.bfloat16):
            prefix = planner.prefix(self.text.encode(captions), None, None, False)
            layout = config.layout(config.group_frames)
            length = prefix.embeddings.shape[1] + (0 if context is None else context.shape[1]) + len(layout)
            cache = KVCache.allocate(
                config.layers, len(captions), config.heads, length, config.head_dim, self.device, torch.bfloat16
            )
            start = prefix.embeddings
            if context is not None:
                start = torch.cat([start, planner.embed(context, prefix.pooled)], dim=1)
            planner(start, cache, 0)
            codes, position = [], start.shape[1]
            logits = torch.empty(0)
            for fixed in layout:
                if fixed is None:
                    noise = gumbel(torch.rand(len(captions), config.codebook_size, generator=generator)).to(self.device)
                    token = sample_code(logits[:, -1].float(), noise, sampling)
                    codes.append(token)
                else:
                    token = torch.full((len(captions),), fixed, device=self.device)
                logits = planner(planner.embed(token[:, None], prefix.pooled), cache, position)
                position += 1
        return torch.stack(codes, dim=1)

    def evaluate(self) -> dict[str, float]:
        """Share of right words in plans sampled for held-out captions: the first group, and one after it."""
        sampling = SamplingConfig(guidance=1.0)
        first = self.sample(self.held_out_captions, None, sampling, 1)
        pairs = [Pair((codes, codes), (label, label), True) for codes, label in zip(first, self.held_out, strict=True)]
        length, tokens, _ = self.sequence(pairs)
        second = self.sample(self.held_out_captions, tokens[:, :length], sampling, 2)
        figures: dict[str, float] = {}
        for name, codes in (("first", first), ("second", second)):
            shares = reading.shares(reading.read(self.tokenizer.decode(codes)), self.held_out)
            figures |= {f"{name}_{word}": round(share, 3) for word, share in shares.items()}
        return figures

    def export(self) -> None:
        save_component(self.weights, "text", self.text)
        save_component(self.weights, "planner", self.planner)
