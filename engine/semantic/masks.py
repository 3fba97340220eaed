"""Who may attend to whom inside a group of the tokenizer (FACTS 1.6).

The sequence is [patches of all frames ; latent tokens], the latents being the I frame's, then each P frame's.
Shapes: `F` frames of the group, `P` patches of a frame, `N` = F * P + latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Places:
    """What a mask is made of, each [N]; as a column it describes queries, as a row keys."""

    latent: Tensor  # bool: a latent token, not a patch
    frame: Tensor  # int64: the frame it belongs to
    index: Tensor  # int64: place in the sequence


def _places(frames: int, patches: int, i_tokens: int, p_tokens: int, device: torch.device | str) -> _Places:
    if min(frames, patches, i_tokens, p_tokens) < 1:
        raise ValueError(
            f"a mask needs at least one of each: frames {frames}, patches {patches}, I tokens {i_tokens}, "
            f"P tokens {p_tokens}"
        )
    visual = torch.arange(frames, device=device).repeat_interleave(patches)
    counts = torch.tensor([i_tokens] + [p_tokens] * (frames - 1), device=device)
    latent = torch.arange(frames, device=device).repeat_interleave(counts)
    frame = torch.cat([visual, latent])
    index = torch.arange(len(frame), device=device)
    return _Places(latent=index >= len(visual), frame=frame, index=index)


def encoder_mask(frames: int, patches: int, i_tokens: int, p_tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """Patches see the patches of their own and earlier frames; latents see those too, and the latents up to
    and including themselves.

    Returns:
        [N, N] bool, query by key, True = may attend.
    """
    places = _places(frames, patches, i_tokens, p_tokens, device)
    to_patch = (places.frame[None, :] <= places.frame[:, None]) & ~places.latent[None, :]
    earlier = places.index[None, :] <= places.index[:, None]
    return to_patch | (earlier & places.latent[:, None] & places.latent[None, :])


def decoder_mask(frames: int, patches: int, i_tokens: int, p_tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """Everything sees every patch and latent of its own and earlier frames, so decoding is causal by frame.

    Returns:
        [N, N] bool, query by key, True = may attend.
    """
    frame = _places(frames, patches, i_tokens, p_tokens, device).frame
    return frame[None, :] <= frame[:, None]
