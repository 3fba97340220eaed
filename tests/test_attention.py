"""Attention: both ways of computing it are one function."""

import pytest
import torch

from engine.runtime.attention import attend


@pytest.mark.parametrize("kind", ["full", "causal", "mask"])
def test_training_and_inference_agree(kind: str) -> None:
    """With and without gradients the result is the same, and gradients flow."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8) for _ in range(3))
    mask = torch.rand(7, 7) > 0.4
    mask.fill_diagonal_(True)
    options = {"full": {}, "causal": {"causal": True}, "mask": {"mask": mask}}[kind]
    plain = attend(q, k, v, **options)
    learning = attend(q.requires_grad_(), k, v, **options)
    torch.testing.assert_close(learning.detach(), plain)
    learning.sum().backward()
    assert q.grad is not None and torch.isfinite(q.grad).all()


def test_causal_attention_does_not_look_ahead() -> None:
    """Changing the last key changes the last query's result only."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 4) for _ in range(3))
    before = attend(q, k, v, causal=True)
    v[:, :, -1] += 1
    after = attend(q, k, v, causal=True)
    assert torch.equal(before[:, :, :-1], after[:, :, :-1])
    assert not torch.equal(before[:, :, -1], after[:, :, -1])
