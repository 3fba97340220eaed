"""Stage `autoencoder`: the linear map by PCA, then the network around it.

Loss per pixel: L1 + 4 MSE + 0.5 L1 of the gradients + L1 of the change in time, which counts twice where one latent
ends and the next begins: nothing else keeps pictures from jumping there.
Shapes: `B` batch, `F` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.loading.weights import save_component
from engine.perceptual.mini.vae import FRAMES_PER_LATENT, PATCH_PX, TinyVAE, TinyVAEConfig, TinyVAEState
from engine.training.world import drawing as world
from engine.training.world.captions import Label, random_label

CROP_PX = (64, 96)
LATENTS = 4  # per training clip
LATENT_NOISE = 0.06  # largest; the decoder must bear what the renderer leaves
PCA_CLIPS = 120
HELD_OUT = 16  # videos
BOX_PX = 48  # side of the box round the subject that is judged apart
# A number of frames -> frames and where to look, as `drawn` gives them.
Stretch = Callable[[random.Random, int], tuple[Tensor, Tensor]]
AMPLITUDE = 1.0  # of the latents over all channels, root mean square


def pixels(video: Tensor) -> Tensor:
    """uint8 -> -1..1 float32."""
    return video.float() / 127.5 - 1.0


def psnr(error: Tensor) -> float:
    """dB of a mean square error over a range of 2."""
    return float(10 * torch.log10(4.0 / error.detach().mean()))


def drawn(rng: random.Random, count: int) -> tuple[Tensor, Tensor]:
    """Frames uint8 [1, F, 3, H, W] of a random place in a random world, and where its subject is [2] in the middle."""
    spec = world.sample([random_label(rng)], rng)
    frames = rng.randrange(400) + torch.arange(count)[None]
    return world.draw(spec, frames), world.centres(spec, frames)[0, count // 2]


@torch.no_grad()
def fit_linear_map(vae: TinyVAE, seed: int, stretch: Stretch = drawn) -> None:
    """Set basis and mean to the principal components of patches, and the scale to even the channels out half-way.

    The scale is std^-1/2, so that strong channels stay stronger: whitened latents would give the renderer's loss to
    channels nobody sees.
    """
    rng = random.Random(seed)
    total = torch.zeros(vae.config.patch_values, dtype=torch.float64)
    square = torch.zeros(vae.config.patch_values, vae.config.patch_values, dtype=torch.float64)
    count = 0
    for _ in range(PCA_CLIPS):
        packed = pixels(stretch(rng, 16)[0]).unflatten(1, (4, 4)).flatten(2, 3)
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


def reconstruction_loss(error: Tensor, first: int) -> Tensor:
    """The loss of an error [B, F, 3, H, W] whose first latent stands for the first `first` frames."""
    loss = error.abs().mean() + 4 * error.square().mean()
    loss = loss + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    jumps = error.diff(dim=1).abs()
    return loss + jumps.mean() + jumps[:, first - 1 :: FRAMES_PER_LATENT].mean()


def jump_ratio(video: Tensor, first: int) -> Tensor:
    """How much more a video [B, F, 3, H, W] changes where a latent begins than on average; of true ones it is 1.0."""
    change = video.diff(dim=1).abs().mean((0, 2, 3, 4))
    return change[first - 1 :: FRAMES_PER_LATENT].mean() / change.mean()


@torch.no_grad()
def reconstruction_figures(vae: TinyVAE, labels: list[Label]) -> dict[str, float]:
    """PSNR of true videos over the picture and in a box round the subject, and their `jump_ratio`."""
    device = vae.mean.device
    whole, box, jumps = [], [], []
    for row, label in enumerate(labels):
        spec, frames = world.sample([label], random.Random(row)).to(device), torch.arange(25, device=device)[None]
        video = pixels(world.draw(spec, frames))
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(video, TinyVAEState())
            again = vae.decode(latents, TinyVAEState()).float().clamp(-1, 1)
        error = (again - video).square()
        whole.append(error.mean())
        jumps.append(jump_ratio(again, first=1))
        for frame, (x, y) in enumerate(world.centres(spec, frames)[0].tolist()):
            left, top = int(max(x - BOX_PX / 2, 0)), int(max(y - BOX_PX / 2, 0))
            box.append(error[0, frame, :, top : top + BOX_PX, left : left + BOX_PX].mean())
    figures = {"psnr_db": psnr(torch.stack(whole)), "box_psnr_db": psnr(torch.stack(box))}
    return {**figures, "jump_ratio": torch.stack(jumps).mean().item()}


class AutoencoderStage:
    """Trains `TinyVAE` on crops, most of them near the subject."""

    def __init__(self, config: TinyVAEConfig, seed: int, device: str, weights: Path, stretch: Stretch = drawn) -> None:
        self.seed, self.device, self.weights, self.stretch = seed, device, weights, stretch
        self.vae = TinyVAE(config)
        fit_linear_map(self.vae, seed, stretch)
        self.module: nn.Module = self.vae.to(device)
        rng = random.Random(f"autoencoder held out {seed}")
        self.held_out = [random_label(rng, held_out=True) for _ in range(HELD_OUT)]

    def hidden(self) -> list[nn.Parameter]:
        ends = ("encode_in", "encode_out", "decode_in", "decode_out")
        return [p for name, p in self.vae.named_parameters() if p.ndim == 4 and not name.startswith(ends)]

    def batch(self, step: int, size: int) -> Tensor:
        """[size, 1 + 4 (LATENTS - 1) or 4 LATENTS, 3, *CROP_PX] in -1..1; every third step starts a video."""
        rng = random.Random(f"autoencoder {self.seed} {step}")
        count = 1 + 4 * (LATENTS - 1) if step % 3 == 0 else 4 * LATENTS
        crops = []
        for _ in range((size + 1) // 2):
            drawn_video, middle = self.stretch(rng, count)
            video = pixels(drawn_video.to(self.device))[0]
            for _ in range(2):
                near = rng.random() < 0.7
                spots = []
                for axis, (span, crop) in enumerate(zip(video.shape[:-3:-1], CROP_PX[::-1], strict=True)):
                    low = float(middle[axis]) - crop / 2 + rng.uniform(-16, 16) if near else rng.uniform(0, span - crop)
                    spots.append(int(max(min(low, span - crop), 0)))
                x, y = spots
                crops.append(video[..., y : y + CROP_PX[0], x : x + CROP_PX[1]])
        return torch.stack(crops[:size])

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        torch.manual_seed(random.Random(f"autoencoder noise {self.seed} {step}").getrandbits(63))
        video = self.batch(step, batch)
        # In the middle of a video the first latent only fills the memories and is not judged.
        starts = video.shape[1] % 4 == 1
        with torch.autocast(self.device, torch.bfloat16):
            latents = self.vae.encode(video, TinyVAEState(started=not starts))
            latents = latents + LATENT_NOISE * torch.rand(()) * torch.randn_like(latents)
            again = self.vae.decode(latents, TinyVAEState(started=not starts)).float()
        if not starts:
            video, again = video[:, 4:], again[:, 4:]
        error = again - video
        return reconstruction_loss(error, first=1 if starts else 4), {"psnr": psnr(error.square())}

    def evaluate(self) -> dict[str, float]:
        return reconstruction_figures(self.vae, self.held_out)

    def export(self) -> None:
        save_component(self.weights, "vae", self.vae)
