"""Linear layers with weights in 8 bits, either only stored so or also multiplied so.

Stored weights are cast back at use: half the memory of bfloat16, no faster. Products in 8 bits (`LANDIFF_FP8=on`) have
twice the arithmetic on Hopper GPUs; the CPU emulates them in float32. Shapes: `N` rows, `O` outputs, `I` inputs.
"""

from __future__ import annotations

import os
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
SWITCH = "LANDIFF_FP8"  # environment variable: "on" multiplies in 8 bits, which changes the video a little
_LARGEST = 448.0  # number that the type can hold
_MULTIPLE = 16  # of inputs and outputs, for the GPU's product
_IN_BLOCK = re.compile(r"(^|\.)blocks?\.\d+(\.|$)")
# Runs once a step at most, and its output is added everywhere: nothing to gain, much to lose.
_NOT_MULTIPLIED = "modulation"


class Fp8Linear(nn.Module):
    """Replaces a linear layer: the weight is in 8 bits with one scale an output; inputs get one scale a row."""

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """Takes a weight [O, I] of any floating type, and the bias [O] as it is."""
        super().__init__()
        self.multiplies = False  # inputs in 8 bits too
        stored, scale = _to_fp8(weight.float())
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = weight.shape

    @property
    def weight(self) -> Tensor:
        """bfloat16 [O, I], made anew at each use."""
        return self._weight(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], in the type of autocast or of `x`."""
        if self.multiplies:
            return self._multiplied(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self._weight(x.dtype), bias)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        return self.get_buffer("stored").to(dtype) * self.get_buffer("scale").to(dtype)

    def _multiplied(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        rows, scale = _to_fp8(x.flatten(0, -2).float())
        product = self._product(rows, scale, dtype)
        if self.bias is not None:
            product = product + self.bias.to(dtype)
        return product.view(*x.shape[:-1], -1)

    def _product(self, rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, I] in 8 bits with scales [N, 1] -> [N, O]."""
        stored, own = self.get_buffer("stored"), self.get_buffer("scale")
        if rows.is_cuda:
            kind = torch.bfloat16 if dtype == torch.float32 else dtype
            return torch._scaled_mm(rows, stored.T, scale_a=scale, scale_b=own.T, out_dtype=kind).to(dtype)
        with torch.autocast(rows.device.type, enabled=False):
            return ((rows.float() @ stored.float().T) * scale * own.T).to(dtype)


def _to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 [N, I] -> the same in 8 bits, and the scale [N, 1] of each row."""
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
    return (rows / scale).to(FP8), scale


def fp8_names(module: nn.Module) -> list[str]:
    """Weights that may be in 8 bits: the linear layers of numbered blocks, which are nearly all of a network."""
    return [
        f"{name}.weight"
        for name, part in module.named_modules()
        if isinstance(part, (nn.Linear, Fp8Linear)) and _IN_BLOCK.search(name)
    ]


def place_fp8(module: nn.Module, name: str, weight: Tensor) -> Fp8Linear:
    """Replaces the linear layer with the weight `name` by one that stores `weight` in 8 bits.

    The bias stays the layer's own, which may be on the meta device and placed later.
    """
    owner = name.removesuffix(".weight")
    layer = module.get_submodule(owner)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{owner} is a {type(layer).__name__}; only linear layers are stored in 8 bits")
    made = Fp8Linear(weight, layer.bias)
    module.set_submodule(owner, made)
    return made


def store_fp8(module: nn.Module) -> None:
    """Stores a filled module's blocks in 8 bits, layer by layer."""
    for name in fp8_names(module):
        place_fp8(module, name, module.get_parameter(name).detach())


def multiply_fp8(module: nn.Module) -> list[str]:
    """Makes the layers of a filled module's blocks multiply in 8 bits, modulations excepted; returns their weights."""
    names = []
    for name in fp8_names(module):
        owner = name.removesuffix(".weight")
        layer = module.get_submodule(owner)
        assert isinstance(layer, (nn.Linear, Fp8Linear)), "`fp8_names` names no other"
        if owner.endswith(_NOT_MULTIPLIED) or layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE:
            continue
        if isinstance(layer, nn.Linear):
            layer = place_fp8(module, name, layer.weight.detach())
        layer.multiplies = True
        names.append(name)
    return names


def multiplies_fp8(device: torch.device) -> bool:
    """Whether `LANDIFF_FP8` asks for products in 8 bits.

    Raises:
        ValueError: if it does and the device has none, or it is neither "on" nor "off".
    """
    word = os.environ.get(SWITCH, "off")
    if word not in ("on", "off"):
        raise ValueError(f"{SWITCH}={word!r} is neither 'on' nor 'off'")
    if word == "on" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise ValueError(f"{SWITCH}=on needs a GPU that multiplies in 8 bits (Ada, Hopper or later), not {device}")
    return word == "on"
