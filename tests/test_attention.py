"""Attention: both ways of computing it are one function."""

import pytest
import torch

from engine.runtime import attention
from engine.runtime.attention import attend
from kernels.decode_attention import FilledLength


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


@pytest.mark.parametrize("kind", ["full", "causal", "mask", "filled"])
def test_few_scores_in_bf16_are_written_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the fused kernel's within the roundings of bf16, under every mask, also with a cache that is not full;
    more of them than are few go to that kernel, and float32 does always."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 64).bfloat16() for tokens in (7, 7, 7))
    given, options = torch.rand(7, 7) > 0.4, {}
    given.fill_diagonal_(True)
    if kind == "filled":
        k, v = (torch.randn(2, 3, 20, 64).bfloat16() for _ in range(2))
        options = {"mask": FilledLength(torch.tensor([9]), 20, 7)}
    elif kind != "full":
        options = {"mask": given} if kind == "mask" else {"causal": True}
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with torch.inference_mode():
        written = attend(q, k, v, **options)
        with monkeypatch.context() as never:
            never.setattr(attention, "attention_reference", None)
            exact = attend(q.float(), k.float(), v.float(), **options)
            with pytest.raises(TypeError):
                attend(q, k, v, **options)
            never.setattr(attention, "FEW_SCORES", 7 * 7 - 1)
            fused = attend(q, k, v, **options)
    assert written.dtype == torch.bfloat16
    torch.testing.assert_close(written.float(), exact, rtol=0.02, atol=0.02)
    torch.testing.assert_close(fused.float(), exact, rtol=0.02, atol=0.02)
