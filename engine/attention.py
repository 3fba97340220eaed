"""Attention over heads: the one door to whichever kernel runs it.

Shapes: `B` batch, `H` heads, `N` query tokens, `M` key tokens, `D` head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Softmax attention with scale 1/sqrt(D).

    Args:
        q: [B, H, N, D].
        k: [B, H, M, D].
        v: [B, H, M, D].
        mask: bool, broadcastable to [B, H, N, M]; True = may attend.
        causal: query n sees keys 0..n only (N == M).

    Returns:
        [B, H, N, D], the dtype of `q`.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
