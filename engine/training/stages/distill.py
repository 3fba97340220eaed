"""Stage `distill`: a renderer that needs fewer steps, learned from one that is trained (progressive distillation).

The student's step from time s to time e has to arrive where the teacher arrives in several steps of the same flow,
starting from the same noisy latents. As the step is linear in the clean latents that the network predicts, the
prediction that leads there is known in closed form, and the student learns it. Guidance by text, if the teacher uses
any, is folded in.
Shapes: `B` batch, `T` latent frames, `C` channels, `h` x `w` latent size.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.loading.weights import load_component, save_component
from engine.perceptual.mini.vae import TinyVAE
from engine.perceptual.solver import guide
from engine.training.latent_pool import Quantise, Window
from engine.training.stages.renderer import Batch, EncodeText, RendererStage


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """`steps` of the student for a hop, `teacher_steps` of the teacher for each of them, its `guidance` by text."""

    steps: int = 2
    teacher_steps: int = 4
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.teacher_steps < 2:
            raise ValueError(
                f"steps {self.steps} must be at least 1, and teacher_steps {self.teacher_steps} at least 2: with one "
                "there is nothing to learn"
            )


def move(x: Tensor, clean: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """One Euler step of the flow from the times `start` to the times `end` [B], given the clean latents' estimate."""
    keep, start, end = ((1 - end) / (1 - start)).view(-1, 1, 1, 1, 1), _per_row(start), _per_row(end)
    return keep * x + (end - keep * start) * clean


def aim(x: Tensor, arrived: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The estimate with which `move` goes from `x` to `arrived`."""
    keep, start, end = ((1 - end) / (1 - start)).view(-1, 1, 1, 1, 1), _per_row(start), _per_row(end)
    return (arrived - keep * x) / (end - keep * start)


def _per_row(time: Tensor) -> Tensor:
    return time.view(-1, 1, 1, 1, 1)


class DistillStage(RendererStage):
    """Trains a student, which begins as a copy of its teacher, on the windows that renderers train on."""

    def __init__(
        self,
        config: EngineConfig,
        distill: DistillConfig,
        vae: TinyVAE,
        encode_text: EncodeText,
        quantise: Quantise,
        seed: int,
        device: str,
        weights: Path,
        student: Path,
    ) -> None:
        """The teacher is read from `weights`; the student goes to the folder `student`, with all other components."""
        if student.resolve() == weights.resolve():
            raise ValueError(f"the student would overwrite its teacher in {weights}: give another --student")
        super().__init__(replace(config, steps=distill.steps), vae, encode_text, quantise, seed, device, weights)
        load_component(weights, "renderer", self.renderer)
        self.teacher = copy.deepcopy(self.renderer).requires_grad_(False).eval()
        self.distill, self.student = distill, student
        self.times = self.schedule.times(distill.steps).float().to(device)

    def errors(self, windows: list[Window], prompted: bool, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Squared distance [B, T, C, h, w] from the prediction that leads where the teacher goes, and the weights."""
        batch = self.batch(windows, prompted, rng)
        index = torch.randint(self.distill.steps, (len(windows),), device=self.device)
        start, end = self.times[index], self.times[index + 1]
        noisy = self.schedule.mix(batch.clean, batch.noise, start)
        with torch.autocast(self.device, torch.bfloat16):
            wanted = aim(noisy, self.taught(batch, noisy, start, end), start, end)
            predicted = self.renderer.denoise(noisy, start, batch.read(self.renderer)).float()
        return (predicted - wanted).square(), batch.weight

    @torch.no_grad()
    def taught(self, batch: Batch, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Where the teacher takes `x` from the times `start` to the times `end`."""
        estimate = self.estimator(batch)
        for step in range(self.distill.teacher_steps):
            now = start + (end - start) * (step / self.distill.teacher_steps)
            after = start + (end - start) * ((step + 1) / self.distill.teacher_steps)
            x = move(x, estimate(x, now), now, after)
        return x

    def estimator(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """The teacher's (guided) estimate of the clean latents, from noisy ones and their times."""
        cache = batch.read(self.teacher)

        def with_text(x: Tensor, time: Tensor) -> Tensor:
            return self.teacher.denoise(x, time, cache).float()

        if self.distill.guidance == 1.0:
            return with_text
        bare = replace(batch, text=torch.zeros_like(batch.text)).read(self.teacher)

        def guided(x: Tensor, time: Tensor) -> Tensor:
            without = self.teacher.denoise(x, time, bare).float()
            return guide(without, with_text(x, time), self.distill.guidance)

        return guided

    def export(self) -> None:
        """A complete folder of weights: the student's renderer beside copies of everything else."""
        self.student.mkdir(parents=True, exist_ok=True)
        for path in self.weights.iterdir():
            copied = self.student / path.name
            if path.name != "renderer.safetensors" and not copied.exists():
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copied)
        save_component(self.student, "renderer", self.renderer)
