"""Every operation with the shapes at which it is compiled and measured: those of the published model on a GPU (a window
of 13 latent frames at 480x720, one group of the plan), and small odd ones to check arithmetic anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kernels import (
    codebook,
    decode_attention,
    draw,
    gelu,
    guidance,
    headnorm,
    modulation,
    planes,
    reference,
    rmsnorm,
    rotary,
    spatial_norm,
)
from kernels.tools.launch import Bound

Shape = tuple[int, ...]
Make = Callable[[Shape, torch.device, torch.dtype], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Case:
    """One operation, its operands and what it costs at least."""

    name: str
    run: Callable[..., Any]
    plain: Callable[..., Any]
    bound: Callable[..., Bound]
    make: Make
    production: Shape
    small: Shape


def _normal(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _modulated(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, tokens, width, text_rows = shape
    modulation = _normal(device, dtype, batch, 2, 2, 3, width)
    affine = _normal(device, dtype, width), _normal(device, dtype, width)
    shift, scale = modulation[:, :, 0, 0], modulation[:, :, 0, 1]
    return (_normal(device, dtype, batch, tokens, width), *affine, shift, scale, text_rows, 1e-5)


def _modulated_stream(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    """As under autocast: the residual stream and the norm's weights in float32, the rest in `dtype`."""
    x, weight, bias, *rest = _modulated(shape, device, dtype)
    return x.float(), weight.float(), bias.float(), *rest, dtype


