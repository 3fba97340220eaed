"""Stage `autoencoder`: the linear map by PCA, then the network around it.

Loss per pixel: L1 + 4 MSE + 0.5 L1 of the gradients + L1 of the change in time, twice between frames of two latents,
where pictures would jump otherwise.
Shapes: `B` batch, `F` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.loading.options import autocast
from engine.perceptual.base import FRAMES_PER_LATENT
from engine.perceptual.mini.vae import PATCH_PX, TinyVAE, TinyVAEConfig, TinyVAEState
from engine.training.run import LossAndFigures, TrainingStage
from engine.training.setup import StageSetup
from engine.training.sources import VideoSource
from engine.training.sources.source import crop_start, pixels, psnr

CROP_PX = (64, 96)
LATENTS = 4  # per training clip
LATENT_NOISE = 0.06  # largest amplitude: latents of the renderer are noisy too
PCA_CLIPS = 120
HIDDEN = r"code_(4|8|down|up)\b"  # convolutions, but for the first and last ones
AMPLITUDE = 1.0  # of the latents over all channels, root mean square
NEAR_SHARE, NEAR_PX = 0.7, 16  # share of the crops near the focus of a clip, and how near


@torch.no_grad()
def fit_linear_map(vae: TinyVAE, source: VideoSource, rng: random.Random, clips: int) -> None:
    """Sets basis and mean by PCA of patches, and the latent scale to std^-1/2 of each channel.

    Whitened latents (std^-1) would weight invisible channels as much as visible ones in the renderer's loss.
    """
    parts = []
    for _ in range(clips):
        packed = pixels(source.clip(rng, 4 * FRAMES_PER_LATENT)[0]).unflatten(1, (4, FRAMES_PER_LATENT)).flatten(2, 3)
        parts.append(nnf.pixel_unshuffle(packed[0], PATCH_PX).permute(0, 2, 3, 1).flatten(0, 2).cpu())
    patches = torch.cat(parts)
    variances, vectors = torch.linalg.eigh(patches.T.cov())
    top = slice(-vae.config.latent_channels, None)
    std = variances[top].flip(0).clamp(min=1e-8).sqrt()
    scale = std**-0.5
    vae.mean.copy_(patches.mean(0))
    vae.basis.copy_(vectors[:, top].T.flip(0))
    vae.latent_scale.copy_(scale * AMPLITUDE / ((std * scale) ** 2).mean().sqrt())


def reconstruction_loss(error: Tensor, first: int) -> Tensor:
    """Loss of an error [B, F, 3, H, W] whose first `first` frames belong to the first latent."""
    loss = error.abs().mean() + 4 * error.square().mean()
    loss = loss + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    jumps = error.diff(dim=1).abs()
    return loss + jumps.mean() + jumps[:, first - 1 :: FRAMES_PER_LATENT].mean()


class AutoencoderStage(TrainingStage):
    """Trains `TinyVAE` on crops, most of them near the focus of a clip."""

    hidden = HIDDEN

    def __init__(self, setup: StageSetup, pca_clips: int = PCA_CLIPS) -> None:
        """Raises ValueError if the preset has another autoencoder."""
        if not isinstance(setup.config.vae, TinyVAEConfig):
            raise ValueError(f"the autoencoder of preset {setup.config.name!r} is used as published and not trained")
        self.source, self.device = setup.source(extracts=False), setup.device
        torch.manual_seed(setup.seed)
        self.vae = TinyVAE(setup.config.vae)
        if not setup.warm_start:
            fit_linear_map(self.vae, self.source, random.Random(setup.seed), pca_clips)
        super().__init__(setup.weights, self.vae.to(self.device), vae=self.vae)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        # Every third step is about starts of videos; otherwise the first latent only fills the states.
        starts = step % 3 == 0
        video = self.crops(rng, batch, 1 + 4 * (LATENTS - 1) if starts else 4 * LATENTS, held_out)
        with autocast(self.device):
            latents = self.vae.encode(video, TinyVAEState(started=not starts))
            if not held_out:
                latents = latents + LATENT_NOISE * torch.rand(()) * torch.randn_like(latents)
            again = self.vae.decode(latents, TinyVAEState(started=not starts)).float()
        error = (again - video)[:, 0 if starts else FRAMES_PER_LATENT :]
        loss = reconstruction_loss(error, first=1 if starts else FRAMES_PER_LATENT)
        return loss, {"psnr_db": psnr(error.square())}

    def crops(self, rng: random.Random, count: int, frames: int, held_out: bool) -> Tensor:
        """[B, F, 3, *CROP_PX] in -1..1, two of each clip."""
        crops = []
        for _ in range((count + 1) // 2):
            clip, focus = self.source.clip(rng, frames, held_out)
            video = pixels(clip.to(self.device))[0]
            for _ in range(2):
                near = rng.random() < NEAR_SHARE
                x, y = (
                    crop_start(rng, size, crop, middle + rng.uniform(-NEAR_PX, NEAR_PX) if near else None)
                    for middle, size, crop in zip(focus, video.shape[:-3:-1], CROP_PX[::-1], strict=True)
                )
                crops.append(video[..., y : y + CROP_PX[0], x : x + CROP_PX[1]])
        return torch.stack(crops[:count])
