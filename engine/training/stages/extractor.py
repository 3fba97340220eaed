"""Stage `extractor`: the feature extractor learns the world's teacher maps from pictures (as Theia was distilled)."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from engine.loading.options import autocast
from engine.semantic.theia import Theia
from engine.training.run import LossAndFigures, TrainingStage
from engine.training.setup import StageSetup
from engine.training.world import drawing as world
from engine.training.world import teacher
from engine.training.world.captions import random_label

FRAMES_PER_WORLD = 4
LATEST_FRAME = 600
MOST_NOISE = 12.0  # of 255


class ExtractorStage(TrainingStage):
    """Trains `Theia`."""

    def __init__(self, setup: StageSetup) -> None:
        self.channels = setup.world().channel_weights()
        torch.manual_seed(setup.seed)
        self.theia, self.device = Theia(setup.config.theia).to(setup.device), setup.device
        super().__init__(setup.weights, self.theia, theia=self.theia)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        """Squared error of the maps."""
        pictures, maps = [], []
        for _ in range(max(1, batch // FRAMES_PER_WORLD)):
            spec = world.sample([random_label(rng, held_out)], rng).to(self.device)
            frames = torch.tensor([[rng.randrange(LATEST_FRAME) for _ in range(FRAMES_PER_WORLD)]], device=self.device)
            pictures.append(degraded(world.draw(spec, frames), rng))
            maps.append(teacher.maps(spec, frames))
        with autocast(self.device):
            features = self.theia(torch.cat(pictures)).float()
        return ((features - torch.cat(maps)).square() * self.channels).mean(), {}


def degraded(video: Tensor, rng: random.Random) -> Tensor:
    """Adds noise to half of the videos, uint8: features of generated pictures are noisy too."""
    if rng.random() < 0.5:
        return video
    noise = rng.uniform(0, MOST_NOISE) * torch.randn_like(video, dtype=torch.float32)
    return (video.float() + noise).clamp(0, 255).to(torch.uint8)
