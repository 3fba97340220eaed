"""The convolutional head: what each frame may see, and what it copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.perceptual.head import HeadInputs
from engine.perceptual.mini.head import ConvHead
from engine.perceptual.timesteps import TimestepCache
from kernels.tools import launch

TOKENS = (2, 3, 2, 3, 16)  # B, T, h, w, D


def _head() -> ConvHead:
    torch.manual_seed(5)
    head = ConvHead(hidden=16, time_dim=8, patch=4, channels=4, width=16, blocks=2)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.1)
    return head.eval()


class _Case:
    """Three frames of two worlds, and their context."""

    def __init__(self) -> None:
        torch.manual_seed(6)
        self.noisy, self.condition = torch.randn(2, 3, 4, 8, 12), torch.randn(2, 3, 4, 8, 12)
        self.last_condition, self.last = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
        self.tokens, self.time = torch.randn(TOKENS), TimestepCache(torch.randn(2, 8))

    def run(self, head: ConvHead, **changed: Tensor | None) -> Tensor:
        """The head's answer where the parts named in `changed` are others."""
        parts = {name: changed.get(name, getattr(self, name)) for name in ("condition", "last_condition", "last")}
        assert parts["condition"] is not None
        cache = head.precompute(parts["condition"], parts["last_condition"], parts["last"])
        noisy, tokens = (changed.get(name, getattr(self, name)) for name in ("noisy", "tokens"))
        assert noisy is not None and tokens is not None
        return head(tokens, self.time, HeadInputs(noisy, cache, parts["last"]))


@torch.inference_mode()
def test_a_frame_sees_itself_and_the_condition_before() -> None:
    """Changing one frame's noisy latents changes that frame alone; its condition also changes the next."""
    head, case = _head(), _Case()
    before = case.run(head)
    noisy, condition = case.noisy.clone(), case.condition.clone()
    noisy[:, 1] += 1
    condition[:, 1] += 1
    changes: list[dict[str, Tensor]] = [
        {"noisy": noisy}, {"condition": condition}, {"last_condition": case.condition[:, 0]}
    ]  # fmt: skip
    seen = [[bool((case.run(head, **change)[:, t] != before[:, t]).any()) for t in range(3)] for change in changes]
    assert seen == [[False, True, False], [False, True, True], [True, False, False]]


@torch.inference_mode()
def test_a_sketch_is_laid_over_the_rest() -> None:
    """Where its opacity is 1 nothing else is seen, where it is 0 and the sketch empty nothing of it."""
    head, case = ConvHead(hidden=16, time_dim=8, patch=4, channels=4, width=16, blocks=1, details=7).eval(), _Case()
    head.conv_known.weight[:, -7:] = 0  # the other way by which details are seen
    details, last_condition = torch.randn(2, 3, 7, 8, 12), torch.randn(2, 11, 8, 12)

    def run(opacity: float, sketch: float) -> Tensor:
        details[:, :, -1], details[:, :, -5:-1] = opacity, sketch
        return case.run(head, condition=torch.cat([case.condition, details], dim=2), last_condition=last_condition)

    plain = run(0.0, 0.0)
    assert torch.equal(run(1.0, 3.0), torch.full_like(plain, 3.0))
    torch.testing.assert_close(run(0.25, 3.0), 3.0 + 0.75 * plain)


@torch.inference_mode()
def test_the_kernel_norms_as_torch_does() -> None:
    """The modulated norm over the tokens gives the same fused."""
    head, case = _head(), _Case()
    plain = case.run(head)
    assert (plain - case.run(head, tokens=case.tokens + 1 + case.tokens.flip(-1))).abs().max() > 1e-3
    with launch.preferring("triton"):
        torch.testing.assert_close(case.run(head), plain)


@torch.inference_mode()
def test_an_open_gate_copies_the_last_context_frame() -> None:
    """With its gate open and its convolutions silent the head repeats the last context frame, if any."""
    head, case = _head(), _Case()
    nn.init.zeros_(head.conv_out.weight)
    assert head.conv_out.bias is not None
    head.conv_out.bias.copy_(torch.tensor([0.0] * 4 + [100.0] * 4))
    copied = case.run(head)
    torch.testing.assert_close(copied, case.last[:, None].expand_as(copied))
    assert case.run(head, last_condition=None, last=None).abs().max() == 0


@torch.inference_mode()
def test_a_missing_context_differs_from_a_black_one() -> None:
    """A flag tells a context frame of zeros from none."""
    head, case = _head(), _Case()
    zero = torch.zeros_like(case.last)
    none = case.run(head, last_condition=None, last=None)
    assert (none - case.run(head, last_condition=zero, last=zero)).abs().max() > 1e-4


@torch.inference_mode()
def test_one_row_equals_its_share_of_two() -> None:
    """Where the shift becomes the convolution's own bias, the answer is that of two rows."""
    head, case = _head(), _Case()
    both, parts = case.run(head), ("noisy", "condition", "last_condition", "last", "tokens")
    for name in parts:
        setattr(case, name, getattr(case, name)[1:])
    case.time = TimestepCache(case.time.embedding[1:])
    torch.testing.assert_close(case.run(head), both[1:])


def test_width_must_be_even() -> None:
    """A width that cannot be halved is refused with its number."""
    with pytest.raises(ValueError, match="head_width 21 is not even"):
        ConvHead(hidden=16, time_dim=8, patch=4, channels=4, width=21, blocks=1)
