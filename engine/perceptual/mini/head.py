"""The last layers of a small diffusion transformer: tokens, frames and condition -> latents, by convolutions.

Shapes: `B` batch, `T` new latent frames, `C` latent channels, `H` x `W` latent size, `h` x `w` the token grid,
`D` width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.perceptual.head import FinalNorm, HeadCache, HeadInputs
from engine.perceptual.timesteps import TimestepCache
from engine.runtime.packed_weights import silu_of, sum_of

# The output must start small: a convolution with some thousand inputs moves its output by about the learning rate
# times their number a step, which is more than the latents' range.
_OUTPUT_SCALE = 0.1


def _joined(*parts: Tensor) -> Tensor:
    """Parts [B, T, H, W, c] side by side -> [B T, C, H, W]; channels stay last in memory, as convolutions like them."""
    return torch.cat([part.contiguous() for part in parts], dim=-1).flatten(0, 1).movedim(-1, 1)


class TimedBlock(nn.Module):
    """Residual block whose inner bias depends on the time; without norms, which cost more than the convolutions."""

    def __init__(self, width: int, time_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shift = nn.Linear(time_dim, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, timestep: TimestepCache) -> Tensor:
        """[B T, width, H, W] -> [B T, width, H, W]."""
        return sum_of(x, self.conv2, silu_of(self.conv1, x, timestep.modulate(self.shift)))


class ConvHead(nn.Module):
    """Convolutions at latent resolution that see, beside the tokens, the frames themselves; predicts clean latents.

    A learned gate copies from the last context frame, which makes still backgrounds free. The details' sketch of
    subjects is laid over all that. Each frame is computed alone.
    """

    def __init__(
        self, hidden: int, time_dim: int, patch: int, channels: int, width: int, blocks: int, details: int = 0
    ) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"head_width {width} is not even, and half of it is the tokens' share")
        self.patch, self.channels = patch, channels
        self.norm = FinalNorm(hidden, time_dim)
        self.linear = nn.Linear(hidden, width // 2 * patch * patch)
        self.conv_in = nn.Conv2d(width // 2 + channels, width, 3, padding=1)
        # Two condition frames, the last context frame, a flag that it is there, and details.
        self.conv_known = nn.Conv2d(3 * channels + 1 + details, width, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(TimedBlock(width, time_dim) for _ in range(blocks))
        self.conv_out = nn.Conv2d(width, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, timestep: TimestepCache, inputs: HeadInputs) -> Tensor:
        """[B, T, h, w, D] tokens -> float32 [B, T, C, H, W]."""
        noisy, cache, last = inputs.noisy, inputs.cache, inputs.last_context
        tokens = self._spread(self.linear(self.norm(x, timestep)))
        hidden = _joined(tokens, noisy.to(tokens.dtype).movedim(2, -1))
        hidden = self.conv_in(hidden) if cache is None else sum_of(cache.hidden.flatten(0, 1), self.conv_in, hidden)
        for block in self.blocks:
            hidden = block(hidden, timestep)
        output = self.conv_out(F.silu(hidden)).to(torch.float32, memory_format=torch.contiguous_format)
        first, gate = output.unflatten(0, noisy.shape[:2]).chunk(2, dim=2)
        clean: Tensor = _OUTPUT_SCALE * first
        if last is not None:
            clean = torch.addcmul(clean, gate.sigmoid(), last[:, None].float())
        if cache is not None and cache.sketch is not None:
            sketch, opacity = cache.sketch.float().tensor_split([self.channels], dim=2)
            clean = torch.addcmul(sketch, clean, 1 - opacity)
        return clean

    def precompute(self, condition: Tensor, last_condition: Tensor | None, last_context: Tensor | None) -> HeadCache:
        """The work that is the same at every step of a window.

        Args:
            condition: [B, T, C and details, H, W] of the new frames.
            last_condition: likewise, [B, C and details, H, W], of the frame before the first, where there is one.
            last_context: [B, C, H, W] the frame before the first, where there is one.
        """
        condition, details = condition.tensor_split([self.channels], dim=2)
        first = torch.zeros_like(condition[:, :1]) if last_condition is None else last_condition[:, None]
        before = torch.cat([first[:, :, : self.channels].to(condition.dtype), condition[:, :-1]], dim=1)
        last = torch.zeros_like(condition) if last_context is None else last_context[:, None].expand_as(condition)
        flag = torch.full_like(condition[:, :, :1], float(last_context is not None))
        parts = [part.movedim(2, -1).to(condition.dtype) for part in (condition, before, last, flag, details)]
        hidden = self.conv_known(_joined(*parts)).unflatten(0, condition.shape[:2])
        return HeadCache(hidden, details[:, :, -self.channels - 1 :] if details.shape[2] else None)

    def _spread(self, x: Tensor) -> Tensor:
        """[B, T, h, w, P P width/2] -> [B, T, H, W, width/2]."""
        pixels: Tensor = x.unflatten(-1, (self.patch, self.patch, -1)).transpose(3, 4)
        return pixels.flatten(4, 5).flatten(2, 3)
