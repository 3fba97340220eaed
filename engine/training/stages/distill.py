"""Stage `distill`: a renderer with fewer steps learns from a trained one (progressive distillation).

A student's step has to end where several steps of its teacher end, from the same noisy latents. A step is linear in
the clean latents that the network predicts, so the right prediction is known in closed form, and the student learns it.
Shapes: `B` batch, `T` latent frames, `C` channels, `h` x `w` latent size.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import torch
from torch import Tensor

from engine.loading.options import autocast
from engine.loading.weights import component_files, load_component, save_component
from engine.perceptual.schedule import FlowSchedule
from engine.training.setup import StageSetup
from engine.training.stages.renderer import RendererBatch, RendererStage


def move(x: Tensor, clean: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """One Euler step of the flow from times `start` to times `end` [B], with an estimate of the clean latents."""
    keep, gain = _coefficients(start, end)
    return keep * x + gain * clean


def aim(x: Tensor, arrived: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Inverse of `move`: the clean estimate for a step from `x` to `arrived`."""
    keep, gain = _coefficients(start, end)
    return (arrived - keep * x) / gain


def _coefficients(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    start, end = start.view(-1, 1, 1, 1, 1), end.view(-1, 1, 1, 1, 1)
    keep = (1 - end) / (1 - start)
    return keep, end - keep * start


class DistillStage(RendererStage):
    """Trains a student, which starts as a copy of its teacher, on windows like `RendererStage`."""

    def __init__(self, setup: StageSetup) -> None:
        """Reads the teacher from `setup.weights`; the student is written to `setup.student`. Raises ValueError if both
        are one folder, or numbers of steps or the preset's schedule do not allow it."""
        if setup.student is None or setup.student.resolve() == setup.weights.resolve():
            raise ValueError(f"the student would overwrite its teacher in {setup.weights}: give another --student")
        if setup.steps < 1 or setup.teacher_steps < 2:
            raise ValueError(f"steps {setup.steps} must be at least 1, teacher_steps {setup.teacher_steps} at least 2")
        if not isinstance(setup.config.schedule, FlowSchedule):
            raise ValueError(f"the renderer of preset {setup.config.name!r} is no flow: only flows can be distilled")
        setup.require("renderer")
        super().__init__(replace(setup, config=replace(setup.config, steps=setup.steps)))
        load_component(setup.weights, "renderer", self.renderer)
        self.teacher = copy.deepcopy(self.renderer).requires_grad_(False).eval()
        self.teacher_steps, self.student = setup.teacher_steps, setup.student
        self.times = setup.config.schedule.times(setup.steps).float().to(self.device)

    def errors(self, batch: RendererBatch) -> Tensor:
        """Squared error [B, T, C, h, w] against the prediction that ends where the teacher ends."""
        index = torch.randint(len(self.times) - 1, (len(batch.clean),), device=self.device)
        start, end = self.times[index], self.times[index + 1]
        noisy = FlowSchedule.mix(batch.clean, batch.noise, start)
        with autocast(self.device):
            wanted = aim(noisy, self.taught(batch, noisy, start, end), start, end)
            predicted = self.renderer.denoise(noisy, start, batch.read(self.renderer)).float()
        return (predicted - wanted).square()

    @torch.no_grad()
    def taught(self, batch: RendererBatch, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Latents after the teacher's steps from `x` at times `start` to times `end`."""
        cache = batch.read(self.teacher)
        for step in range(self.teacher_steps):
            now = start + (end - start) * (step / self.teacher_steps)
            after = start + (end - start) * ((step + 1) / self.teacher_steps)
            x = move(x, self.teacher.denoise(x, now, cache).float(), now, after)
        return x

    def export(self) -> None:
        """Writes a complete folder of weights: the student's renderer and copies of all other components."""
        self.student.mkdir(parents=True, exist_ok=True)
        for path in set(self.weights.iterdir()).difference(component_files(self.weights, "renderer")):
            copied = self.student / path.name
            if not copied.exists():
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copied)
        save_component(self.student, "renderer", self.renderer)
