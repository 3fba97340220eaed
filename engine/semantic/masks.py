"""Attention masks inside a GOP of the tokenizer (REFERENCE 1.6).

The sequence is [patches of all frames ; latent tokens], the latents being the I frame's, then each P frame's.
Shapes: `F` frames of the GOP, `P` patches of a frame, `N` = F * P + latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.runtime.attention import MaskRule, dense_mask


def encoder_rule(
    frames: int, patches: int, i_tokens: int, p_tokens: int, device: torch.device | str = "cpu"
) -> MaskRule:
    """Patches see the patches of their own and earlier frames; latents see those too, and the latents up to
    and including themselves."""
    frame = frame_of_places(frames, patches, i_tokens, p_tokens, device)
    latent = torch.arange(len(frame), device=device) >= frames * patches

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        to_patch = ~latent[key] & (frame[key] <= frame[query])
        return to_patch | (latent[query] & latent[key] & (key <= query))

    return rule


def decoder_rule(
    frames: int, patches: int, i_tokens: int, p_tokens: int, device: torch.device | str = "cpu"
) -> MaskRule:
    """Everything sees every patch and latent of its own and earlier frames, so decoding is causal by frame."""
    frame = frame_of_places(frames, patches, i_tokens, p_tokens, device)

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return frame[key] <= frame[query]

    return rule


def encoder_mask(frames: int, patches: int, i_tokens: int, p_tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """`encoder_rule` for all pairs: [N, N] bool, query by key, True = may attend."""
    tokens = gop_tokens(frames, patches, i_tokens, p_tokens)
    return dense_mask(encoder_rule(frames, patches, i_tokens, p_tokens, device), tokens, device)


def decoder_mask(frames: int, patches: int, i_tokens: int, p_tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """`decoder_rule` for all pairs: [N, N] bool, query by key, True = may attend."""
    tokens = gop_tokens(frames, patches, i_tokens, p_tokens)
    return dense_mask(decoder_rule(frames, patches, i_tokens, p_tokens, device), tokens, device)


def gop_tokens(frames: int, patches: int, i_tokens: int, p_tokens: int) -> int:
    """N of a GOP."""
    return frames * (patches + p_tokens) + i_tokens - p_tokens


def frame_of_places(frames: int, patches: int, i_tokens: int, p_tokens: int, device: torch.device | str) -> Tensor:
    """The frame that each place of the sequence belongs to, [N] int64.

    Rules look it up, instead of computing it from numbers, since a number that changes is compiled anew.
    """
    if min(frames, patches, i_tokens, p_tokens) < 1:
        raise ValueError(
            f"a mask needs at least one of each: frames {frames}, patches {patches}, I tokens {i_tokens}, "
            f"P tokens {p_tokens}"
        )
    visual = torch.arange(frames, device=device).repeat_interleave(patches)
    counts = torch.tensor([i_tokens] + [p_tokens] * (frames - 1), device=device)
    return torch.cat([visual, torch.arange(frames, device=device).repeat_interleave(counts)])
