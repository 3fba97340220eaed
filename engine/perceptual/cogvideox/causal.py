"""Convolutions over time that only look back, and the memory that carries them from one call to the next.

Shapes: `B` batch, `C` channels, `T` frames (of any rate), `H` x `W` size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kernels.spatial_norm import silu_into

_KERNEL = 3  # in time, height and width
_TAIL = _KERNEL - 1  # frames that a call leaves for the next one


@dataclass(frozen=True, slots=True)
class CausalState:
    """The last frames that each convolution of one network has seen; as large after a day as after one call.

    Owned by the video that is being coded. Tensors are made at the first call and changed in place afterwards.
    """

    tails: dict[int, Tensor] = field(default_factory=dict)  # of each convolution, [B, C, 2, H, W]

    @property
    def started(self) -> bool:
        return bool(self.tails)


class CausalConv(nn.Conv3d):
    """3x3x3 convolution; before the first frame stands that frame itself (REFERENCE 4.2).

    Channels are last in memory. The frames of a call lie behind those that the call before left, so that whoever makes
    them can write them there at once: `room`, then `over`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, _KERNEL, padding=(0, _KERNEL // 2, _KERNEL // 2))
        self.slot = 0

    def forward(self, x: Tensor, state: CausalState) -> Tensor:  # type: ignore[override]
        """[B, inputs, T, H, W] -> [B, outputs, T, H, W]."""
        room = self.room(x)
        room[:, :, _TAIL:] = x
        return self.over(room, state)

    @staticmethod
    def room(x: Tensor) -> Tensor:
        """[B, C, 2 + T, H, W], uninitialised: room for frames like x [B, C, T, H, W] and for two before them."""
        batch, channels, frames, height, width = x.shape
        shape = (batch, channels, _TAIL + frames, height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)

    def over(self, room: Tensor, state: CausalState) -> Tensor:
        """`forward` of the frames that lie in a room; fills the rest of it."""
        tail = state.tails.get(self.slot)
        room[:, :, :_TAIL] = room[:, :, _TAIL : _TAIL + 1] if tail is None else tail
        if tail is None:
            state.tails[self.slot] = room[:, :, -_TAIL:].clone()
        else:
            tail.copy_(room[:, :, -_TAIL:])
        return super().forward(room)


def number_convolutions(network: nn.Module) -> None:
    """Gives each causal convolution of a network its own place in that network's `CausalState`."""
    convolutions = [module for module in network.modules() if isinstance(module, CausalConv)]
    for slot, convolution in enumerate(convolutions):
        convolution.slot = slot


class ActivatedNorm(nn.GroupNorm):
    """Group norm, then SiLU."""

    def forward(self, x: Tensor, *, out: Tensor) -> Tensor:  # type: ignore[override]
        """[B, C, ...] -> the same shape, written to `out`."""
        return silu_into(super().forward(x), out)


class CausalResidualBlock(nn.Module):
    """Norm with SiLU and causal convolution, twice, beside a shortcut; `norm` makes the former for some channels."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = CausalConv(inputs, outputs)
        self.norm2 = norm(outputs)
        self.conv2 = CausalConv(outputs, outputs)
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, state: CausalState, *guide: Tensor) -> Tensor:
        """[B, inputs, T, H, W] -> [B, outputs, T, H, W]; `guide` is what the norms take beside x."""
        hidden = normed_conv(self.norm1, self.conv1, x, state, *guide)
        output: Tensor = self.shortcut(x) + normed_conv(self.norm2, self.conv2, hidden, state, *guide)
        return output


def normed_conv(norm: nn.Module, conv: CausalConv, x: Tensor, state: CausalState, *guide: Tensor) -> Tensor:
    """The convolution of the norm's answer, which is written where the convolution reads it."""
    room = conv.room(x)
    norm(x, *guide, out=room[:, :, _TAIL:])
    return conv.over(room, state)


def per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a 2-D layer to every frame: [B, C, T, H, W] -> [B, C', T, H', W']."""
    frames = layer(x.transpose(1, 2).flatten(0, 1))
    return torch.unflatten(frames, 0, (x.shape[0], x.shape[2])).transpose(1, 2)
