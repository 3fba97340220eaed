"""The last layers of the diffusion transformer as published: tokens -> latents; and the inputs of all heads.

Shapes: `B` batch, `T` new latent frames, `C` latent channels, `H` x `W` latent size, `h` x `w` the token grid,
`D` width, `P` patch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from engine.perceptual.timesteps import TimestepCache
from engine.runtime.layers import autocast_dtype
from kernels.modulation import fold_modulation, layernorm_modulate


@dataclass(frozen=True, slots=True)
class HeadCache:
    """A head's part of a window that stays the same over its denoising steps."""

    hidden: Tensor  # [B, T, D, H, W]
    sketch: Tensor | None  # [B, T, C + 1, H, W] of the details, its opacity last, if the condition has any


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """New frames, beside their tokens."""

    noisy: Tensor  # [B, T, C, H, W]
    cache: HeadCache | None  # where the head makes one
    last_context: Tensor | None  # [B, C, H, W] the frame before the first, where there is one


class FinalNorm(nn.Module):
    """Layer norm, modulated by the time embedding; its shift and scale come in that order (REFERENCE 3.2 point 5)."""

    def __init__(self, hidden: int, time_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.modulation = nn.Linear(time_dim, 2 * hidden)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, timestep: TimestepCache) -> Tensor:
        """[B, T, h, w, D] -> [B, T, h, w, D]."""
        shift, scale = timestep.modulate(self.modulation)[:, None].chunk(2, dim=-1)
        affine = self.norm.weight, self.norm.bias, shift, scale
        folded = partial(timestep.cached, self.norm, lambda: fold_modulation(*affine))
        tokens = layernorm_modulate(x.flatten(1, 3), *affine, 0, self.norm.eps, autocast_dtype(x), folded)
        return tokens.view(x.shape)


class LinearHead(nn.Module):
    """The published head: one linear layer a patch."""

    def __init__(self, hidden: int, time_dim: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm = FinalNorm(hidden, time_dim)
        self.linear = nn.Linear(hidden, channels * patch * patch)

    def forward(self, x: Tensor, timestep: TimestepCache, inputs: HeadInputs) -> Tensor:
        """[B, T, h, w, D] tokens -> [B, T, C, H, W]; the frames themselves are not looked at."""
        return _unpatchify(self.linear(self.norm(x, timestep)), self.patch)

    @staticmethod
    def precompute(condition: Tensor, last_condition: Tensor | None, last_context: Tensor | None) -> None:
        """The linear head has no step-independent work."""


def _unpatchify(x: Tensor, patch: int) -> Tensor:
    """[B, T, h, w, c P P] -> [B, T, c, h P, w P]."""
    pixels = torch.unflatten(x, -1, (-1, patch, patch)).permute(0, 1, 4, 2, 5, 3, 6)
    return pixels.flatten(5, 6).flatten(3, 4)
