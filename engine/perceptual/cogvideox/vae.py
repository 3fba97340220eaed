"""CogVideoX's causal autoencoder, slice by slice over a video without end (REFERENCE 4.1).

The first latent stands for one frame, every other one for four. Group norms take their statistics over a slice, so
slices are part of the result: both directions cut a video in the published way, whatever the calls bring.
Shapes: `B` batch, `T` latents, `F` frames, `C` latent channels, `h` x `w` latent size, `H` x `W` = 8h x 8w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.perceptual.base import FRAMES_PER_LATENT, SLICE_LATENTS, slice_lengths
from engine.perceptual.cogvideox.causal import CausalState
from engine.perceptual.cogvideox.vae_decoder import GROUPS, VAEDecoder
from engine.perceptual.cogvideox.vae_encoder import VAEEncoder

_TIME_LEVELS = 2  # levels that halve the frame rate, to FRAMES_PER_LATENT


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """Sizes; the defaults are the published ones. The decoder has one residual block a level more than the encoder."""

    latent_channels: int = 16
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 3
    latent_scale: float = 1.15258426  # latents of the renderer = this times the autoencoder's

    def __post_init__(self) -> None:
        if self.width % GROUPS:
            raise ValueError(f"width {self.width} is not a multiple of {GROUPS}, the number of norm groups")
        if len(self.multipliers) <= _TIME_LEVELS:
            raise ValueError(f"{len(self.multipliers)} levels given, more than {_TIME_LEVELS} are needed")

    @property
    def patch_px(self) -> int:
        """Pixels per latent row and column."""
        return 1 << (len(self.multipliers) - 1)


class VAE(nn.Module):
    """Encoder and decoder; latents are in the renderer's scale. Each direction of a video has a state of its own."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (config.latent_channels, config.width, config.multipliers, config.blocks, _TIME_LEVELS)
        self.encoder = VAEEncoder(*sizes)
        self.decoder = VAEDecoder(*sizes)
        self.channels_last()

    def channels_last(self) -> None:
        """Lays the weights of convolutions out as they are read; to be called again when weights were replaced."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                form = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
                module.weight.data = module.weight.data.contiguous(memory_format=form)

    frames_per_latent = FRAMES_PER_LATENT
    slice_lengths = staticmethod(slice_lengths)

    @staticmethod
    def new_state() -> CausalState:
        """The state of one direction of a video that has not begun."""
        return CausalState()

    @staticmethod
    def begin_chunk(state: CausalState) -> None:
        """Chunks are decoded as one run of latents."""

    @staticmethod
    def show(state: CausalState, frame: Tensor) -> None:
        """Frames follow from latents alone."""

    @staticmethod
    def check_state(state: CausalState, height: int, width: int) -> None:
        """What each layer keeps is as large as what it is given; one that is not fails in its layer."""

    def decode(self, latents: Tensor, state: CausalState) -> Tensor:
        """Frames of the next latents, one slice or several.

        Args:
            latents: [B, T, C, h, w]; T odd at the start of a video, even later.
            state: what the call before left; changed in place.

        Returns:
            [B, F, 3, H, W] about -1..1, not clamped; F = 1 + 4 (T - 1) at the start of a video, else 4 T.
        """
        return torch.cat(list(self.decode_slices(latents, state)), dim=1)

    def decode_slices(self, latents: Tensor, state: CausalState) -> Iterator[Tensor]:
        """`decode`, slice by slice: the frames of each as soon as they are there."""
        z = latents.transpose(1, 2) / self.config.latent_scale
        for part in torch.split(z, slice_lengths(latents.shape[1], state.started), dim=2):
            frames: Tensor = self.decoder(part, state)
            yield frames.transpose(1, 2)

    def encode(self, video: Tensor, state: CausalState) -> Tensor:
        """Latents of the next frames: the mean of what the encoder finds likely.

        Args:
            video: [B, F, 3, H, W] in -1..1; F = 9, 17, ... at the start of a video, or 1 or 5 where it ends there;
                8, 16, ... later, or a multiple of 4 where it ends there.
            state: what the call before left; changed in place.

        Returns:
            [B, T, C, h, w].

        Raises:
            ValueError: if F is no such number, or H or W does not divide into latents.
        """
        frames, height, width = video.shape[1], *video.shape[-2:]
        extra = 0 if state.started else 1
        if frames < 1 or (frames - extra) % FRAMES_PER_LATENT:
            raise ValueError(f"{frames} frames are not {extra} + a multiple of {FRAMES_PER_LATENT}: cut the video")
        if height % self.config.patch_px or width % self.config.patch_px:
            raise ValueError(f"{height}x{width} pixels: both must be divisible by {self.config.patch_px}")
        first = min(frames, extra + SLICE_LATENTS * FRAMES_PER_LATENT)
        parts = [video[:, :first], *torch.split(video[:, first:], SLICE_LATENTS * FRAMES_PER_LATENT, dim=1)]
        means = [self.encoder(part.transpose(1, 2), state)[0] for part in parts if part.shape[1]]
        return torch.cat(means, dim=2).transpose(1, 2) * self.config.latent_scale
