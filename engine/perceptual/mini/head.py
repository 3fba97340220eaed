"""The last layers of the diffusion transformer: tokens -> latents.

Shapes: `B` batch, `T` new latent frames, `C` latent channels, `H` x `W` latent size, `h` x `w` the token grid,
`D` width, `Z` time embedding width, `P` patch size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.perceptual.timesteps import Times
from engine.runtime.layers import product_dtype
from engine.runtime.packed_weights import silu_of, sum_of
from kernels.modulation import layernorm_modulate
from kernels.tools.launch import fuses

# The output must start small: a convolution with some thousand inputs moves its output by about the learning rate
# times their number a step, which is more than the latents' range.
_OUTPUT_SCALE = 0.1


@dataclass(frozen=True, slots=True)
class Known:
    """What a head made of all that stays the same over a window's steps."""

    hidden: Tensor  # [B, T, D, H, W]
    sketch: Tensor | None  # [B, T, C + 1, H, W] of the details, its opacity last, if the condition has any


@dataclass(frozen=True, slots=True)
class Frames:
    """New frames and what is known beside them."""

    noisy: Tensor  # [B, T, C, H, W]
    known: Known | None  # where the head makes any
    last_prompt: Tensor | None  # [B, C, H, W] the frame before the first, where there is one


def _unpatchify(x: Tensor, patch: int) -> Tensor:
    """[B, T, h, w, c P P] -> [B, T, c, h P, w P]."""
    pixels = torch.unflatten(x, -1, (-1, patch, patch)).permute(0, 1, 4, 2, 5, 3, 6)
    return pixels.flatten(5, 6).flatten(3, 4)


