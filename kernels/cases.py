"""Every operation with the shapes at which it is compiled and measured: those of the published model on a GPU (a window
of 13 latent frames at 480x720, one group of the plan), and small odd ones to check arithmetic anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
from kernels.launch import Bound

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


def _gated(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, tokens, width, text_rows = shape
    x, update, control = (_normal(device, dtype, batch, tokens, width) for _ in range(3))
    return x, update, _normal(device, dtype, batch, 2, 2, 3, width)[:, :, 1, 2], text_rows, control


def _rows(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    return _normal(device, dtype, *shape), _normal(device, dtype, shape[-1]), 1e-5


def _added_rows(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, weight, eps = _rows(shape, device, dtype)
    return x, _normal(device, dtype, *shape), weight, eps


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
        gumbel = -torch.log(torch.empty(batch, vocabulary, device=device).exponential_())
        return logits, gumbel, codes, 6.5, 1.0, top_k, top_p

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


CASES = (
    Case(
        "layernorm_modulate",
        modulation.layernorm_modulate,
        reference.layernorm_modulate,
        modulation.layernorm_modulate_bound,
        _modulated,
        (2, 17776, 1920, 226),
        (2, 63, 100, 5),
    ),
    Case(
        "gated_residual",
        modulation.gated_residual,
        reference.gated_residual,
        modulation.gated_residual_bound,
        _gated,
        (2, 17776, 1920, 226),
        (2, 63, 100, 5),
    ),
    Case("rms_norm", rmsnorm.rms_norm, reference.rms_norm, rmsnorm.rms_norm_bound, _rows, (2488, 2048), (63, 100)),
    Case(
        "add_rms_norm",
        rmsnorm.add_rms_norm,
        reference.add_rms_norm,
        rmsnorm.add_rms_norm_bound,
        _added_rows,
        (2488, 2048),
        (63, 100),
    ),
    Case(
        "head_norm",
        headnorm.head_norm,
        reference.head_norm,
        headnorm.head_norm_bound,
        _heads,
        (2, 30, 17776, 64),
        (2, 3, 63, 20),
    ),
    Case(
        "rotate_grid", rotary.rotate, reference.rotate, rotary.rotate_bound, _turned, (1, 12, 18768, 64), (1, 3, 63, 20)
    ),
    Case(
        "rotate_prefill",
        rotary.rotate,
        reference.rotate,
        rotary.rotate_bound,
        _turned,
        (2, 16, 1316, 128),
        (2, 5, 31, 16),
    ),
    Case(
        "rotate_decode",
        rotary.rotate,
        reference.rotate,
        rotary.rotate_bound,
        _turned_at,
        (2, 16, 1, 4096, 128),
        (2, 3, 1, 63, 20),
    ),
    Case("gated_gelu", gelu.gated_gelu, reference.gated_gelu, gelu.gated_gelu_bound, _pair, (2488, 11008), (63, 100)),
    Case(
        "nearest_code",
        codebook.nearest_code,
        reference.nearest_code,
        codebook.nearest_code_bound,
        _nearest(False),
        (1218, 2048, 16),
        (63, 100, 9),
    ),
    Case(
        "nearest_code_cosine",
        codebook.nearest_code,
        reference.nearest_code,
        codebook.nearest_code_bound,
        _nearest(True),
        (1218, 2048, 16),
        (63, 100, 9),
    ),
    Case(
        "lookup_project",
        codebook.lookup_project,
        reference.lookup_project,
        codebook.lookup_project_bound,
        _lookup,
        (1218, 2048, 16, 768),
        (31, 100, 9, 63),
    ),
    Case(
        "guided_step",
        guidance.guided_step,
        reference.guided_step,
        guidance.guided_step_bound,
        _step,
        (1, 13, 16, 60, 90),
        (3, 431),
    ),
    Case(
        "draw_code_top_k",
        draw.draw_code,
        reference.draw_code,
        draw.draw_code_bound,
        _draw(100, 1.0),
        (1, 2055, 2048),
        (3, 431, 400),
    ),
    Case(
        "draw_code_top_p",
        draw.draw_code,
        reference.draw_code,
        draw.draw_code_bound,
        _draw(0, 0.9),
        (1, 2055, 2048),
        (3, 431, 400),
    ),
    Case(
        "decode_attention",
        decode_attention.decode_attention,
        reference.decode_attention,
        decode_attention.decode_attention_bound,
        _cache,
        (2, 16, 1536, 128),
        (2, 3, 431, 24),
    ),
    Case(
        "spatial_norm_silu",
        spatial_norm.spatial_norm_silu,
        reference.spatial_norm_silu,
        spatial_norm.spatial_norm_silu_bound,
        _conditioned,
        (128, 8, 480, 720, 2, 60, 90),
        (8, 5, 10, 14, 3, 5, 7),
    ),
    Case(
        "rgb_to_i420",
        planes.rgb_to_i420,
        reference.rgb_to_i420,
        planes.rgb_to_i420_bound,
        _pictures,
        (3, 8, 480, 720),
        (3, 2, 10, 14),
    ),
)
