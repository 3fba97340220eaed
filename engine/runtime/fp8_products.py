"""Linear layers that multiply in 8 bits on Hopper GPUs, which have twice the arithmetic there, and what that costs.

Each row of the input and each output's weights get a scale of their own. Elsewhere the same numbers are multiplied in
float32, so that the error can be told without such a GPU. Shapes: `N` rows, `O` outputs, `I` inputs of a layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.runtime.fp8 import FP8, Fp8Linear, fp8_names

SWITCH = "LANDIFF_FP8"  # environment variable: "on" multiplies in 8 bits, which changes the video a little
_LARGEST = 448.0  # number that the type can hold
_MULTIPLE = 16  # of inputs and outputs, which the product needs
# Runs once a step at most, and what it makes is added everywhere: nothing to gain, much to lose.
_KEPT = "modulation"


class Fp8Product(Fp8Linear):
    """Stands for a linear layer; input and weight are multiplied as they are in 8 bits."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], in the type of autocast or of `x`."""
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        rows = x.flatten(0, -2).float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
        product = self._product((rows / scale).to(FP8), scale, dtype)
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


def wanted(device: torch.device) -> bool:
    """Whether products in 8 bits were ordered.

    Raises:
        ValueError: they were, and the device has none; or the order is no word that is known.
    """
    said = os.environ.get(SWITCH, "off")
    if said not in ("on", "off"):
        raise ValueError(f"{SWITCH}={said!r} is neither 'on' nor 'off'")
    if said == "on" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise ValueError(f"{SWITCH}=on needs a GPU that multiplies in 8 bits (Ada, Hopper or later), not {device}")
    return said == "on"


def layer_names(module: nn.Module) -> list[str]:
    """The linear layers that may multiply in 8 bits: those of blocks, but for modulations."""
    names = (name.removesuffix(".weight") for name in fp8_names(module))
    return [name for name in names if not name.endswith(_KEPT) and _fits(module.get_submodule(name))]


def multiply_in_fp8(module: nn.Module) -> list[str]:
    """Replaces those layers of a filled module; returns their names."""
    names = layer_names(module)
    for name in names:
        module.set_submodule(name, _product_of(module.get_submodule(name)))
    return names


def layer_errors(module: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """What each layer alone would be off in 8 bits, on the inputs that it meets in `run`; the module stays as it is.

    Returns:
        By name, the root mean square of the difference over that of the exact output, worst call.
    """
    errors: dict[str, float] = {}
    with ExitStack() as stack:
        for name in layer_names(module):
            stack.enter_context(_watched(name, module.get_submodule(name), errors))
        run()
    return errors


@contextmanager
def _watched(name: str, layer: nn.Module, errors: dict[str, float]) -> Iterator[None]:
    product = _product_of(layer)

    def compare(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        truth = output.float()
        difference = product(inputs[0]).float() - truth
        error = float(difference.square().mean().sqrt() / truth.square().mean().sqrt().clamp(min=1e-30))
        errors[name] = max(errors.get(name, 0.0), error)

    hook = layer.register_forward_hook(compare)
    try:
        yield
    finally:
        hook.remove()


def _product_of(layer: nn.Module) -> Fp8Product:
    assert isinstance(layer, nn.Linear), "only linear layers are named"
    return Fp8Product(layer.weight.detach(), layer.bias)


def _fits(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and not (layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE)
