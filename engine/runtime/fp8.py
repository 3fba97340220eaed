"""Linear layers that keep their weight in 8 bits and cast it at use: half the memory of bfloat16, no faster.

Shapes: `O` outputs, `I` inputs of a layer.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0  # number that the type can hold
_IN_BLOCK = re.compile(r"(^|\.)blocks?\.\d+(\.|$)")


class Fp8Linear(nn.Module):
    """Stands for a linear layer; its weight is stored with one scale an output."""

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """Takes a weight [O, I] of any floating type, and the bias [O] as it is."""
        super().__init__()
        wide = weight.float()
        scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
        self.register_buffer("stored", (wide / scale).to(FP8))
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = weight.shape

    @property
    def weight(self) -> Tensor:
        """bfloat16 [O, I], made anew at each use."""
        return self._weight(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], in the type of `x` or of autocast."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self._weight(x.dtype), bias)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        stored, scale = self.get_buffer("stored"), self.get_buffer("scale")
        return stored.to(dtype) * scale.to(dtype)


def fp8_names(module: nn.Module) -> list[str]:
    """Weights that may be stored in 8 bits: the linear layers of numbered blocks, which are nearly all of a network."""
    return [
        f"{name}.weight"
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and _IN_BLOCK.search(name)
    ]


def place_fp8(module: nn.Module, name: str, weight: Tensor) -> None:
    """Replaces the linear layer whose weight `name` is by one that stores this weight in 8 bits.

    The bias stays the layer's own, which may be on the meta device and placed later.
    """
    owner = name.removesuffix(".weight")
    layer = module.get_submodule(owner)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{owner} is a {type(layer).__name__}; only linear layers are stored in 8 bits")
    module.set_submodule(owner, Fp8Linear(weight, layer.bias))


def store_fp8(module: nn.Module) -> float:
    """Stores a filled module's blocks in 8 bits, layer by layer.

    Returns:
        The error of the stored weights: root mean square of the difference over that of the weights.
    """
    lost, whole = 0.0, 0.0
    for name in fp8_names(module):
        weight = module.get_parameter(name).detach()
        place_fp8(module, name, weight)
        stored = module.get_submodule(name.removesuffix(".weight"))
        assert isinstance(stored, Fp8Linear)
        lost += float((stored.weight.float() - weight.float()).square().sum())
        whole += float(weight.float().square().sum())
    return (lost / whole) ** 0.5 if whole else 0.0
