"""Attention over heads: one door to all backends, of which `engine.runtime.backends` chooses at load.

Shapes: `B` batch, `H` heads, `N` query tokens, `M` key tokens, `D` head width.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.runtime.backends import FORCED, attention_reference, chosen, flex, unsupported_reason
from kernels.decode_attention import FilledLength, decode_attention

if TYPE_CHECKING:
    # Loading it takes seconds, and a CPU has no use for it.
    from torch.nn.attention.flex_attention import BlockMask

FEW_SCORES = 1 << 18  # of a head

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # batch, head, query and key number -> may attend

logger = logging.getLogger(__name__)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | FilledLength | BlockMask | None = None,
    causal: bool = False,
) -> Tensor:
    """Softmax attention with scale 1/sqrt(D).

    Args:
        q: [B, H, N, D].
        k: [B, H, M, D].
        v: [B, H, M, D].
        mask: bool, broadcastable to [B, H, N, M], True = may attend; what `mask_of` made; or how much of a cache is
            filled.
        causal: query n sees keys 0..n only (N == M).

    Returns:
        [B, H, N, D], the dtype of `q`.
    """
    if isinstance(mask, FilledLength):
        if _written_out(q, k):
            return attention_reference(q, k, v, mask.bias, causal)
        return decode_attention(q, k, v, mask)
    if mask is not None and not isinstance(mask, Tensor):
        return flex(q.device.type)(q, k, v, block_mask=mask)
    if _written_out(q, k):
        return attention_reference(q, k, v, mask, causal)
    run = chosen(q) if mask is None else None
    if run is not None:
        return run(q, k, v, causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def _written_out(q: Tensor, k: Tensor) -> bool:
    """True where a CPU multiplies all of a head's scores faster than torch's fused kernel goes through them.

    Backwards that takes 18 ms for 79, of [32, 4, 145, 32] in bf16 on a core with AMX. In bf16 without AMX the fused
    kernel multiplies block by block as if each were a call of its own: 294 us for 147, of 144 queries and 336 keys of 3
    heads of 64 (torch 2.13, AMD EPYC, two threads). `mini` learns with scores written out, in either case.
    """
    if q.device.type != "cpu" or q.requires_grad:
        return q.device.type == "cpu"
    few = q.shape[2] * k.shape[2] <= FEW_SCORES
    return few and q.dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported()


def mask_of(rule: MaskRule, tokens: int, device: torch.device) -> Tensor | BlockMask:
    """The mask of `tokens` tokens for `attend`: in blocks for FlexAttention on CUDA, where that runs, else dense bool
    [N, N]."""
    wanted = os.environ.get(FORCED, "auto") in ("auto", "flex")
    if device.type == "cuda" and wanted and _flex_runs(device):
        return block_mask(rule, tokens, device)
    return dense_mask(rule, tokens, device)


def dense_mask(rule: MaskRule, tokens: int, device: torch.device | str) -> Tensor:
    """[N, N] bool, query by key, True = may attend."""
    places = torch.arange(tokens, device=device)
    nothing = torch.zeros((), dtype=torch.int64, device=device)
    return rule(nothing, nothing, places[:, None], places[None, :])


def block_mask(rule: MaskRule, tokens: int, device: torch.device) -> BlockMask:
    """The mask for FlexAttention, which skips blocks that nobody may attend to."""
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(rule, None, None, tokens, tokens, device=device.type)


@functools.cache
def _flex_runs(device: torch.device) -> bool:
    reason = unsupported_reason("flex", device, torch.bfloat16, 64)
    if reason is not None:
        logger.warning("block masks are made dense, which is slower: FlexAttention cannot run: %s", reason)
    return reason is None
