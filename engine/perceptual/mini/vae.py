"""The causal autoencoder of preset `mini`: 2-D convolutions with temporal memory around a linear map.

One latent stands for four frames (the very first for one, which is packed four times). The linear map is a PCA of
8x8-pixel, four-frame patches; a small network adds what the linear map misses and sees, at each level, the features
of the latent before. Nothing runs per frame or at full resolution, so it is fast on a CPU.
Shapes: `B` batch, `T` latents, `F` frames, `C` latent channels, `H` x `W` pixels, `h` x `w` = H/8 x W/8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.perceptual.base import FRAMES_PER_LATENT, slice_lengths
from engine.runtime.packed_weights import silu_of, sum_of

PATCH_PX = 8


@dataclass(frozen=True, slots=True)
class TinyVAEConfig:
    """Sizes. `residual_scale` multiplies the network's output, so that training starts at the linear map.

    `smoothing`, in pixels' range of 2: where pictures change by no more than this as a new latent begins, the change is
    spread over its four frames. Without it flaws of latents that stand for a still picture pulse twice a second.
    `seam_smoothing` is the same where a chunk begins: its latents were rendered apart from those before.
    `given_smoothing` is what of the difference to a picture that the video goes on from fades away in the first chunk,
    by `fading` a latent: the autoencoder and the renderer have a look of their own.
    """

    latent_channels: int = 24
    encoder_width_8: int = 128  # at 1/8 of the picture's size
    encoder_width_4: int = 64  # at 1/4
    decoder_width_8: int = 192
    decoder_width_4: int = 128
    blocks_8: int = 2
    blocks_4: int = 3
    residual_scale: float = 0.1
    smoothing: float = 0.15
    seam_smoothing: float = 0.3
    given_smoothing: float = 0.04
    fading: float = 0.65

    def __post_init__(self) -> None:
        if self.latent_channels > self.patch_values:
            raise ValueError(f"{self.latent_channels} latent channels, but a patch has {self.patch_values} values")

    @property
    def patch_values(self) -> int:
        return FRAMES_PER_LATENT * 3 * PATCH_PX * PATCH_PX


@dataclass(slots=True)
class TinyVAEState:
    """The features of the last latent at each level, and the last frame; None before the first. Constant in size.

    A state that has `started` without them is of a running video of which nothing before is known.
    """

    level_8: Tensor | None = None  # [B, width at 1/8, h, w]
    level_4: Tensor | None = None  # [B, width at 1/4, 2h, 2w]
    frame: Tensor | None = None  # [B, 3, H, W] float32, of a decoder
    started: bool = False
    seam: bool = False  # the next latent to decode begins a chunk
    # What is still kept of the difference to a picture that was given, [B, 3, H, W] float32; None without one.
    offset: Tensor | None = None
    given: bool = False  # the last frame is such a picture


class TinyVAEBlock(nn.Module):
    """Two 3x3 convolutions around SiLU, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, h, w] -> the same shape."""
        return sum_of(x, self.second, silu_of(self.first, nnf.silu(x)))


class TinyVAELevel(nn.Module):
    """Blocks at one resolution; the first sees the features of the latent before."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.memory = nn.Conv2d(width, width, 3, padding=1)
        self.blocks = nn.ModuleList(TinyVAEBlock(width) for _ in range(blocks))

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, T, width, h, w] and the last features of the call before -> the same shape, and this call's last."""
        if before is None:
            before = torch.zeros_like(x[:, 0])
        shifted = torch.cat([before.to(x.dtype).unsqueeze(1), x[:, :-1]], dim=1)
        last = x[:, -1]
        batch = x.shape[:2]
        hidden = sum_of(x.flatten(0, 1), self.memory, shifted.flatten(0, 1))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.unflatten(0, batch), last


