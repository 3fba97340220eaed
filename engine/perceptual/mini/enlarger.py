"""Large pictures of preset `mini`: twice as wide and high, and twice as many frames, of the same latents.

`TinyVAE` draws four small frames of a latent. The `Enlarger` reads these as they were shown, the one before them, the
features that they are made of, and what it added to the frame before. What it adds to them, enlarged and with blends
between them, makes eight large frames: edges are sharp, between two small frames subjects are half way, and what
stands still goes on looking as it did, also where a chunk begins.
Shapes: `B` batch, `T` latents, `F` large frames, `C` latent channels, `h` x `w` latent size, `H` x `W` pixels of a
small picture (H = 8 h).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.perceptual.base import FRAMES_PER_LATENT, slice_lengths
from engine.perceptual.mini.vae import PATCH_PX, TinyVAE, TinyVAEBlock, TinyVAEState, check_tensor

SCALE = 2  # of width, height and frame rate
LARGE_FRAMES = SCALE * FRAMES_PER_LATENT  # a latent
_SMALL_PX = 2  # of a point of the network's grid, each way
CELL_PX = SCALE * _SMALL_PX  # the same in large pixels


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
        width, seen = config.width, 3 * (FRAMES_PER_LATENT + 1) * _SMALL_PX**2
        self.read_features = nn.Conv2d(feature_width, 4 * width, 3, padding=1)
        self.read_frames = nn.Conv2d(seen, width, 3, padding=1)
        self.read_added = nn.Conv2d(3 * CELL_PX**2, width, 3, padding=1)
        self.blocks = nn.ModuleList(TinyVAEBlock(width) for _ in range(config.blocks))
        self.out = nn.Conv2d(width, 3 * LARGE_FRAMES * CELL_PX**2, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, frames: Tensor, features: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """Large frames of a latent.

        Args:
            frames: [B, 5, 3, H, W] float32, the last small frame of the latent before and four of this one.
            features: [B, feature_width, 2h, 2w] of this latent.
            added: [B, 3, 2H, 2W] float32, to the last large frame of the latent before; see `detail`.

        Returns:
            [B, 8, 3, 2H, 2W] float32, the last of the time of the last small frame; and what was added to that.
        """
        seen = nnf.pixel_unshuffle(frames.flatten(1, 2), _SMALL_PX)
        hidden = nnf.pixel_shuffle(self.read_features(features), 2) + self.read_frames(seen)
        hidden = hidden + self.read_added(nnf.pixel_unshuffle(added, CELL_PX))
        for block in self.blocks:
            hidden = block(hidden)
        new = nnf.pixel_shuffle(self.out(nnf.silu(hidden)), CELL_PX).float().unflatten(1, (LARGE_FRAMES, 3))
        # The last is of its own: a view would keep all of them.
        return enlarged(frames).add(new, alpha=self.config.residual_scale), new[:, -1].clone()

    def detail(self, large: Tensor, small: Tensor) -> Tensor:
        """What is to be added to a small frame [B, 3, H, W] for a large one [B, 3, 2H, 2W], as `forward` counts it."""
        return (large - _larger(small)) / self.config.residual_scale


def enlarged(frames: Tensor) -> Tensor:
    """[B, 5, 3, H, W], the frame before and four of a latent -> [B, 8, 3, 2H, 2W]: blends at odd places."""
    large = _larger(frames.flatten(1, 2)).unflatten(1, (-1, 3))
    between = torch.lerp(large[:, :-1], large[:, 1:], 0.5)
    return torch.stack([between, large[:, 1:]], dim=2).flatten(1, 2)


def _larger(frames: Tensor) -> Tensor:
    return nnf.interpolate(frames, scale_factor=SCALE, mode="bilinear")


def enlarge(enlarger: Enlarger, frames: Tensor, features: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """Large frames [B, 8 T, 3, 2H, 2W] of latents one by one, and what was added to the last of them.

    `frames` [B, T, 5, 3, H, W] and `features` [B, T, width, 2h, 2w] are of `small_frames`, `added` as in `Enlarger`.
    """
    parts = []
    for seen, of_latent in zip(frames.unbind(1), features.unbind(1), strict=True):
        large, added = enlarger(seen, of_latent, added)
        parts.append(large)
    return torch.cat(parts, dim=1), added


@dataclass(slots=True)
class LargeVAEState(TinyVAEState):
    """That of `TinyVAE`, and what was added to the last large frame, [B, 3, 2H, 2W] float32; None before the first."""

    added: Tensor | None = None


class LargeVAE(nn.Module):
    """Latents of `TinyVAE` and large frames, as an `Autoencoder`."""

    frames_per_latent = LARGE_FRAMES
    slice_lengths = staticmethod(slice_lengths)
    begin_chunk = staticmethod(TinyVAE.begin_chunk)

    def __init__(self, vae: TinyVAE, enlarger: Enlarger) -> None:
        super().__init__()
        self.vae, self.enlarger = vae, enlarger

    @staticmethod
    def new_state() -> LargeVAEState:
        """The state of one direction of a video that has not begun."""
        return LargeVAEState()

    def show(self, state: LargeVAEState, frame: Tensor) -> None:
        """What is on air before the next latent to decode is this frame [B, 3, 2H, 2W] in -1..1, and not its own."""
        small = nnf.avg_pool2d(frame.float(), SCALE)
        self.vae.show(state, small)
        state.added = self.enlarger.detail(frame.float(), small)

    def check_state(self, state: LargeVAEState, height: int, width: int) -> None:
        """Raises ValueError unless a decoder's state that was stored fits latents of `height` x `width`."""
        self.vae.check_state(state, height, width)
        check_tensor("added", state.added, (1, 3, SCALE * PATCH_PX * height, SCALE * PATCH_PX * width))

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

    def decode(self, latents: Tensor, state: LargeVAEState) -> Tensor:
        """Frames of the next latents.

        Args:
            latents: [B, T, C, h, w].
            state: what the call before left; changed in place.

        Returns:
            [B, F, 3, 2H, 2W] float32, about -1..1, not clamped; F = 1 + 8 (T - 1) at the start of a video, else 8 T.
        """
        first = not state.started
        seen, features = small_frames(self.vae, latents, state)
        added = state.added
        if added is None:
            added = torch.zeros_like(_larger(seen[:, 0, 0]))
        video, state.added = enlarge(self.enlarger, seen, features, added)
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
