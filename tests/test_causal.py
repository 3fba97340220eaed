"""Causal convolution: its memory, and what stands before the first frame."""

from __future__ import annotations

import pytest
import torch

from engine.perceptual.cogvideox.causal import CausalConv, CausalState, number_convolutions

VIDEO = torch.randn(2, 3, 7, 4, 5, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [[1] * 7, [3, 2, 2], [1, 6]])
def test_chunks_equal_whole_and_later_never_changes_earlier(lengths: list[int]) -> None:
    """Frames in any batches give what they give at once; the past does not depend on the future."""
    conv, state = CausalConv(3, 4), CausalState()
    whole = conv(VIDEO, CausalState())
    parts = torch.cat([conv(part, state) for part in torch.split(VIDEO, lengths, dim=2)], dim=2)
    torch.testing.assert_close(parts, whole)
    changed = VIDEO.clone()
    changed[:, :, 4:] = 0
    torch.testing.assert_close(conv(changed, CausalState())[:, :, :4], whole[:, :, :4])


@torch.inference_mode()
def test_the_first_frame_stands_before_itself() -> None:
    """A video that begins with three equal frames gives for the third what one frame gives for the first."""
    conv = CausalConv(3, 4)
    still = VIDEO[:, :, :1].expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(conv(VIDEO[:, :, :1], CausalState()), conv(still, CausalState())[:, :, 2:])


@torch.inference_mode()
def test_convolutions_keep_apart() -> None:
    """Numbered convolutions of one network do not share their memory."""
    network = torch.nn.ModuleList([CausalConv(3, 3), CausalConv(3, 3)])
    number_convolutions(network)
    state = CausalState()
    assert not state.started
    network[1](network[0](VIDEO, state), state)
    assert state.started and len(state.tails) == 2
    torch.testing.assert_close(state.tails[0], VIDEO[:, :, -2:])
