"""Stage `planner`: text to semantic tokens (paper Eq. 4). A small text encoder is trained too, a published one is not.

A sample is a GOP to be planned: the first GOP of a video, a GOP with the one before it as context, or a GOP under a
changed caption with a cut context.
Shapes: `B` samples, `L` text tokens of width `K`, `T` semantic frames, `D` feature channels, `h` x `w` feature grid.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.loading.options import autocast
from engine.semantic.planner import Planner, Prefix
from engine.semantic.sampling import gumbel
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.published import PublishedText
from engine.text.small_t5 import SmallT5
from engine.training.run import LossAndFigures, TrainingStage
from engine.training.setup import StageSetup
from engine.training.sources.folder import FolderSource
from engine.training.sources.source import CaptionedGops

TOKEN_STD, HEAD_STD = 0.5, 0.02
NULL_TEXT_SHARE, NULL_MOTION_SHARE, NULL_FRAMES_SHARE = 0.1, 0.5, 0.5
OWN_SHARE, OWN_TEMPERATURE = 0.5, 0.8  # largest share of a context that the planner samples


def motion_scores(features: Tensor) -> list[float]:
    """Change of features [B, T, D, h, w] from frame to frame over their spread, from 0 (still) to 1.

    The paper does not define its motion score; this is ours.
    """
    change = features.diff(dim=1).abs().mean((1, 2, 3, 4)) / features.std((1, 2, 3, 4)).clamp(min=1e-6)
    return [float(score) for score in 1 - torch.exp(-change)]


@torch.no_grad()
def learn_geometry(planner: Planner, tokenizer: SemanticTokenizer) -> None:
    """Initialises embeddings and head from the codebook, so that similar tokens have similar embeddings.

    Without it a small planner follows the words of a caption within minutes, but subjects jump from place to place.
    """
    codes = tokenizer.quantizer.codes[0].float()
    codes = codes / codes.std()
    count, width = codes.shape
    for weight, std in ((planner.tokens.weight, TOKEN_STD), (planner.head.weight, HEAD_STD)):
        directions = torch.randn(width, weight.shape[1], device=weight.device) / width**0.5
        weight[:count] += std * (codes @ directions)


class PlannerStage(TrainingStage):
    """Trains `Planner`, and `SmallT5` if that is the preset's text encoder."""

    def __init__(self, setup: StageSetup) -> None:
        self.source, self.config, self.device = setup.source(), setup.config, setup.device
        self.tokenizer, self.small = setup.load("tokenizer"), not setup.config.published
        torch.manual_seed(setup.seed)
        self.planner = Planner(setup.config.planner).to(setup.device)
        if self.small and isinstance(self.source, FolderSource):
            self.text: SmallT5 | PublishedText = setup.new_text(self.source.videos.captions)
        else:
            self.text = setup.text()
        components: dict[str, nn.Module] = {"planner": self.planner}
        if isinstance(self.text, SmallT5):
            learn_geometry(self.planner, self.tokenizer)
            components["text"] = self.text.requires_grad_(True)
        super().__init__(setup.weights, nn.ModuleDict(components), **components)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        shares = self.source.kinds
        kinds = list(shares) if held_out else rng.choices(list(shares), list(shares.values()))
        losses = {}
        for kind in kinds:
            gops = self.source.gops(rng, kind, batch, held_out)
            losses[kind] = self.nats(gops, rng, own=self.small and kind == "next" and not held_out)
        return torch.stack(list(losses.values())).mean(), {f"nats_{kind}": loss.item() for kind, loss in losses.items()}

    def nats(self, gops: CaptionedGops, rng: random.Random, own: bool = False) -> Tensor:
        """Mean negative log-likelihood of the GOPs' tokens; with `own`, contexts are partly sampled by the planner."""
        with torch.no_grad():
            tokens = self.tokenizer.encode(gops.features)
            context = None if gops.context is None else self.tokenizer.encode(gops.context)
        motion, missing = motion_scores(gops.features), math.nan
        frames = [float(gops.features.shape[1] * (1 if context is None else 2))] * len(tokens)
        if self.config.planner.null_micro:
            motion = [missing if rng.random() < NULL_MOTION_SHARE else score for score in motion]
            frames = [missing if rng.random() < NULL_FRAMES_SHARE else count for count in frames]
        null = [rng.random() < NULL_TEXT_SHARE for _ in gops.captions]
        conditions = [torch.tensor(values, device=self.device) for values in (frames, motion, null)]
        # Published text embeddings differ in length, so each row is a batch of its own.
        rows = [slice(None)] if self.small else [slice(row, row + 1) for row in range(len(tokens))]
        losses = []
        for part in rows:
            with autocast(self.device):
                prefix = self.planner.prefix(self.encode_text(gops.captions[part]), *(x[part] for x in conditions))
                before = None if context is None else context[part]
                if before is not None and own:
                    before = self.rewritten(before, prefix)
                logits = self.logits(prefix, before, tokens[part])
            losses.append(nnf.cross_entropy(logits.flatten(0, 1), tokens[part].flatten()))
        return torch.stack(losses).mean()

    def encode_text(self, captions: list[str]) -> Tensor:
        """[B, L, K], with a gradient if the text encoder is trained."""
        if isinstance(self.text, SmallT5):
            return self.text.encode(captions)
        # A copy, because tensors made in inference mode cannot be saved for the backward pass.
        return torch.cat([self.text.embed(caption).planner for caption in captions]).clone()

    def logits(self, prefix: Prefix, context: Tensor | None, tokens: Tensor) -> Tensor:
        """Logits [B, N, vocabulary] for the N tokens [B, N] of a GOP, given the tokens of a context."""
        sequence, is_token = self.sequence(tokens)
        before = sequence[:, :-1] if context is None else torch.cat([self.sequence(context)[0], sequence[:, :-1]], 1)
        embedded = torch.cat([prefix.embeddings, self.planner.embed(before, prefix.pooled)], dim=1)
        return self.planner.logits(self.planner.transform(embedded)[:, -sequence.shape[1] :][:, is_token])

    @torch.no_grad()
    def rewritten(self, tokens: Tensor, prefix: Prefix) -> Tensor:
        """Replaces a random share of the tokens [B, N] of whole GOPs by samples, given the true tokens before them.

        In an endless video every context is sampled, with small errors; so the planner sees such contexts in training.
        """
        logits = self.logits(prefix, None, tokens)[..., : self.config.planner.codebook_size]
        sampled = (logits / OWN_TEMPERATURE + gumbel(torch.rand_like(logits))).argmax(-1)
        share = OWN_SHARE * torch.rand(len(tokens), 1, device=self.device)
        return torch.where(torch.rand(sampled.shape, device=self.device) < share, sampled, tokens)

    def sequence(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, N] of a GOP or its first frames -> with special tokens [B, M], and a mask [M] of the N."""
        layout = self.config.planner.layout(self.config.tokenizer.frames_of(tokens.shape[1]))
        fixed = torch.tensor([-1 if entry is None else entry for entry in layout], device=self.device)
        sequence = fixed.repeat(len(tokens), 1)
        sequence[:, fixed < 0] = tokens
        return sequence, fixed < 0
