"""Stage `decoder`: the decoder of a finished autoencoder, trained on over what the renderer makes.

Latents stay as they are, and with them the renderer. Every third sample of a batch is rendered from a video's features,
two hops long, the others are encoded true videos: the decoder learns to bear the renderer's flaws, and pictures not to
jump from latent to latent and from hop to hop.
Shapes: `F` frames, `T` latents, `C` latent channels, `h` x `w` latent size.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.loading.weights import save_component
from engine.perceptual.mini.vae import PATCH_PX, TinyVAE, TinyVAEState
from engine.training.latent_pool import Window
from engine.training.stages.autoencoder import (
    HELD_OUT,
    LATENT_NOISE,
    jump_ratio,
    pixels,
    psnr,
    reconstruction_figures,
    reconstruction_loss,
)
from engine.training.stages.renderer import RendererStage
from engine.training.world import drawing as world
from engine.training.world import teacher
from engine.training.world.captions import Label, caption, random_label

POOL_VIDEOS = 64
START_VIDEOS = 8
REFRESH = 0.02  # videos replaced per sample
RENDERED_EVERY = 3  # samples of a batch
HOPS = 2  # rendered behind a true prompt half
LATENTS = 5  # of a sample; the first only fills the memories
CROP = (8, 12)  # rows and columns of latents


@dataclass(frozen=True, slots=True)
class Rendered:
    """One video, as drawn, as encoded and as rendered."""

    video: Tensor  # uint8 [F, 3, H, W], the first of the 1 + 4 (T - 1) frames is latent 0
    true: Tensor  # [T, C, h, w]
    made: Tensor  # [T, C, h, w], the first are true
    centre: tuple[float, float]  # of the subject, in latents


class DecoderStage:
    """Trains the decoding half of `TinyVAE`."""

    def __init__(self, config: EngineConfig, vae: TinyVAE, renders: RendererStage, seed: int, weights: Path) -> None:
        self.config, self.renders, self.seed, self.weights = config, renders, seed, weights
        self.device = renders.device
        self.vae = vae.to(self.device)
        self.module: nn.Module = self.vae
        for name, parameter in self.vae.named_parameters():
            parameter.requires_grad_(name.startswith("decode_"))
        self.pool: list[Rendered] = []
        rng = random.Random(f"decoder held out {seed}")
        self.labels = [random_label(rng, held_out=True) for _ in range(HELD_OUT)]
        self.held_out = [self.make(rng, label) for label in self.labels]

    def hidden(self) -> list[nn.Parameter]:
        ends = ("decode_in", "decode_out")
        named = self.vae.named_parameters()
        return [p for name, p in named if p.requires_grad and p.ndim == 4 and not name.startswith(ends)]

    @torch.no_grad()
    def make(self, rng: random.Random, label: Label) -> Rendered:
        """Draw, encode and render a video."""
        given, new = self.config.prompt_latents, self.config.new_latents
        length = given + HOPS * new
        spec = world.sample([label], rng).to(self.device)
        first = FRAMES_PER_LATENT * rng.randrange(100)
        frames = first + torch.arange(1 + (length - 1) * FRAMES_PER_LATENT, device=self.device)[None]
        video = world.draw(spec, frames)
        with torch.autocast(self.device, torch.bfloat16):
            true = self.vae.encode(pixels(video), TinyVAEState())[0].float()
        maps = teacher.maps(spec, frames[:, ::FRAMES_PER_LATENT])[0]
        quantise = self.renders.pool.quantise
        features = maps if quantise is None else quantise(maps, length, rng)
        made = true[:given]
        for start in range(0, HOPS * new, new):
            part = slice(start, start + given + new)
            window = Window(true[part], features[part], teacher.covered(maps[part]), caption(label, rng), label)
            made = torch.cat([made, self.renders.render(window, made[None, -given:], rng.randrange(2**31))[0]])
        x, y = world.centres(spec, frames)[0, frames.shape[1] // 2].tolist()
        return Rendered(video[0], true, made, (x / PATCH_PX, y / PATCH_PX))

    def sample(self, rng: random.Random, rendered: bool) -> tuple[Tensor, Tensor]:
        """A crop: latents [T, C, h, w] and its pixels [4 T, 3, H, W] in -1..1."""
        item = rng.choice(self.pool)
        start = rng.randrange(1, len(item.true) - LATENTS + 1)
        corners = []
        for centre, size, crop in zip(item.centre[::-1], item.true.shape[-2:], CROP, strict=True):
            near = rng.random() < 0.7
            low = centre - crop / 2 + rng.uniform(-2, 2) if near else rng.uniform(0, size - crop)
            corners.append(int(min(max(low, 0), size - crop)))
        rows, columns = (slice(corner, corner + crop) for corner, crop in zip(corners, CROP, strict=True))
        latents = (item.made if rendered else item.true)[start : start + LATENTS, :, rows, columns]
        first = 1 + FRAMES_PER_LATENT * (start - 1)
        video = item.video[first : first + FRAMES_PER_LATENT * LATENTS]
        high, wide = (slice(part.start * PATCH_PX, part.stop * PATCH_PX) for part in (rows, columns))
        return latents, pixels(video[..., high, wide])

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"decoder {self.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        while len(self.pool) < START_VIDEOS:
            own = random.Random(f"decoder pool {self.seed} {step} {len(self.pool)}")
            self.pool.append(self.make(own, random_label(own)))
        for _ in range(int(batch * REFRESH + rng.random())):
            self.pool = [*self.pool, self.make(rng, random_label(rng))][-POOL_VIDEOS:]
        samples = [self.sample(rng, rendered=index % RENDERED_EVERY == 0) for index in range(batch)]
        latents, video = (torch.stack(part) for part in zip(*samples, strict=True))
        latents = latents + LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, 1) * torch.randn_like(latents)
        with torch.autocast(self.device, torch.bfloat16):
            again = self.vae.decode(latents, TinyVAEState(started=True)).float()
        error = (again - video)[:, FRAMES_PER_LATENT:]
        figures = {f"psnr_{name}": psnr(error[at::RENDERED_EVERY].square()) for name, at in (("made", 0), ("true", 1))}
        return reconstruction_loss(error, first=FRAMES_PER_LATENT), figures

    def evaluate(self) -> dict[str, float]:
        """Figures of true videos as for the autoencoder, and the same of rendered ones."""
        errors, jumps = [], []
        for item in self.held_out:
            with torch.autocast(self.device, torch.bfloat16):
                again = self.vae.decode(item.made[None], TinyVAEState()).float().clamp(-1, 1)
            errors.append((again - pixels(item.video)).square().mean())
            jumps.append(jump_ratio(again, first=1))
        made = {"psnr_made_db": psnr(torch.stack(errors)), "jump_ratio_made": torch.stack(jumps).mean().item()}
        return {**reconstruction_figures(self.vae, self.labels), **made}

    def export(self) -> None:
        save_component(self.weights, "vae", self.vae)