def _gated(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, tokens, width, text_rows = shape
    x, update, control = (_normal(device, dtype, batch, tokens, width) for _ in range(3))
    return x, update, _normal(device, dtype, batch, 2, 2, 3, width)[:, :, 1, 2], text_rows, control


def _gated_stream(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, *rest = _gated(shape, device, dtype)
    return x.float(), *rest


def _rows(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    return _normal(device, dtype, *shape), _normal(device, dtype, shape[-1]), 1e-5


def _added_rows(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, weight, eps = _rows(shape, device, dtype)
    return x, _normal(device, dtype, *shape), weight, eps


def _added_stream(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, update, weight, eps = _added_rows(shape, device, dtype)
    return x.float(), update, weight.float(), eps, dtype


def _heads(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, heads, tokens, width = shape
    q, k, _ = _normal(device, dtype, batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    return (q, k, *(_normal(device, dtype, width) for _ in range(4)), 1e-6)


def _turned(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, heads, tokens, width = shape
    angles = _normal(device, torch.float32, tokens, width // 2)
    return _normal(device, dtype, batch, heads, tokens, width), angles.cos(), angles.sin()


def _turned_at(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, heads, tokens, entries, width = shape
    angles = _normal(device, torch.float32, entries, width // 2)
    positions = (torch.arange(tokens, device=device) + entries // 2) % entries
    return _normal(device, dtype, batch, heads, tokens, width), angles.cos(), angles.sin(), positions


def _pair(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    rows, width = shape
    return tuple(_normal(device, dtype, rows, 2 * width).chunk(2, dim=1))


def _nearest(cosine: bool) -> Make:
    def make(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        rows, codes, width = shape
        return _normal(device, dtype, rows, width), _normal(device, dtype, codes, width), cosine

    return make


def _lookup(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    rows, codes, width, features = shape
    layer = _normal(device, dtype, features, width), _normal(device, dtype, features)
    return (*layer, _normal(device, dtype, codes, width), torch.arange(rows, device=device) * 7 % codes, False)


def _step(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, previous, noise = (_normal(device, torch.float32, *shape) for _ in range(3))
    coefficients = _normal(device, torch.float32, 4, len(guidance.COLUMNS))
    step = torch.full((1,), 2, dtype=torch.int64, device=device)
    return x, _normal(device, dtype, 2, *shape), coefficients, step, previous, noise


def _draw(top_k: int, top_p: float) -> Make:
    def make(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        batch, vocabulary, codes = shape
        logits = _normal(device, torch.float32, 2, batch, vocabulary)
        gumbel = -torch.log(torch.empty(batch, codes, device=device).exponential_())
        return logits, gumbel, 6.5, 1.0, top_k, top_p

    return make


def _cache(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, heads, capacity, width = shape
    keys, values = (_normal(device, dtype, batch, heads, capacity, width) for _ in range(2))
    length = torch.full((1,), capacity, dtype=torch.int64, device=device)
    return _normal(device, dtype, batch, heads, width), keys, values, length


def _conditioned(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    channels, frames, height, width, latents, latent_height, latent_width = shape
    scale, shift = (_normal(device, dtype, 1, channels, latents, latent_height, latent_width) for _ in range(2))
    affine = _normal(device, dtype, channels), _normal(device, dtype, channels)
    x = _normal(device, dtype, 1, channels, frames, height, width)
    return x, *affine, scale, shift, min(32, channels // 2), 1e-6


def _pictures(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    return (_normal(device, dtype, *shape) * 0.5,)


def _case(name: str, module: ModuleType, make: Make, production: Shape, small: Shape, operation: str = "") -> Case:
    """Of the operation named so in the module, its reference and its bound; the case's own name if none is given."""
    operation = operation or name
    run, plain, bound = getattr(module, operation), getattr(reference, operation), getattr(module, f"{operation}_bound")
    return Case(name, run, plain, bound, make, production, small)


WINDOW, ODD = (2, 17776, 1920, 226), (2, 63, 100, 5)
PREFILL, ODD_ROWS = (2488, 2048), (63, 100)
GROUP, ODD_GROUP = (1218, 2048, 16), (63, 100, 9)
LOGITS, ODD_LOGITS = (1, 2055, 2048), (3, 431, 400)

CASES = (
    _case("layernorm_modulate", modulation, _modulated, WINDOW, ODD),
    _case("layernorm_modulate_f32", modulation, _modulated_stream, WINDOW, ODD, "layernorm_modulate"),
    _case("gated_residual", modulation, _gated, WINDOW, ODD),
    _case("gated_residual_f32", modulation, _gated_stream, WINDOW, ODD, "gated_residual"),
    _case("rms_norm", rmsnorm, _rows, PREFILL, ODD_ROWS),
    _case("add_rms_norm", rmsnorm, _added_rows, PREFILL, ODD_ROWS),
    _case("add_rms_norm_f32", rmsnorm, _added_stream, PREFILL, ODD_ROWS, "add_rms_norm"),
    _case("head_norm", headnorm, _heads, (2, 30, 17776, 64), (2, 3, 63, 20)),
    _case("rotate_grid", rotary, _turned, (1, 12, 18768, 64), (1, 3, 63, 20), "rotate"),
    _case("rotate_prefill", rotary, _turned, (2, 16, 1316, 128), (2, 5, 31, 16), "rotate"),
    _case("rotate_decode", rotary, _turned_at, (2, 16, 1, 4096, 128), (2, 3, 1, 63, 20), "rotate"),
    _case("gated_gelu", gelu, _pair, (2488, 11008), ODD_ROWS),
    _case("nearest_code", codebook, _nearest(False), GROUP, ODD_GROUP),
    _case("nearest_code_cosine", codebook, _nearest(True), GROUP, ODD_GROUP, "nearest_code"),
    _case("lookup_project", codebook, _lookup, (1218, 2048, 16, 768), (31, 100, 9, 63)),
    _case("guided_step", guidance, _step, (1, 13, 16, 60, 90), (3, 431)),
    _case("draw_code_top_k", draw, _draw(100, 1.0), LOGITS, ODD_LOGITS, "draw_code"),
    _case("draw_code_top_p", draw, _draw(0, 0.9), LOGITS, ODD_LOGITS, "draw_code"),
    _case("decode_attention", decode_attention, _cache, (2, 16, 1536, 128), (2, 3, 431, 24)),
    _case("spatial_norm_silu", spatial_norm, _conditioned, (128, 8, 480, 720, 2, 60, 90), (8, 5, 10, 14, 3, 5, 7)),
    _case("rgb_to_i420", planes, _pictures, (3, 8, 480, 720), (3, 2, 10, 14)),
)
