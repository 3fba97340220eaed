"""Large pictures of preset `mini`: twice as wide and high, and twice as many frames, of the same latents.

`TinyVAE` draws four small frames of a latent. The `Enlarger` reads these as they were shown, the one before them and
the features that they are made of. What it adds to them, enlarged and with blends between them, makes eight large
frames: edges are sharp, and between two small frames subjects are half way.
Shapes: `B` batch, `T` latents, `N` = B T, `F` large frames, `C` latent channels, `h` x `w` latent size, `H` x `W`
pixels of a small picture (H = 8 h).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.perceptual.base import FRAMES_PER_LATENT, slice_lengths
from engine.perceptual.mini.vae import TinyVAE, TinyVAEBlock, TinyVAEState

SCALE = 2  # of width, height and frame rate
LARGE_FRAMES = SCALE * FRAMES_PER_LATENT  # a latent
_CELL_PX = 2  # small pixels of a point of the network's grid, each way


@dataclass(frozen=True, slots=True)
class EnlargerConfig:
    """Sizes. `residual_scale` multiplies the network's output, so that training starts at enlarged small frames."""

    width: int = 96  # at half the small picture's size
    blocks: int = 3
    residual_scale: float = 0.1


class Enlarger(nn.Module):
    """Small frames and their features to large frames, one latent at a time."""

    def __init__(self, config: EnlargerConfig, feature_width: int) -> None:
        """`feature_width`: of the features of `TinyVAE.draw`."""
        super().__init__()
        self.config = config
        width, seen = config.width, 3 * (FRAMES_PER_LATENT + 1) * _CELL_PX**2
        self.read_features = nn.Conv2d(feature_width, 4 * width, 3, padding=1)
        self.read_frames = nn.Conv2d(seen, width, 3, padding=1)
        self.blocks = nn.ModuleList(TinyVAEBlock(width) for _ in range(config.blocks))
        self.out = nn.Conv2d(width, 3 * LARGE_FRAMES * (SCALE * _CELL_PX) ** 2, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, frames: Tensor, features: Tensor) -> Tensor:
        """Large frames.

        Args:
            frames: [N, 5, 3, H, W] float32, the last small frame of the latent before and four of this one.
            features: [N, feature_width, 2h, 2w] of this latent.

        Returns:
            [N, 8, 3, 2H, 2W] float32; the last is of the time of the last small frame.
        """
        seen = nnf.pixel_unshuffle(frames.flatten(1, 2), _CELL_PX)
        hidden = nnf.pixel_shuffle(self.read_features(features), 2) + self.read_frames(seen)
        for block in self.blocks:
            hidden = block(hidden)
        added = nnf.pixel_shuffle(self.out(nnf.silu(hidden)), SCALE * _CELL_PX).float()
        return enlarged(frames).add(added.unflatten(1, (LARGE_FRAMES, 3)), alpha=self.config.residual_scale)


def enlarged(frames: Tensor) -> Tensor:
    """[N, 5, 3, H, W], the frame before and four of a latent -> [N, 8, 3, 2H, 2W]: blends at odd places."""
    large = nnf.interpolate(frames.flatten(1, 2), scale_factor=SCALE, mode="bilinear").unflatten(1, (-1, 3))
    between = torch.lerp(large[:, :-1], large[:, 1:], 0.5)
    return torch.stack([between, large[:, 1:]], dim=2).flatten(1, 2)


class LargeVAE(nn.Module):
    """Latents of `TinyVAE` and large frames, as an `Autoencoder`; its states are those of `TinyVAE`."""

    frames_per_latent = LARGE_FRAMES
    slice_lengths = staticmethod(slice_lengths)
    new_state = staticmethod(TinyVAE.new_state)
    begin_chunk = staticmethod(TinyVAE.begin_chunk)

    def __init__(self, vae: TinyVAE, enlarger: Enlarger) -> None:
        super().__init__()
        self.vae, self.enlarger = vae, enlarger

    def show(self, state: TinyVAEState, frame: Tensor) -> None:
        """What is on air before the next latent to decode is this frame [B, 3, 2H, 2W] in -1..1, and not its own."""
        self.vae.show(state, nnf.avg_pool2d(frame.float(), SCALE))

    def check_state(self, state: TinyVAEState, height: int, width: int) -> None:
        """Raises ValueError unless a decoder's state that was stored fits latents of `height` x `width`."""
        self.vae.check_state(state, height, width)

    def encode(self, video: Tensor, state: TinyVAEState) -> Tensor:
        """Latents [B, T, C, h, w] of the next frames [B, F, 3, 2H, 2W] in -1..1, of which every second one counts.

        F = 1 + 8 (T - 1) at the start of a video, else 8 T. Raises ValueError if it is no such number, or for pictures
        that do not fit.
        """
        extra, frames = 0 if state.started else 1, video.shape[1]
        if frames < 1 or (frames - extra) % LARGE_FRAMES or video.shape[-2] % SCALE or video.shape[-1] % SCALE:
            size = "x".join(map(str, video.shape[-2:]))
            raise ValueError(f"{frames} frames of {size} are not {extra} + a multiple of {LARGE_FRAMES}, of even sides")
        small = nnf.avg_pool2d(video[:, 1 - extra :: SCALE].flatten(0, 1), SCALE).unflatten(0, (len(video), -1))
        return self.vae.encode(small, state)

    def decode(self, latents: Tensor, state: TinyVAEState) -> Tensor:
        """Frames of the next latents.

        Args:
            latents: [B, T, C, h, w].
            state: what the call before left; changed in place.

        Returns:
            [B, F, 3, 2H, 2W] float32, about -1..1, not clamped; F = 1 + 8 (T - 1) at the start of a video, else 8 T.
        """
        first = not state.started
        seen, features = small_frames(self.vae, latents, state)
        large = self.enlarger(seen.flatten(0, 1), features.flatten(0, 1))
        video: Tensor = large.unflatten(0, latents.shape[:2]).flatten(1, 2)
        return video[:, LARGE_FRAMES - 1 :] if first else video


def small_frames(vae: TinyVAE, latents: Tensor, state: TinyVAEState) -> tuple[Tensor, Tensor]:
    """What `Enlarger` reads of the next latents [B, T, C, h, w]: frames [B, T, 5, 3, H, W], features as of `draw`.

    A frame of no video before it is the first one.
    """
    before = state.frame
    drawn, features = vae.draw(latents, state)
    frames = vae.smooth(drawn, state)
    start = frames[:, 0, 0] if before is None else before
    last = torch.cat([start.unsqueeze(1), frames[:, :-1, -1]], dim=1)
    return torch.cat([last.unsqueeze(2), frames], dim=2), features
