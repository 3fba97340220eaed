"""Attention over heads: the one door to whichever code runs it (`engine.runtime.backends` decides that at load).

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

from engine.runtime.backends import FORCED, chosen, flex, obstacle, written_out
from kernels.decode_attention import decode_attention

if TYPE_CHECKING:
    # Loading it takes seconds, and a CPU has no use for it.
    from torch.nn.attention.flex_attention import BlockMask

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # batch, head, query and key number -> may attend

logger = logging.getLogger(__name__)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | BlockMask | None = None,
    causal: bool = False,
    length: Tensor | None = None,
) -> Tensor:
    """Softmax attention with scale 1/sqrt(D).

    Args:
        q: [B, H, N, D].
        k: [B, H, M, D].
        v: [B, H, M, D].
        mask: bool, broadcastable to [B, H, N, M], True = may attend; or what `masked` made.
        causal: query n sees keys 0..n only (N == M).
        length: int64 [1] or [B] on the device: the only query (N == 1) sees the first so many keys; instead of a mask.

    Returns:
        [B, H, N, D], the dtype of `q`.
    """
    if length is not None:
        return decode_attention(q[:, :, 0], k, v, length).unsqueeze(2)
    if mask is not None and not isinstance(mask, Tensor):
        return flex(q.device.type)(q, k, v, block_mask=mask)
    # torch's fused kernel is slow backwards on a CPU: 79 ms against 18 for [32, 4, 145, 32] in bf16, one core with AMX.
    if q.requires_grad and q.device.type == "cpu":
        return written_out(q, k, v, mask, causal)
    run = chosen(q) if mask is None else None
    if run is not None:
        return run(q, k, v, causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def masked(rule: Rule, tokens: int, device: torch.device) -> Tensor | BlockMask:
    """Who of `tokens` tokens may attend to whom, as `attend` takes it there: in blocks for FlexAttention on CUDA, where
    that runs, and as a dense bool [N, N] elsewhere."""
    wanted = os.environ.get(FORCED, "auto") in ("auto", "flex")
    if device.type == "cuda" and wanted and _flex_runs(device):
        return blocks(rule, tokens, device)
    return dense(rule, tokens, device)


def dense(rule: Rule, tokens: int, device: torch.device | str) -> Tensor:
    """[N, N] bool, query by key, True = may attend."""
    places = torch.arange(tokens, device=device)
    nothing = torch.zeros((), dtype=torch.int64, device=device)
    return rule(nothing, nothing, places[:, None], places[None, :])


def blocks(rule: Rule, tokens: int, device: torch.device) -> BlockMask:
    """The same for FlexAttention, which skips blocks that nobody may attend to."""
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(rule, None, None, tokens, tokens, device=device.type)


@functools.cache
def _flex_runs(device: torch.device) -> bool:
    reason = obstacle("flex", device, torch.bfloat16, 64)
    if reason is not None:
        logger.warning("block masks are made dense, which is slower: FlexAttention cannot run: %s", reason)
    return reason is None