class _FinalNorm(nn.Module):
    """Layer norm, modulated by the time embedding; its shift and scale come in that order (FACTS 3.2 point 5)."""

    def __init__(self, hidden: int, time_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.modulation = nn.Linear(time_dim, 2 * hidden)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Times) -> Tensor:
        """[B, T, h, w, D] and times [B, Z] -> [B, T, h, w, D]."""
        if fuses(x):
            # Every token is an image token here: one row of modulation stands for both kinds.
            shift, scale = time.through(self.modulation)[:, None].expand(-1, 2, -1).chunk(2, dim=-1)
            weight, bias = self.norm.weight, self.norm.bias
            tokens = layernorm_modulate(x.flatten(1, 3), weight, bias, shift, scale, 0, self.norm.eps, product_dtype(x))
            return tokens.view(x.shape)
        shift, scale = time.through(self.modulation).chunk(2, dim=-1)
        if len(x) == 1:
            # Of one row, scale and shift can be the norm's own, which spares two passes.
            affine = time.kept(self.norm, lambda: self._affine(shift[0], scale[0]))
            return F.layer_norm(x, x.shape[-1:], *affine, self.norm.eps)
        shift, scale = (part[:, None, None, None] for part in (shift, scale))
        output: Tensor = self.norm(x) * (1 + scale) + shift
        return output

    def _affine(self, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias [D] that norm, scale and shift have together."""
        factor = 1 + scale.float()
        return self.norm.weight * factor, self.norm.bias * factor + shift


def _joined(*parts: Tensor) -> Tensor:
    """Parts [B, T, H, W, c] side by side -> [B T, C, H, W]; channels stay last in memory, as convolutions like them."""
    return torch.cat([part.contiguous() for part in parts], dim=-1).flatten(0, 1).movedim(-1, 1)


class LinearHead(nn.Module):
    """The published head: one linear layer a patch."""

    def __init__(self, hidden: int, time_dim: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm = _FinalNorm(hidden, time_dim)
        self.linear = nn.Linear(hidden, channels * patch * patch)

    def forward(self, x: Tensor, time: Times, frames: Frames) -> Tensor:
        """[B, T, h, w, D] tokens and times [B, Z] -> [B, T, C, H, W]; the frames themselves are not looked at."""
        return _unpatchify(self.linear(self.norm(x, time)), self.patch)

    @staticmethod
    def know(condition: Tensor, last_condition: Tensor | None, last_prompt: Tensor | None) -> None:
        """Nothing: it sees tokens alone."""


class _TimedBlock(nn.Module):
    """Residual block whose inner bias depends on the time; without norms, which cost more than the convolutions."""

    def __init__(self, width: int, time_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shift = nn.Linear(time_dim, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, time: Times) -> Tensor:
        """[B T, width, H, W] and times [B, Z] -> [B T, width, H, W]."""
        return sum_of(x, self.conv2, silu_of(self.conv1, x, time.through(self.shift)))


class ConvHead(nn.Module):
    """Convolutions at latent resolution that see, beside the tokens, the frames themselves; predicts clean latents.

    A learned gate copies from the last prompt frame, which makes still backgrounds free. The details' sketch of
    subjects is laid over all that. Each frame is computed alone.
    """

    def __init__(
        self, hidden: int, time_dim: int, patch: int, channels: int, width: int, blocks: int, details: int = 0
    ) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"head_width {width} is not even, and half of it is the tokens' share")
        self.patch, self.channels = patch, channels
        self.norm = _FinalNorm(hidden, time_dim)
        self.linear = nn.Linear(hidden, width // 2 * patch * patch)
        self.conv_in = nn.Conv2d(width // 2 + channels, width, 3, padding=1)
        # Two condition frames, the last prompt frame, a flag that it is there, and details.
        self.conv_known = nn.Conv2d(3 * channels + 1 + details, width, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(_TimedBlock(width, time_dim) for _ in range(blocks))
        self.conv_out = nn.Conv2d(width, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, time: Times, frames: Frames) -> Tensor:
        """[B, T, h, w, D] tokens and times [B, Z] -> float32 [B, T, C, H, W]."""
        noisy, last = frames.noisy, frames.last_prompt
        tokens = self._spread(self.linear(self.norm(x, time)))
        hidden = _joined(tokens, noisy.to(tokens.dtype).movedim(2, -1))
        if frames.known is None:
            hidden = self.conv_in(hidden)
        else:
            hidden = sum_of(frames.known.hidden.flatten(0, 1), self.conv_in, hidden)
        for block in self.blocks:
            hidden = block(hidden, time)
        output = self.conv_out(F.silu(hidden)).to(torch.float32, memory_format=torch.contiguous_format)
        first, gate = output.unflatten(0, noisy.shape[:2]).chunk(2, dim=2)
        clean: Tensor = _OUTPUT_SCALE * first
        if last is not None:
            clean = torch.addcmul(clean, gate.sigmoid(), last[:, None].float())
        if frames.known is not None and frames.known.sketch is not None:
            sketch, opacity = frames.known.sketch.float().tensor_split([self.channels], dim=2)
            clean = torch.addcmul(sketch, clean, 1 - opacity)
        return clean

    def know(self, condition: Tensor, last_condition: Tensor | None, last_prompt: Tensor | None) -> Known:
        """What stays the same over the steps of a window.

        Args:
            condition: [B, T, C and details, H, W] of the new frames.
            last_condition: likewise, [B, C and details, H, W], of the frame before the first, where there is one.
            last_prompt: [B, C, H, W] the frame before the first, where there is one.
        """
        condition, details = condition.tensor_split([self.channels], dim=2)
        first = torch.zeros_like(condition[:, :1]) if last_condition is None else last_condition[:, None]
        before = torch.cat([first[:, :, : self.channels].to(condition.dtype), condition[:, :-1]], dim=1)
        last = torch.zeros_like(condition) if last_prompt is None else last_prompt[:, None].expand_as(condition)
        flag = torch.full_like(condition[:, :, :1], float(last_prompt is not None))
        parts = [part.movedim(2, -1).to(condition.dtype) for part in (condition, before, last, flag, details)]
        hidden = self.conv_known(_joined(*parts)).unflatten(0, condition.shape[:2])
        return Known(hidden, details[:, :, -self.channels - 1 :] if details.shape[2] else None)

    def _spread(self, x: Tensor) -> Tensor:
        """[B, T, h, w, P P width/2] -> [B, T, H, W, width/2]."""
        pixels: Tensor = x.unflatten(-1, (self.patch, self.patch, -1)).transpose(3, 4)
        return pixels.flatten(4, 5).flatten(2, 3)
