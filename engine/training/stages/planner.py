"""Stage `planner`: text to semantic tokens (paper Eq. 4), with the text encoder of stage `text` trained along.

A sample is a group to be planned: the first of a video, the next one after another as context, or one under a changed
caption, whose context is cut short. Features come from the world without pixels, so data are endless and every
sample is seen once.
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
from engine.loading.weights import save_component
from engine.runtime.kv_cache import KVCache
from engine.semantic.planner import Planner, Prefix
from engine.semantic.sampling import SamplingConfig, gumbel, sample_code
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.small_t5 import SmallT5
from engine.training.world import drawing as world
from engine.training.world import reading, teacher
from engine.training.world.captions import Label, caption, hardest_label, random_label

CODE_STD, HEAD_STD = 0.5, 0.02
NULL_TEXT_SHARE, NULL_MOTION_SHARE, NULL_FRAMES_SHARE = 0.1, 0.5, 0.5
KINDS = {"first": 0.25, "next": 0.35, "changed": 0.4}  # share of the batches
OWN_SHARE, OWN_TEMPERATURE = 0.5, 0.8  # most of a context that is sampled anew, and how
HELD_OUT = 96
MOTION = {"still": 0.0, "slow": 0.3, "medium": 0.6, "fast": 1.0}


@dataclass(frozen=True, slots=True)
class Sample:
    """A group and what it is planned under."""

    context: Tensor | None  # int64 [codes of the group before, whole or cut]
    codes: Tensor  # int64 [codes of a full group]
    label: Label


def hard_to_plan(label: Label) -> int:
    """The more, the harder: a camera that pans past a way across the picture, two subjects, slow ways."""
    return 2 * label.two_ways + (label.relation is not None) + (label.moves and label.speed == "slow")


def motion_score(label: Label) -> float:
    """0 (still) to 1 (fast)."""
    return MOTION["still" if label.direction == "still" else label.speed]


@torch.no_grad()
def learn_geometry(planner: Planner, tokenizer: SemanticTokenizer) -> None:
    """Start embeddings and head with the geometry of the codebook, so that like codes are alike to the planner too.

    Without it, and with embeddings too weak beside the pooled text, a small planner follows the words of a caption
    within minutes but jumps from place to place: it does not learn what codes say of a position.
    """
    codes = tokenizer.quantizer.codes[0].float()
    codes = codes / codes.std()
    count, width = codes.shape
    for weight, std in ((planner.tokens.weight, CODE_STD), (planner.head.weight, HEAD_STD)):
        directions = torch.randn(width, weight.shape[1], device=weight.device) / width**0.5
        weight[:count] += std * (codes @ directions)


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
        self.planner = Planner(config.planner)
        learn_geometry(self.planner, tokenizer)
        self.text = text
        self.module: nn.Module = TextPlanner(text, self.planner).to(device)
        rng = random.Random(f"planner held out {seed}")
        self.held_out = [random_label(rng, held_out=True) for _ in range(HELD_OUT)]
        self.held_out_captions = [caption(label, rng) for label in self.held_out]

    def hidden(self) -> list[nn.Parameter]:
        return [p for p in self.planner.blocks.parameters() if p.ndim == 2]

    @torch.no_grad()
    def make(self, rng: random.Random, kind: str, count: int) -> list[Sample]:
        """Samples of a kind; all their contexts have one length."""
        frames = self.config.tokenizer.frames
        given = {"first": 0, "next": frames, "changed": rng.randrange(1, frames)}[kind]
        before = [hardest_label(rng, hard_to_plan) for _ in range(count)]
        after = [hardest_label(rng, hard_to_plan) if kind == "changed" else label for label in before]
        begin = [0 if kind == "first" or rng.random() < 0.5 else FRAMES_PER_LATENT * rng.randrange(150) for _ in before]
        spec = world.sample(before, rng).to(self.device)
        steps = torch.arange(given + frames, device=self.device) * FRAMES_PER_LATENT
        where = torch.tensor(begin, device=self.device)[:, None] + steps
        planned = spec
        if kind == "changed":
            # From the first of the video frames that the group's first latent stands for.
            planned = world.relabel(spec, after, where[:, given].float() - (FRAMES_PER_LATENT - 1))
        codes = self.tokenizer.encode(teacher.maps(planned, where[:, given:])).cpu()
        if not given:
            return [Sample(None, row, label) for row, label in zip(codes, after, strict=True)]
        context = self.tokenizer.encode(teacher.maps(spec, where[:, :given])).cpu()
        return [Sample(before_, row, label) for before_, row, label in zip(context, codes, after, strict=True)]

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"planner {self.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        [kind] = rng.choices(list(KINDS), list(KINDS.values()))
        # Every sample is seen once: a caption says so much that few samples share one, and is soon known by heart.
        loss = self.nats(self.make(rng, kind, batch), rng, own=kind == "next")
        return loss, {f"nats_{kind}": loss.item()}

    def nats(self, samples: list[Sample], rng: random.Random, own: bool = False) -> Tensor:
        """Mean negative log-likelihood of the groups' codes, with `own` behind contexts that are partly its own."""
        group, is_code = self.sequence(torch.stack([sample.codes for sample in samples]))
        with torch.autocast(self.device, torch.bfloat16):
            prefix = self.prefix([sample.label for sample in samples], rng)
            parts = [prefix.embeddings]
            contexts = [sample.context for sample in samples if sample.context is not None]
            if contexts:
                context = torch.stack(contexts)
                tokens, _ = self.sequence(self.rewritten(context, prefix) if own else context)
                parts.append(self.planner.embed(tokens, prefix.pooled))
            parts.append(self.planner.embed(group[:, :-1], prefix.pooled))
            hidden = self.planner.transform(torch.cat(parts, dim=1))[:, -group.shape[1] :]
            logits = self.planner.logits(hidden[:, is_code])
        return nnf.cross_entropy(logits.flatten(0, 1), group[:, is_code].flatten())

    @torch.no_grad()
    def rewritten(self, codes: Tensor, prefix: Prefix) -> Tensor:
        """Whole groups' codes [B, codes], a share of each sampled anew behind the true codes before them.

        What the planner samples goes astray a little, and in a video without end it stands before every group.
        """
        tokens, is_code = self.sequence(codes)
        before = self.planner.embed(tokens[:, :-1], prefix.pooled)
        hidden = self.planner.transform(torch.cat([prefix.embeddings, before], dim=1))[:, -tokens.shape[1] :]
        logits = self.planner.logits(hidden[:, is_code])[..., : self.config.planner.codebook_size]
        sampled = (logits / OWN_TEMPERATURE + gumbel(torch.rand_like(logits))).argmax(-1)
        share = OWN_SHARE * torch.rand(len(codes), 1, device=self.device)
        own = torch.rand(sampled.shape, device=self.device) < share
        return torch.where(own, sampled, codes.to(self.device))

    def sequence(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, codes] of a group, whole or cut -> its tokens [B, N], and which of the N are codes."""
        layout = self.config.planner.layout(self.config.tokenizer.frames_of(codes.shape[1]))
        fixed = torch.tensor([-1 if token is None else token for token in layout], device=self.device)
        tokens = fixed.repeat(len(codes), 1)
        tokens[:, fixed < 0] = codes.to(self.device)
        return tokens, fixed < 0

    def prefix(self, labels: list[Label], rng: random.Random) -> Prefix:
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
        second = self.sample(self.held_out_captions, self.sequence(first)[0], sampling, 2)
        figures: dict[str, float] = {}
        for name, codes in (("first", first), ("second", second)):
            shares = reading.shares(reading.read(self.tokenizer.decode(codes)), self.held_out)
            figures |= {f"{name}_{word}": round(share, 3) for word, share in shares.items()}
        return figures

    def export(self) -> None:
        save_component(self.weights, "text", self.text)
        save_component(self.weights, "planner", self.planner)
