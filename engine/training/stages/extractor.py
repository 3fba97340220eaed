"""Stage `extractor`: the feature extractor learns the world's own maps from its pictures (as Theia was distilled)."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.loading.weights import save_component
from engine.semantic.theia import Theia, TheiaConfig
from engine.training.stages.tokenizer import channel_weights, groups
from engine.training.world import drawing as world
from engine.training.world import reading, teacher
from engine.training.world.captions import Label, random_label

FRAMES_PER_WORLD = 4  # drawn at once, far apart
HELD_OUT = 48


class ExtractorStage:
    """Trains `Theia`."""

    def __init__(self, config: TheiaConfig, seed: int, device: str, weights: Path) -> None:
        torch.manual_seed(seed)
        self.seed, self.device, self.weights = seed, device, weights
        self.theia = Theia(config).to(device)
        self.module: nn.Module = self.theia
        maps, _ = groups(random.Random(f"extractor {seed}"), 200, 4)
        self.scale = channel_weights(maps).to(device)
        rng = random.Random(f"extractor held out {seed}")
        self.held_out: list[Label] = [random_label(rng, held_out=True) for _ in range(HELD_OUT)]
        self.specs = [world.sample([label], rng) for label in self.held_out]

    def hidden(self) -> list[nn.Parameter]:
        return [p for p in self.theia.blocks.parameters() if p.ndim == 2]

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"extractor {self.seed} {step}")
        pictures, maps = [], []
        for _ in range(batch // FRAMES_PER_WORLD):
            spec = world.sample([random_label(rng)], rng).to(self.device)
            frames = torch.tensor([[rng.randrange(600) for _ in range(FRAMES_PER_WORLD)]], device=self.device)
            pictures.append(degraded(world.draw(spec, frames), rng))
            maps.append(teacher.maps(spec, frames))
        with torch.autocast(self.device, torch.bfloat16):
            features = self.theia(torch.cat(pictures)).float()
        error = ((features - torch.cat(maps)).square() * self.scale).mean()
        return error, {}

    def evaluate(self) -> dict[str, float]:
        frames = torch.arange(0, 49, 4, device=self.device)[None]
        readings, gaps = [], []
        for spec in self.specs:
            features = self.theia(world.draw(spec.to(self.device), frames)).float()
            readings += reading.read(features)
            true = reading.path(teacher.maps(spec.to(self.device), frames))[0]
            gaps.append((reading.path(features)[0] - true).norm(dim=-1).median())
        return {"position_px": float(torch.stack(gaps).median())} | reading.shares(readings, self.held_out)

    def export(self) -> None:
        save_component(self.weights, "theia", self.theia)


def degraded(video: Tensor, rng: random.Random) -> Tensor:
    """Half of the time noisy, so that features of generated pictures stay readable. uint8 in and out."""
    if rng.random() < 0.5:
        return video
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(rng.getrandbits(63)))
    return (video.float() + rng.uniform(0, 12) * noise.to(video.device)).clamp(0, 255).to(torch.uint8)
