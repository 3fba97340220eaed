"""Which layers of a module compute in another way than torch's, one that suits the processor."""

from __future__ import annotations

import functools

import torch
from torch import nn

from engine.runtime.packed_weights import PackedConv, PackedLinear
from engine.runtime.turned_linear import TurnedLinear
from engine.runtime.winograd import WinogradConv

LARGEST_BYTES = 2**27  # of a module's weights; more would not stay in any cache, and twice as much may not fit


def pack(module: nn.Module, rows: int, seldom: str | tuple[()] = ()) -> None:
    """Puts others in the place of linear layers and convolutions of a module on the CPU: in bf16 packed ones, in
    float32 those that multiply less or share their work better.

    `rows`: of about how many a call of linear layers is. Parts with names that begin with `seldom` stay: copies take
    memory. Does nothing for a module above `LARGEST_BYTES`.
    """
    places = [
        (parent, name, layer)
        for path, parent in module.named_modules()
        for name, layer in parent.named_children()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
        # Not what is packed already.
        and type(layer) in (nn.Linear, nn.Conv2d)
        and layer.weight.device.type == "cpu"
        and not (path or name).startswith(seldom)
    ]
    if sum(layer.weight.nbytes for _, _, layer in places) > LARGEST_BYTES:
        return
    for parent, name, layer in places:
        if layer.weight.dtype == torch.bfloat16 and packs():
            packed = PackedConv.of(layer) if isinstance(layer, nn.Conv2d) else PackedLinear.of(layer, rows)
            setattr(parent, name, packed)
        elif isinstance(layer, nn.Conv2d) and WinogradConv.suits(layer) and has_avx2_alone():
            setattr(parent, name, WinogradConv.of(layer))
        elif isinstance(layer, nn.Linear):
            setattr(parent, name, turned(layer, rows))


def turned(layer: nn.Linear, rows: int) -> nn.Linear:
    """The layer, or, where that is quicker, one that shares its work better in calls of about so many rows."""
    suits = layer.weight.device.type == "cpu" and TurnedLinear.suits(layer, rows)
    return TurnedLinear.of(layer) if suits and has_avx2_alone() else layer


def has_avx2_alone() -> bool:
    """True where other ways to multiply float32 take less time: measured with AVX2 alone (docs/BENCHMARKS.md)."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


@functools.cache
def packs() -> bool:
    """True if packing works here and gives what the plain product gives."""
    try:
        # Asked once, wherever that may be: tensors made in inference mode have no version.
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            layer = nn.Linear(32, 48, dtype=torch.bfloat16)
            x = torch.ones(2, 32, dtype=torch.bfloat16)
            convolution = nn.Conv2d(32, 48, 3, padding=1, dtype=torch.bfloat16)
            pictures = torch.ones(2, 32, 4, 4, dtype=torch.bfloat16)
            return torch.equal(PackedLinear.of(layer, 2)(x), layer(x)) and torch.allclose(
                PackedConv.of(convolution)(pictures), convolution(pictures), atol=0.02
            )
    except (AttributeError, RuntimeError):
        return False