class TinyVAE(nn.Module):
    """Encoder and decoder. Latents are in the renderer's scale: the linear map's, times `latent_scale` per channel."""

    basis: Tensor
    mean: Tensor
    latent_scale: Tensor

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        c, packed_4 = config.latent_channels, FRAMES_PER_LATENT * 3 * 16
        self.register_buffer("basis", torch.zeros(c, config.patch_values))
        self.register_buffer("mean", torch.zeros(config.patch_values))
        self.register_buffer("latent_scale", torch.ones(c))
        w8, w4 = config.encoder_width_8, config.encoder_width_4
        self.encode_in = nn.Conv2d(packed_4, w4, 3, padding=1)
        self.encode_4 = TinyVAELevel(w4, config.blocks_4 - 1)
        self.encode_down = nn.Conv2d(4 * w4, w8, 1)
        self.encode_8 = TinyVAELevel(w8, config.blocks_8)
        self.encode_out = nn.Conv2d(w8, c, 3, padding=1)
        w8, w4 = config.decoder_width_8, config.decoder_width_4
        self.decode_in = nn.Conv2d(c, w8, 3, padding=1)
        self.decode_8 = TinyVAELevel(w8, config.blocks_8)
        self.decode_up = nn.Conv2d(w8, 4 * w4, 1)
        self.decode_4 = TinyVAELevel(w4, config.blocks_4)
        self.decode_out = nn.Conv2d(w4, packed_4, 3, padding=1)
        for parameter in (*self.encode_out.parameters(), *self.decode_out.parameters()):
            nn.init.zeros_(parameter)

    frames_per_latent = FRAMES_PER_LATENT
    slice_lengths = staticmethod(slice_lengths)

    @staticmethod
    def new_state() -> TinyVAEState:
        """The state of one direction of a video that has not begun."""
        return TinyVAEState()

    @staticmethod
    def begin_chunk(state: TinyVAEState) -> None:
        """The next latent to decode is the first of a chunk."""
        state.seam = True
        if not state.given:
            state.offset = None
        state.given = False

    @staticmethod
    def show(state: TinyVAEState, frame: Tensor) -> None:
        """What is on air before the next latent to decode is this frame [B, 3, H, W] in -1..1, and not its own."""
        state.frame, state.offset, state.given = frame.float(), torch.zeros_like(frame, dtype=torch.float32), True

    def check_state(self, state: TinyVAEState, height: int, width: int) -> None:
        """Raises ValueError unless a decoder's state that was stored fits latents of `height` x `width`."""
        w8, w4, pixels = self.config.decoder_width_8, self.config.decoder_width_4, (height * PATCH_PX, width * PATCH_PX)
        sizes = {
            "level_8": (1, w8, height, width), "level_4": (1, w4, 2 * height, 2 * width),
            "frame": (1, 3, *pixels), "offset": (1, 3, *pixels),
        }  # fmt: skip
        for name, size in sizes.items():
            check_tensor(name, getattr(state, name), size)
        if not all(isinstance(flag, bool) for flag in (state.started, state.seam, state.given)):
            raise ValueError("the autoencoder's state has no flags")

    def encode(self, video: Tensor, state: TinyVAEState) -> Tensor:
        """Latents of the next frames.

        Args:
            video: [B, F, 3, H, W] in -1..1; F = 1 + 4 (T - 1) at the start of a video, else 4 T.
            state: what the call before left; changed in place.

        Returns:
            [B, T, C, h, w].

        Raises:
            ValueError: if F is no such number, or H or W is not divisible by 8.
        """
        frames, height, width = video.shape[1], *video.shape[-2:]
        extra = 0 if state.started else 1
        if frames < 1 or (frames - extra) % FRAMES_PER_LATENT:
            raise ValueError(f"{frames} frames are not {extra} + a multiple of {FRAMES_PER_LATENT}: cut the video")
        if height % PATCH_PX or width % PATCH_PX:
            raise ValueError(f"{height}x{width} pixels: both must be divisible by {PATCH_PX}")
        if extra:
            video = torch.cat([video[:, :1].expand(-1, FRAMES_PER_LATENT - 1, -1, -1, -1), video], dim=1)
        packed = video.unflatten(1, (-1, FRAMES_PER_LATENT)).flatten(2, 3)  # [B, T, 12, H, W]
        batch = packed.shape[:2]
        patches = nnf.pixel_unshuffle(packed.flatten(0, 1), PATCH_PX) - self.mean[:, None, None]
        linear = torch.einsum("cp,nphw->nchw", self.basis, patches).unflatten(0, batch)
        hidden = self.encode_in(nnf.pixel_unshuffle(packed.flatten(0, 1), 4)).unflatten(0, batch)
        hidden, state.level_4 = self.encode_4(hidden, state.level_4)
        hidden = self.encode_down(nnf.pixel_unshuffle(hidden.flatten(0, 1), 2)).unflatten(0, batch)
        hidden, state.level_8 = self.encode_8(hidden, state.level_8)
        state.started = True
        added = self.encode_out(nnf.silu(hidden.flatten(0, 1))).unflatten(0, batch)
        latents: Tensor = (linear + self.config.residual_scale * added) * self.latent_scale[:, None, None]
        return latents

    def decode(self, latents: Tensor, state: TinyVAEState) -> Tensor:
        """Frames of the next latents.

        Args:
            latents: [B, T, C, h, w].
            state: what the call before left; changed in place.

        Returns:
            [B, F, 3, H, W] float32, about -1..1, not clamped; F = 1 + 4 (T - 1) at the start of a video, else 4 T.
        """
        first = not state.started
        frames, _ = self.draw(latents, state)
        video = self.smooth(frames, state).flatten(1, 2)
        return video[:, FRAMES_PER_LATENT - 1 :] if first else video

    def draw(self, latents: Tensor, state: TinyVAEState) -> tuple[Tensor, Tensor]:
        """Frames [B, T, 4, 3, H, W] float32 of the next latents before they are smoothed, and the features that they
        are made of, [B, T, width at 1/4, 2h, 2w]; arguments as for `decode`."""
        batch = latents.shape[:2]
        z = (latents / self.latent_scale[:, None, None]).flatten(0, 1)
        # Patches last, so that a row of pixels is together when it is put in its place. In float32, whatever computes
        # around it: it is next to nothing, and its answer is needed so.
        with torch.autocast(z.device.type, enabled=False):
            linear = nnf.linear(z.movedim(1, -1).float(), self.basis.t(), self.mean)
        patches = linear.unflatten(-1, (-1, PATCH_PX, PATCH_PX)).permute(0, 3, 1, 4, 2, 5)
        hidden = self.decode_in(z).unflatten(0, batch)
        hidden, state.level_8 = self.decode_8(hidden, state.level_8)
        hidden = nnf.pixel_shuffle(self.decode_up(hidden.flatten(0, 1)), 2).unflatten(0, batch)
        hidden, state.level_4 = self.decode_4(hidden, state.level_4)
        features = nnf.silu(hidden)
        added = nnf.pixel_shuffle(self.decode_out(features.flatten(0, 1)), 4)
        packed = patches.flatten(4).flatten(2, 3).add_(self.config.residual_scale * added)
        state.started = True
        return packed.unflatten(0, batch).unflatten(2, (FRAMES_PER_LATENT, 3)).float(), features

    def smooth(self, frames: Tensor, state: TinyVAEState) -> Tensor:
        """[B, T, 4, 3, H, W] -> the same shape: y_k = x_k - (3 - k) / 4 clamp(x_0 - y of the frame before)."""
        weights = torch.arange(FRAMES_PER_LATENT - 1, -1, -1, device=frames.device) / FRAMES_PER_LATENT
        smooth = []
        for latent in frames.unbind(1):
            if state.offset is not None and state.frame is not None:
                latent = self._fade(latent, state.frame, state)
            if state.frame is not None:
                most = self.config.seam_smoothing if state.seam else self.config.smoothing
                jump = (latent[:, 0] - state.frame).clamp(-most, most)
                latent = latent - weights[:, None, None, None] * jump[:, None]
            # Of its own: a view would keep the whole slice.
            state.frame, state.seam = latent[:, -1].clone(), False
            smooth.append(latent)
        return torch.stack(smooth, dim=1)

    def _fade(self, latent: Tensor, before: Tensor, state: TinyVAEState) -> Tensor:
        """[B, 4, 3, H, W] -> the same shape: nearer to the picture that was given, which counts less and less."""
        most, left = self.config.given_smoothing, self.config.fading
        offset = (latent[:, 0] - before).clamp(-most, most) if state.seam else state.offset
        assert offset is not None, "a picture was given"
        state.offset = left * offset
        shares = 1 - (1 - left) * torch.arange(1, FRAMES_PER_LATENT + 1, device=latent.device) / FRAMES_PER_LATENT
        return latent - shares[:, None, None, None] * offset[:, None]


def check_tensor(name: str, value: Any, size: tuple[int, ...]) -> None:
    """Raises ValueError unless a part of a state that was stored is None or a tensor of that size."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.shape != size or not value.is_floating_point():
        raise ValueError(f"the autoencoder's {name} is no tensor of size {list(size)}")
