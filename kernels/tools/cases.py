"""Every operation at the shapes at which it is compiled and measured: those of the published model on a GPU (a window
of 13 latent frames at 480x720, one GOP of the plan), and small odd ones to check arithmetic anywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.decode_attention import FilledLength
from kernels.guidance import COEFFICIENTS
from kernels.tools.launch import Bound

Shape = tuple[int, ...]
Operands = tuple[Any, ...]
Normal = Callable[..., Tensor]  # normal numbers of a shape, on the device and in the dtype of the case
Make = Callable[[Normal, Shape], Operands]


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One operation, its operands and what it costs at least."""

    name: str
    run: Callable[..., Any]
    plain: Callable[..., Any]
    bound: Callable[..., Bound]
    operands: Make
    production: Shape
    small: Shape

    def make(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> Operands:
        """Operands of the shape, in `dtype` but for what is always float32."""
        return tuple(self.operands(lambda *sizes: torch.randn(sizes, device=device).to(dtype), shape))


def _stream(make: Make, wide: Sequence[int], narrowed: bool, normal: Normal, shape: Shape) -> Operands:
    """Operands as under autocast: the residual stream and a norm's weights, at the places `wide`, in float32."""
    parts = (part.float() if place in wide else part for place, part in enumerate(make(normal, shape)))
    return *parts, *([normal(1).dtype] if narrowed else [])


def _modulated(normal: Normal, shape: Shape) -> Operands:
    batch, tokens, width, text_tokens = shape
    vectors = normal(batch, 2, 2, 3, width)
    shift, scale = vectors[:, :, 0, 0], vectors[:, :, 0, 1]
    return normal(batch, tokens, width), normal(width), normal(width), shift, scale, text_tokens, 1e-5


def _gated(normal: Normal, shape: Shape) -> Operands:
    batch, tokens, width, text_tokens = shape
    x, update, control = (normal(batch, tokens, width) for _ in range(3))
    return x, update, normal(batch, 2, 2, 3, width)[:, :, 1, 2], text_tokens, control


def _added_rows(normal: Normal, shape: Shape) -> Operands:
    return normal(*shape), normal(*shape), normal(shape[-1]), 1e-5


def _heads(normal: Normal, shape: Shape) -> Operands:
    batch, heads, tokens, width = shape
    q, k, _ = normal(batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    return q, k, *(normal(width) for _ in range(4)), 1e-6


def _rotated(normal: Normal, shape: Shape) -> Operands:
    angles = normal(shape[2], shape[3] // 2).float()
    return normal(*shape), angles.cos(), angles.sin()


def _nearest(cosine: bool, normal: Normal, shape: Shape) -> Operands:
    book = normal(*shape[1:])
    return normal(shape[0], shape[2]), F.normalize(book, dim=-1) if cosine else book, cosine


def _lookup(normal: Normal, shape: Shape) -> Operands:
    rows, codes, width, features = shape
    book = normal(codes, width)
    return torch.arange(rows, device=book.device) * 7 % codes, book, normal(features, width), normal(features)


def _step(normal: Normal, shape: Shape) -> Operands:
    x, previous, noise = (normal(*shape).float() for _ in range(3))
    return x, normal(2, *shape), normal(len(COEFFICIENTS)).float(), previous, noise


def _draw(top_k: int, top_p: float, normal: Normal, shape: Shape) -> Operands:
    batch, vocabulary, tokens = shape
    logits = normal(2, batch, vocabulary).float()
    gumbel = -torch.log(torch.empty(batch, tokens, device=logits.device).exponential_())
    return logits, gumbel, 6.5, 1.0, top_k, top_p


def _cache(normal: Normal, shape: Shape) -> Operands:
    batch, heads, queries, capacity, width = shape
    length = torch.full_like(normal(1), capacity - queries + 1, dtype=torch.int64)
    keys, values = (normal(batch, heads, capacity, width) for _ in range(2))
    return normal(batch, heads, queries, width), keys, values, FilledLength(length, capacity, queries)


def _conditioned(normal: Normal, shape: Shape) -> Operands:
    channels, latent_size = shape[0], shape[4:]
    scale, shift = (normal(1, channels, *latent_size) for _ in range(2))
    return normal(1, *shape[:4]), normal(channels), normal(channels), scale, shift, min(32, channels // 2), 1e-6


def _case(name: str, operands: Make, production: Shape, small: Shape, ending: str = "") -> KernelCase:
    """A case of an operation, named with its module, where its reference and its bound are too."""
    module, _, operation = name.partition(".")
    home = import_module(f"kernels.{module}")
    run, plain, bound = (getattr(home, operation + part) for part in ("", "_reference", "_bound"))
    return KernelCase(operation + ending, run, plain, bound, operands, production, small)


WINDOW, ODD = (2, 17776, 1920, 226), (2, 63, 100, 5)
PREFILL, ODD_ROWS = (2488, 2048), (63, 100)
GOP, ODD_GOP = (1218, 2048, 16), (63, 100, 9)
LOGITS, ODD_LOGITS = (1, 2055, 2048), (3, 431, 400)
CASES = (
    _case("modulation.layernorm_modulate", _modulated, WINDOW, ODD),
    _case("modulation.layernorm_modulate", partial(_stream, _modulated, (0, 1, 2), True), WINDOW, ODD, "_f32"),
    _case("modulation.gated_residual", _gated, WINDOW, ODD),
    _case("modulation.gated_residual", partial(_stream, _gated, (0,), False), WINDOW, ODD, "_f32"),
    _case("rmsnorm.rms_norm", lambda n, s: (n(*s), n(s[-1]), 1e-5), PREFILL, ODD_ROWS),
    _case("rmsnorm.add_rms_norm", _added_rows, PREFILL, ODD_ROWS),
    _case("rmsnorm.add_rms_norm", partial(_stream, _added_rows, (0, 2), True), PREFILL, ODD_ROWS, "_f32"),
    _case("headnorm.head_norm", _heads, (2, 30, 17776, 64), (2, 3, 63, 20)),
    _case("rotary.rotate", _rotated, (1, 12, 18768, 64), (1, 3, 63, 20), "_grid"),
    _case("rotary.rotate", _rotated, (2, 16, 1316, 128), (2, 5, 31, 16), "_prefill"),
    _case("gelu.gated_gelu", lambda n, s: n(s[0], 2 * s[1]).chunk(2, 1), (2488, 11008), ODD_ROWS),
    _case("codebook.nearest_code", partial(_nearest, False), GOP, ODD_GOP),
    _case("codebook.nearest_code", partial(_nearest, True), GOP, ODD_GOP, "_cosine"),
    _case("codebook.lookup_project", _lookup, (1218, 2048, 16, 768), (31, 100, 9, 63)),
    _case("guidance.guided_step", _step, (1, 13, 16, 60, 90), (3, 431)),
    _case("draw.draw_token", partial(_draw, 100, 1.0), LOGITS, ODD_LOGITS, "_top_k"),
    _case("draw.draw_token", partial(_draw, 0, 0.9), LOGITS, ODD_LOGITS, "_top_p"),
    _case("decode_attention.decode_attention", _cache, (2, 16, 1, 1536, 128), (2, 3, 1, 431, 24), "_1"),
    _case("decode_attention.decode_attention", _cache, (2, 16, 32, 1536, 128), (2, 3, 7, 431, 24), "_32"),
    _case("spatial_norm.spatial_norm_silu", _conditioned, (128, 8, 480, 720, 2, 60, 90), (8, 5, 10, 14, 3, 5, 7)),
    _case("planes.rgb_to_i420", lambda n, s: (n(*s) * 0.5,), (3, 8, 480, 720), (3, 2, 10, 14)),
)
