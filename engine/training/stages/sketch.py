"""Stage `sketch`: what `Sketch` draws of subjects, taught alone and cell by cell.

A subject fills a few cells of a window, so that in a step of the renderer most of the work is about what stands still.
Here a step sees cells near subjects alone, some hundred times as many a second. In a cell that a subject covers by half
or more the sketch shall be the true latent, where there is none 0, and in proportion between, as its opacity is from
the start (`teacher.opacity_weights`).
Shapes: `T` new latent frames, `I` inputs and `C` latent channels of a cell, `H` x `W` latent size, `N` cells.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.training.latent_pool import Window
from engine.training.stages.renderer import MASKED_SHARE, RendererStage
from engine.training.world import teacher
from engine.training.world.captions import Label, hardest_label

CELLS = 3072  # a step sees
REFRESH = 0.5  # clips replaced per step: the same ones for long are learned by heart
POOL_CLIPS = 1536
COVERED = 0.1  # of a cell from which on the figures count it


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells near subjects."""

    inputs: Tensor  # [N, I] what the sketch sees
    sketch: Tensor  # [N, C] what shall be drawn
    covered: Tensor  # [N] the subjects' share


class SketchStage:
    """Trains `Sketch`; the rest of the renderer stays."""

    def __init__(self, renders: RendererStage) -> None:
        """Raises ValueError if the renderer has no details."""
        self.renders, self.renderer = renders, renders.renderer
        self.module: nn.Module = self.renderer
        details = self.renderer.condition.details
        if details is None:
            raise ValueError(f"the renderer of preset {renders.config.name!r} has no details to be sketched in")
        self.scale, self.sketch = details.scale, details.sketch
        renders.pool.size = POOL_CLIPS
        renders.pool.draw = partial(hardest_label, hardness=hard_to_sketch, draws=3)
        self.renderer.requires_grad_(False)
        self.sketch.requires_grad_(True).opacity.requires_grad_(False)

    def hidden(self) -> list[nn.Parameter]:
        parts = (self.sketch.sight, self.sketch.strokes.shapes, self.sketch.strokes.layers)
        return [p for part in parts for p in part.parameters() if p.ndim == 4]

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        """`batch` windows give the cells."""
        rng = random.Random(f"sketch {self.renders.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        self.renders.fill(step)
        pool = self.renders.pool
        if rng.random() < REFRESH:
            pool.refresh(rng)
        parts = []
        for _ in range(batch):
            prompted = rng.random() > MASKED_SHARE
            parts.append(self.cells(pool.window(rng, prompted), self.renders.config.prompt_latents * prompted))
        chosen = torch.randint(sum(len(part.covered) for part in parts), (CELLS,), device=self.renders.device)
        error = self.error(Cells(*(torch.cat(part)[chosen] for part in zip(*map(_columns, parts), strict=True))))
        return (error * self.renders.pixels.flatten()).mean(), {"error": error.mean().item()}

    def cells(self, window: Window, given: int) -> Cells:
        """Those within a cell of a subject, in the frames behind the `given` first ones."""
        device = self.renders.device
        path = nnf.interpolate(window.features.to(device), scale_factor=self.scale, mode="bilinear")
        inputs = self.sketch.look(path[None], given)[0]
        covered = nnf.interpolate(window.mask[given:, None].to(device), scale_factor=self.scale, mode="bilinear")
        near = nnf.max_pool2d(covered, 3, 1, 1)[:, 0] > COVERED / 2
        sketch = window.latents[given:].to(device) * (covered / teacher.WHOLE).clamp(max=1)
        inputs, sketch, covered = (x.movedim(1, -1)[near] for x in (inputs, sketch, covered))
        return Cells(inputs, sketch, covered[:, 0])

    def error(self, cells: Cells) -> Tensor:
        """Squared error [N, C]."""
        with torch.autocast(self.renders.device, torch.bfloat16):
            drawn = self.sketch.draw(cells.inputs.T[None, :, :, None])[0, :, :, 0].float()
        return (drawn.T - cells.sketch).square()

    def evaluate(self) -> dict[str, float]:
        """Squared error in held-out cells that subjects cover, over that of an empty sketch."""
        wrong = total = torch.zeros((), device=self.renders.device)
        for window in self.renders.held_out:
            cells = self.cells(window, self.renders.config.prompt_latents)
            weight = (cells.covered * (cells.covered > COVERED))[:, None] * self.renders.pixels.flatten()
            wrong = wrong + (self.error(cells) * weight).sum()
            total = total + (cells.sketch.square() * weight).sum()
        return {"error": float(wrong / total)}

    def export(self) -> None:
        self.renders.export()


def hard_to_sketch(label: Label) -> int:
    """The more, the harder: two subjects, ways across the picture, wings."""
    return 2 * (label.relation is not None) + label.moves + (label.subject in ("bird", "airplane"))


def _columns(cells: Cells) -> tuple[Tensor, ...]:
    return cells.inputs, cells.sketch, cells.covered
