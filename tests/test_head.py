"""The convolutional head: what each frame may see, and what it copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.perceptual.head import ConvHead, Frames
from engine.perceptual.times import Times
from kernels import launch

TOKENS = (2, 3, 2, 3, 16)  # B, T, h, w, D


def _head() -> ConvHead:
    torch.manual_seed(5)
    head = ConvHead(hidden=16, time_dim=8, patch=4, channels=4, width=16, blocks=2)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    return head.eval()


def _case() -> tuple[Tensor, Times, Frames]:
    torch.manual_seed(6)
    noisy, condition = torch.randn(2, 3, 4, 8, 12), torch.randn(2, 3, 4, 8, 12)
    frames = Frames(noisy, condition, torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12))
    return torch.randn(TOKENS), Times(torch.randn(2, 8)), frames


@torch.inference_mode()
def test_a_frame_sees_itself_and_the_condition_before() -> None:
    """Changing one frame's noisy latents changes that frame alone; its condition also changes the next."""
    head, (tokens, time, frames) = _head(), _case()
    before = head(tokens, time, frames)
    noisy, condition = frames.noisy.clone(), frames.condition.clone()
    noisy[:, 1] += 1
    condition[:, 1] += 1
    after = head(tokens, time, Frames(noisy, frames.condition, frames.last_condition, frames.last_prompt))
    assert [bool((after[:, t] != before[:, t]).any()) for t in range(3)] == [False, True, False]
    after = head(tokens, time, Frames(frames.noisy, condition, frames.last_condition, frames.last_prompt))
    assert [bool((after[:, t] != before[:, t]).any()) for t in range(3)] == [False, True, True]
    after = head(tokens, time, Frames(frames.noisy, frames.condition, frames.condition[:, 0], frames.last_prompt))
    assert [bool((after[:, t] != before[:, t]).any()) for t in range(3)] == [True, False, False]


@torch.inference_mode()
def test_the_kernel_norms_as_torch_does() -> None:
    """The modulated norm over the tokens gives the same fused."""
    head, (tokens, time, frames) = _head(), _case()
    plain = head(tokens, time, frames)
    assert (plain - head(tokens + 1 + tokens.flip(-1), time, frames)).abs().max() > 1e-3
    with launch.preferring("triton"):
        torch.testing.assert_close(head(tokens, time, frames), plain)


@torch.inference_mode()
def test_open_gate_copies_the_last_prompt_frame() -> None:
    """With its gate open and its convolutions silent the head repeats the last prompt frame, if any."""
    head, (tokens, time, frames) = _head(), _case()
    assert frames.last_prompt is not None
    nn.init.zeros_(head.conv_out.weight)
    assert head.conv_out.bias is not None
    head.conv_out.bias.copy_(torch.tensor([0.0] * 4 + [100.0] * 4))
    copied = head(tokens, time, frames)
    torch.testing.assert_close(copied, frames.last_prompt[:, None].expand_as(copied))
    assert head(tokens, time, Frames(frames.noisy, frames.condition, None, None)).abs().max() == 0


@torch.inference_mode()
def test_a_missing_prompt_differs_from_a_black_one() -> None:
    """A flag tells a prompt frame of zeros from none."""
    head, (tokens, time, frames) = _head(), _case()
    zero = torch.zeros_like(frames.noisy[:, 0])
    none = head(tokens, time, Frames(frames.noisy, frames.condition, None, None))
    assert (none - head(tokens, time, Frames(frames.noisy, frames.condition, zero, zero))).abs().max() > 1e-4


def test_width_must_split_into_groups() -> None:
    """A width that the norm groups cannot split is refused with both numbers."""
    with pytest.raises(ValueError, match="20 is not a multiple of 8"):
        ConvHead(hidden=16, time_dim=8, patch=4, channels=4, width=20, blocks=1)
