"""Stage `sketch`: what `Details` draws of subjects, taught alone and cell by cell before the renderer goes on with it.

A subject fills a few cells of a window, so that in a step of the renderer most of the work is about what stands still.
Here a step sees cells near subjects alone, some hundred times as many a second. In a cell that a subject covers by half
or more the sketch shall be the true latent, where there is none 0, and in proportion between, as its opacity is from
the start (`teacher.opacity_weights`).
Shapes: `T` latent frames, `D` feature channels, `C` latent channels, `H` x `W` latent size, `N` cells.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.training import teacher
from engine.training.latents import Clip, Window
from engine.training.render import RendererStage

CELLS = 3072  # a step sees
REFRESH = 0.1  # clips replaced per step
COVERED = 0.1  # of a cell from which on the figures count it


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells near subjects."""

    before: Tensor  # [N, D] features of the latent frame before
    features: Tensor  # [N, D]
    sketch: Tensor  # [N, C] what shall be drawn
    covered: Tensor  # [N] the subjects' share


class SketchStage:
    """Trains the sines of `Details` and what reads them; the rest of the renderer stays."""

    def __init__(self, renders: RendererStage) -> None:
        """Raises ValueError if the renderer has no details."""
        self.renders, self.renderer = renders, renders.renderer
        self.module: nn.Module = self.renderer
        details = self.renderer.condition.details
        if details is None:
            raise ValueError(f"the renderer of preset {renders.config.name!r} has no details to be sketched in")
        self.details = details
        for name, parameter in self.renderer.named_parameters():
            parameter.requires_grad_(name.startswith(("condition.details.waves", "condition.details.fine")))

    def hidden(self) -> list[nn.Parameter]:
        layers = (*self.details.fine_in.parameters(), *self.details.fine_layers.parameters())
        return [p for p in layers if p.ndim == 4]

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        """`batch` clips give the cells."""
        rng = random.Random(f"sketch {self.renders.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        self.renders.fill(step)
        pool = self.renders.pool
        if rng.random() < REFRESH:
            pool.refresh(rng)
        parts = [self.cells(rng.choice(pool.clips)) for _ in range(batch)]
        chosen = torch.randint(sum(len(part.covered) for part in parts), (CELLS,), device=self.renders.device)
        error = self.error(Cells(*(torch.cat(part)[chosen] for part in zip(*map(_columns, parts), strict=True))))
        return (error * self.renders.pixels.flatten()).mean(), {"error": error.mean().item()}

    def cells(self, clip: Clip | Window) -> Cells:
        """Those within a cell of a subject."""
        features = torch.cat([clip.features[:1], clip.features]).to(self.renders.device)
        wide = nnf.interpolate(features, scale_factor=self.details.scale, mode="bilinear")
        mask = clip.mask[:, None].to(self.renders.device)
        covered = nnf.interpolate(mask, scale_factor=self.details.scale, mode="bilinear")
        near = nnf.max_pool2d(covered, 3, 1, 1)[:, 0] > COVERED / 2
        sketch = clip.latents.to(self.renders.device) * (covered / teacher.WHOLE).clamp(max=1)
        before, now, sketch, covered = (x.movedim(1, -1)[near] for x in (wide[:-1], wide[1:], sketch, covered))
        return Cells(before, now, sketch, covered[:, 0])

    def error(self, cells: Cells) -> Tensor:
        """Squared error [N, C]."""
        path = torch.stack([cells.before, cells.features])[None].transpose(2, 3).unsqueeze(-1)  # [1, 2, D, N, 1]
        with torch.autocast(self.renders.device, torch.bfloat16):
            drawn = self.details.fine(path)[0, self.details.channels : -1, :, 0].float()
        return (drawn.T - cells.sketch).square()

    def evaluate(self) -> dict[str, float]:
        """Squared error in held-out cells that subjects cover, over that of an empty sketch."""
        wrong = total = torch.zeros((), device=self.renders.device)
        for window in self.renders.held_out:
            cells = self.cells(window)
            weight = (cells.covered * (cells.covered > COVERED))[:, None] * self.renders.pixels.flatten()
            wrong = wrong + (self.error(cells) * weight).sum()
            total = total + (cells.sketch.square() * weight).sum()
        return {"error": float(wrong / total)}

    def export(self) -> None:
        self.renders.export()


def _columns(cells: Cells) -> tuple[Tensor, ...]:
    return cells.before, cells.features, cells.sketch, cells.covered
