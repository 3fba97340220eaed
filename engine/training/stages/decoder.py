"""Stage `decoder`: the decoder of a finished autoencoder is trained on with rendered latents.

Encoder and latents stay as they are, so the renderer still fits. Every third sample of a batch is rendered, the others
are encoded true videos: the decoder learns to hide the renderer's errors and the steps between latents and chunks.
Shapes: `F` frames, `T` latents, `C` latent channels, `h` x `w` latent size.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from engine.config import FRAMES_PER_LATENT
from engine.loading.options import autocast
from engine.loading.weights import load_component
from engine.perceptual.mini.vae import PATCH_PX, TinyVAE, TinyVAEState
from engine.training.latent_pool import LatentPool
from engine.training.run import LossAndFigures, TrainingStage
from engine.training.setup import StageSetup
from engine.training.sources.source import crop_start, pixels, psnr
from engine.training.stages.autoencoder import HIDDEN, LATENT_NOISE, NEAR_SHARE, reconstruction_loss
from engine.training.stages.renderer import RendererStage

POOL_SEGMENTS, START_SEGMENTS, HELD_OUT_SEGMENTS = 64, 8, 16
REFRESH = 0.02  # segments replaced per sample
RENDERED_EVERY = 3  # samples of a batch
LATENTS = 5  # of a sample; the first only fills the decoder's state
CROP = (8, 12)  # rows and columns of latents
COVERED = 0.3  # least share of a cell covered by a subject that counts as its place


class DecoderStage(TrainingStage):
    """Trains the decoding half of `TinyVAE`."""

    hidden = HIDDEN

    def __init__(self, setup: StageSetup) -> None:
        """Raises ValueError if the autoencoder is not `TinyVAE`, or weights of earlier stages are missing."""
        renders, self.device = RendererStage(setup), setup.device
        if not isinstance(renders.vae, TinyVAE):
            raise ValueError(f"the autoencoder of preset {setup.config.name!r} is used as published and not trained")
        setup.require("renderer")
        load_component(setup.weights, "renderer", renders.renderer)
        self.renders, self.vae = renders, renders.vae
        self.pool, self.held_out = renders.pool, renders.held_out
        self.pool.size, self.held_out.size = POOL_SEGMENTS, HELD_OUT_SEGMENTS
        self.pool.keeps_videos = self.held_out.keeps_videos = True
        for name, parameter in self.vae.named_parameters():
            parameter.requires_grad_(name.startswith("decode_"))
        super().__init__(setup.weights, self.vae, vae=self.vae)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        pool, render = self.held_out if held_out else self.pool, self.renders.render_window
        if held_out:
            pool.fill(random.Random("held out"), HELD_OUT_SEGMENTS, render)
        pool.fill(rng, START_SEGMENTS, render)
        for _ in range(0 if held_out else int(batch * REFRESH + rng.random())):
            pool.refresh(rng, render)
        samples = [self.sample(pool, rng, rendered=index % RENDERED_EVERY == 0) for index in range(batch)]
        latents, video = (torch.stack(part) for part in zip(*samples, strict=True))
        strength = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, 1, device=self.device)
        latents = latents + strength * torch.randn_like(latents)
        with autocast(self.device):
            again = self.vae.decode(latents, TinyVAEState(started=True)).float()
        error = (again - video)[:, FRAMES_PER_LATENT:]
        rendered, true = (psnr(error[at::RENDERED_EVERY].square()) for at in (0, 1))
        figures = {"psnr_rendered_db": rendered, "psnr_true_db": true}
        return reconstruction_loss(error, first=FRAMES_PER_LATENT), figures

    def sample(self, pool: LatentPool, rng: random.Random, rendered: bool) -> tuple[Tensor, Tensor]:
        """A crop of a segment, often near a subject: latents [T, C, h, w] and pixels [4 T, 3, H, W] in -1..1."""
        encoded = rng.choice(pool.segments)
        start = rng.randrange(1, len(encoded.latents) - LATENTS + 1)
        spots = (encoded.segment.mask[start + LATENTS // 2] > COVERED).nonzero().tolist()
        spot = rng.choice(spots) if spots and rng.random() < NEAR_SHARE else (None, None)
        size, cells, (high, wide) = encoded.latents.shape[-2:], encoded.segment.mask.shape[1:], CROP
        top, left = (
            crop_start(rng, size[axis], CROP[axis], None if at is None else (at + 0.5) * size[axis] / cells[axis])
            for axis, at in enumerate(spot)
        )
        source = encoded.rendered if rendered else encoded.latents
        assert source is not None, "all segments of this pool are rendered"
        latents = source[start : start + LATENTS, :, top : top + high, left : left + wide]
        first = 1 + FRAMES_PER_LATENT * (start - 1)
        video = encoded.segment.video[0, first : first + FRAMES_PER_LATENT * LATENTS]
        top, left, high, wide = (cells * PATCH_PX for cells in (top, left, high, wide))
        return latents, pixels(video[..., top : top + high, left : left + wide])
