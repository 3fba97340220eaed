"""The last layers of the diffusion transformer: tokens -> latents.

Shapes: `B` batch, `T` new latent frames, `C` latent channels, `H` x `W` latent size, `h` x `w` the token grid,
`D` width, `Z` time embedding width, `P` patch size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.layers import product_dtype
from engine.perceptual.times import Times
from kernels.launch import fuses
from kernels.modulation import layernorm_modulate

# The output must start small: a convolution with some thousand inputs moves its output by about the learning rate
# times their number a step, which is more than the latents' range.
_OUTPUT_SCALE = 0.1
_GROUPS = 8  # norm groups of the convolutional head


@dataclass(frozen=True, slots=True)
class Frames:
    """New frames and what is known beside them."""

    noisy: Tensor  # [B, T, C, H, W]
    condition: Tensor  # [B, T, C, H, W] condition latents of the same frames
    last_condition: Tensor | None  # [B, C, H, W] of the frame before the first, where there is one
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
        shift, scale = time.through(self.modulation)[:, None, None, None].chunk(2, dim=-1)
        output: Tensor = self.norm(x) * (1 + scale) + shift
        return output


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


class _FilmBlock(nn.Module):
    """Residual block whose inner norm is scaled and shifted by the time embedding."""

    def __init__(self, width: int, time_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(_GROUPS, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(time_dim, 2 * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, time: Times) -> Tensor:
        """[B T, width, H, W] and times [B T, Z] -> [B T, width, H, W]."""
        scale, shift = time.through(self.film)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        output: Tensor = x + self.conv2(F.silu(hidden))
        return output


class ConvHead(nn.Module):
    """Convolutions at latent resolution that see, beside the tokens, the frames themselves; predicts clean latents.

    A learned gate copies from the last prompt frame, which makes still backgrounds free. Each frame is computed alone.
    """

    def __init__(self, hidden: int, time_dim: int, patch: int, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        if width % _GROUPS:
            raise ValueError(f"head_width {width} is not a multiple of {_GROUPS}, the number of its norm groups")
        self.patch = patch
        self.norm = _FinalNorm(hidden, time_dim)
        self.linear = nn.Linear(hidden, width // 2 * patch * patch)
        # Beside the tokens: the noisy frame, two condition frames, the last prompt frame and a flag that it is there.
        self.conv_in = nn.Conv2d(width // 2 + 4 * channels + 1, width, 3, padding=1)
        self.blocks = nn.ModuleList(_FilmBlock(width, time_dim) for _ in range(blocks))
        self.conv_out = nn.Conv2d(width, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, time: Times, frames: Frames) -> Tensor:
        """[B, T, h, w, D] tokens and times [B, Z] -> [B, T, C, H, W]."""
        noisy, last = frames.noisy, frames.last_prompt
        context = [_unpatchify(self.linear(self.norm(x, time)), self.patch), noisy, frames.condition]
        context += [self._previous_conditions(frames), self._repeated(last, noisy)]
        flag = torch.full_like(noisy[:, :, :1], float(last is not None))
        hidden = self.conv_in(torch.cat([part.to(noisy.dtype) for part in (*context, flag)], dim=2).flatten(0, 1))
        times = time.repeated(noisy.shape[1])
        for block in self.blocks:
            hidden = block(hidden, times)
        clean, gate = self.conv_out(F.silu(hidden)).unflatten(0, noisy.shape[:2]).chunk(2, dim=2)
        output: Tensor = _OUTPUT_SCALE * clean
        return output if last is None else output + gate.sigmoid() * last[:, None]

    @staticmethod
    def _previous_conditions(frames: Frames) -> Tensor:
        """For each new frame the condition of the one before it, zero where there is none."""
        first = frames.last_condition
        first = torch.zeros_like(frames.condition[:, :1]) if first is None else first[:, None]
        return torch.cat([first, frames.condition[:, :-1]], dim=1)

    @staticmethod
    def _repeated(last: Tensor | None, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if last is None else last[:, None].expand_as(like)
