"""Stage `autoencoder`: the linear map by PCA, then the network around it.

Loss per pixel: L1 + 4 MSE + 0.5 L1 of the gradients, more where the subject is (MINI 1).
Shapes: `B` batch, `F` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.perceptual.tiny_vae import PATCH_PX, TinyVAE, TinyVAEConfig, TinyVAEState
from engine.training import world
from engine.training.captions import random_label
from engine.weights import save_component

CROP_PX = (64, 96)
LATENTS = 4  # per training clip
LATENT_NOISE = 0.03  # the decoder must bear what the renderer leaves
PCA_CLIPS = 120
BOX_PX = 48  # side of the box round the subject that is judged apart
AMPLITUDE = 1.0  # of the latents over all channels, root mean square


def pixels(video: Tensor) -> Tensor:
    """uint8 -> -1..1 float32."""
    return video.float() / 127.5 - 1.0


def psnr(error: Tensor) -> float:
    """dB of a mean square error over a range of 2."""
    return float(10 * torch.log10(4.0 / error.detach().mean()))


@torch.no_grad()
def fit_linear_map(vae: TinyVAE, seed: int) -> None:
    """Set basis and mean to the principal components of patches, and the scale to even the channels out half-way.

    The scale is std^-1/2, so that strong channels stay stronger: whitened latents would give the renderer's loss to
    channels nobody sees (MINI 2).
    """
    rng = random.Random(seed)
    total = torch.zeros(vae.config.patch_values, dtype=torch.float64)
    square = torch.zeros(vae.config.patch_values, vae.config.patch_values, dtype=torch.float64)
    count = 0
    for _ in range(PCA_CLIPS):
        spec = world.sample([random_label(rng)], rng)
        packed = (
            pixels(world.draw(spec, rng.randrange(200) + torch.arange(16)[None])).unflatten(1, (4, 4)).flatten(2, 3)
        )
        patches = nnf.pixel_unshuffle(packed[0], PATCH_PX).permute(0, 2, 3, 1).flatten(0, 2)
        total += patches.double().sum(0)
        square += (patches.T @ patches).double()
        count += len(patches)
    mean = total / count
    values, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    top = slice(-vae.config.latent_channels, None)
    std = values[top].flip(0).clamp(min=1e-8).sqrt()
    scale = std**-0.5
    vae.mean.copy_(mean)
    vae.basis.copy_(vectors[:, top].T.flip(0))
    vae.latent_scale.copy_(scale * AMPLITUDE / ((std * scale) ** 2).mean().sqrt())


class AutoencoderStage:
    """Trains `TinyVAE` on crops, most of them near the subject."""

    def __init__(self, config: TinyVAEConfig, seed: int, device: str, weights: Path) -> None:
        self.seed, self.device, self.weights = seed, device, weights
        self.vae = TinyVAE(config)
        fit_linear_map(self.vae, seed)
        self.module: nn.Module = self.vae.to(device)
        rng = random.Random(f"autoencoder held out {seed}")
        labels = [random_label(rng, held_out=True) for _ in range(16)]
        self.held_out = world.sample(labels, rng).to(device)
        self.held_out_frames = torch.arange(25, device=device).expand(16, -1)

    def hidden(self) -> list[nn.Parameter]:
        ends = ("encode_in", "encode_out", "decode_in", "decode_out")
        return [p for name, p in self.vae.named_parameters() if p.ndim == 4 and not name.startswith(ends)]

    def batch(self, step: int, size: int) -> Tensor:
        """[size, 1 + 4 (LATENTS - 1) or 4 LATENTS, 3, *CROP_PX] in -1..1; every third step starts a video."""
        rng = random.Random(f"autoencoder {self.seed} {step}")
        count = 1 + 4 * (LATENTS - 1) if step % 3 == 0 else 4 * LATENTS
        crops = []
        for _ in range((size + 1) // 2):
            spec = world.sample([random_label(rng)], rng).to(self.device)
            frames = rng.randrange(400) + torch.arange(count, device=self.device)[None]
            video = pixels(world.draw(spec, frames))[0]
            middle = world.centres(spec, frames)[0, count // 2]
            for _ in range(2):
                near = rng.random() < 0.7
                spots = []
                for axis, (span, crop) in enumerate(zip((192, 128), CROP_PX[::-1], strict=True)):
                    low = float(middle[axis]) - crop / 2 + rng.uniform(-16, 16) if near else rng.uniform(0, span - crop)
                    spots.append(int(min(max(low, 0), span - crop)))
                x, y = spots
                crops.append(video[..., y : y + CROP_PX[0], x : x + CROP_PX[1]])
        return torch.stack(crops[:size])

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        video = self.batch(step, batch)
        # In the middle of a video the first latent only fills the memories and is not judged.
        starts = video.shape[1] % 4 == 1
        with torch.autocast(self.device, torch.bfloat16):
            state = TinyVAEState() if starts else _running_state(self.vae, video)
            latents = self.vae.encode(video, state)
            latents = latents + LATENT_NOISE * torch.randn_like(latents)
            state = TinyVAEState() if starts else _running_state(self.vae, video)
            again = self.vae.decode(latents, state).float()
        if not starts:
            video, again = video[:, 4:], again[:, 4:]
        error = again - video
        loss = error.abs().mean() + 4 * error.square().mean()
        loss = loss + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
        return loss, {"psnr": psnr(error.square())}

    def evaluate(self) -> dict[str, float]:
        whole, box = [], []
        for row in range(len(self.held_out)):
            spec, frames = world.sample([self.held_out.labels[row]], random.Random(row)), self.held_out_frames[:1].cpu()
            spec, frames = spec.to(self.device), frames.to(self.device)
            video = pixels(world.draw(spec, frames))
            with torch.autocast(self.device, torch.bfloat16):
                latents = self.vae.encode(video, TinyVAEState())
                again = self.vae.decode(latents, TinyVAEState()).float().clamp(-1, 1)
            error = (again - video).square()
            whole.append(error.mean())
            for frame, (x, y) in enumerate(world.centres(spec, frames)[0].tolist()):
                left, top = int(max(x - BOX_PX / 2, 0)), int(max(y - BOX_PX / 2, 0))
                box.append(error[0, frame, :, top : top + BOX_PX, left : left + BOX_PX].mean())
        return {"psnr_db": psnr(torch.stack(whole)), "box_psnr_db": psnr(torch.stack(box))}

    def export(self) -> None:
        save_component(self.weights, "vae", self.vae)


def _running_state(vae: TinyVAE, video: Tensor) -> TinyVAEState:
    """Memories of a video that is already running: zeros, since what came before was cut off."""
    batch, (height, width) = video.shape[0], video.shape[-2:]
    shape_4 = (batch, vae.config.width_4, height // 4, width // 4)
    shape_8 = (batch, vae.config.width_8, height // 8, width // 8)
    return TinyVAEState(torch.zeros(shape_8, device=video.device), torch.zeros(shape_4, device=video.device))
