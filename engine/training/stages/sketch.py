"""Stage `sketch`: the renderer's `Sketch` of subjects is trained alone, cell by cell.

Subjects fill a few cells of a window; here a step sees only those, about a hundred times as many a second. The target
is the true latent times the share of the cell that a subject covers, over `teacher.WHOLE` and at most 1.
Shapes: `T` new latent frames, `I` inputs and `C` latent channels of a cell, `H` x `W` latent size, `N` cells.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.loading.options import autocast
from engine.training.latent_pool import LatentPool, TrainingWindow
from engine.training.run import LossAndFigures
from engine.training.setup import StageSetup
from engine.training.sources.world import hard_to_sketch
from engine.training.stages.renderer import MASKED_SHARE, START_SEGMENTS, RendererStage
from engine.training.world import teacher

CELLS = 3072  # a step sees
REFRESH = 0.5  # segments replaced per step, against overfitting
POOL_SEGMENTS = 1536
DRAWS = 3  # labels, of which the hardest is used
COVERED = 0.05  # least share of a cell or its neighbours covered by a subject that counts as near


class SketchCells(NamedTuple):
    """Cells near subjects."""

    inputs: Tensor  # [N, I] of the sketch
    targets: Tensor  # [N, C]


class SketchStage(RendererStage):
    """Trains `Sketch`; the rest of the renderer stays."""

    def __init__(self, setup: StageSetup) -> None:
        """Raises ValueError if the renderer has no sketch."""
        source = setup.world()
        super().__init__(setup)
        details = self.renderer.condition.details
        if details is None:
            raise ValueError(f"the renderer of preset {setup.config.name!r} has no sketch")
        self.scale, self.sketch = details.scale, details.sketch
        source.hardness, source.draws = hard_to_sketch, DRAWS
        self.pool.source, self.pool.size = source, POOL_SEGMENTS
        self.renderer.requires_grad_(False)
        self.sketch.requires_grad_(True).opacity.requires_grad_(False)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        """Squared error in cells of `batch` windows, and its ratio to that of an empty sketch."""
        pool = self.fresh_pool(step, rng, batch, held_out)
        parts = []
        for _ in range(batch):
            with_context = rng.random() > MASKED_SHARE
            parts.append(self.cells(pool.window(rng, with_context), self.config.context_length * with_context))
        inputs, targets = (torch.cat(part) for part in zip(*parts, strict=True))
        chosen = torch.randint(len(inputs), (CELLS,), device=self.device)
        inputs, targets, weights = inputs[chosen], targets[chosen], self.pixels.flatten()
        with autocast(self.device):
            drawn = self.sketch.draw(inputs).float()
        loss = ((drawn - targets).square() * weights).mean()
        return loss, {"ratio": float(loss.detach() / (targets.square() * weights).mean())}

    def fresh_pool(self, step: int, rng: random.Random, batch: int, held_out: bool) -> LatentPool:
        if held_out:
            return super().fresh_pool(step, rng, batch, held_out)
        self.pool.fill(rng, START_SEGMENTS)
        if rng.random() < REFRESH:
            self.pool.refresh(rng)
        return self.pool

    def cells(self, window: TrainingWindow, context: int) -> SketchCells:
        """Cells near subjects in the new frames of a window, whose first `context` latents are context."""
        path = nnf.interpolate(window.features, scale_factor=self.scale, mode="bilinear")
        inputs = self.sketch.look(path[None], context)[0]
        covered = nnf.interpolate(window.mask[context:, None], scale_factor=self.scale, mode="bilinear")
        near = nnf.max_pool2d(covered, 3, 1, 1)[:, 0] > COVERED
        targets = window.latents[context:] * (covered / teacher.WHOLE).clamp(max=1)
        return SketchCells(inputs.movedim(1, -1)[near], targets.movedim(1, -1)[near])
