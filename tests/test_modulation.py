"""Adaptive LayerNorm and gated residual against their references."""

import pytest
import torch
import torch.nn.functional as F
from tolerances import DTYPES, assert_close, fused, normal, widened

from kernels import modulation

CASES = {
    "one token": (1, 1, 100, 0),
    "one channel": (63, 5, 1, 2),
    "all text": (2, 63, 100, 63),
    "odd": (2, 5, 431, 3),
    "image only": (3, 63, 63, 0),
    "mini": (1, 20, 192, 7),
}


def operands(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    batch, tokens, width, _ = shape
    wide = normal(batch, tokens + 2, width + 5, dtype=dtype) + 3
    x = wide[:, 1:-1, :width]
    return x, normal(width, seed=1), normal(width, seed=2), normal(batch, 2, 2, 3, width, dtype=dtype, seed=3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES.keys())
def test_layernorm_modulate(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """layernorm_modulate norms strided rows and modulates text and image rows each by their own pair."""
    x, weight, bias, modulations = operands(shape, dtype)
    arguments = (x, weight, bias, modulations[:, :, 0, 0], modulations[:, :, 0, 1], shape[3], 1e-5)
    result = fused(modulation.layernorm_modulate, *arguments)
    assert_close(result, modulation.layernorm_modulate_reference(*widened(*arguments)), dtype)


def test_the_result_may_be_narrower() -> None:
    """A wide stream is normed straight to the type of the next matrix product."""
    x, weight, bias, modulations = operands((2, 5, 100, 3), torch.float32)
    arguments = (x, weight, bias, modulations[:, :, 0, 0], modulations[:, :, 0, 1], 3, 1e-5)
    result = fused(modulation.layernorm_modulate, *arguments, torch.bfloat16)
    assert_close(result, modulation.layernorm_modulate_reference(*arguments), torch.bfloat16)


@pytest.mark.parametrize("control", [False, True], ids=["plain", "control"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES.keys())
def test_gated_residual(shape: tuple[int, int, int, int], dtype: torch.dtype, control: bool) -> None:
    """gated_residual adds the update by the row's own gate, and the control residual where there is one."""
    batch, tokens, width, text_tokens = shape
    x, update, extra = (normal(batch, tokens, width, dtype=dtype, seed=seed) for seed in range(3))
    gate = normal(batch, 2, 2, 3, width, dtype=dtype, seed=3)[:, :, 1, 2]
    arguments = (x, update, gate, text_tokens, extra if control else None)
    result = fused(modulation.gated_residual, *arguments)
    assert_close(result, modulation.gated_residual_reference(*widened(*arguments)), dtype)


def test_refuses_wrong_operands() -> None:
    """Wrong shapes, dtypes and counts are named before anything runs."""
    x, weight, bias, modulations = operands((2, 5, 8, 3), torch.float32)
    shift, scale = modulations[:, :, 0, 0], modulations[:, :, 0, 1]
    with pytest.raises(ValueError, match=r"weight must have shape \(8,\)"):
        modulation.layernorm_modulate(x, weight[:7], bias, shift, scale, 3, 1e-5)
    with pytest.raises(ValueError, match="text_tokens must be in 0..5"):
        modulation.layernorm_modulate(x, weight, bias, shift, scale, 6, 1e-5)
    with pytest.raises(ValueError, match="shift must be"):
        modulation.layernorm_modulate(x, weight, bias, shift.long(), scale, 3, 1e-5)
    with pytest.raises(ValueError, match=r"gate must have shape \(2, 2, 8\)"):
        modulation.gated_residual(x, x, shift[:, :1], 3)


def test_references() -> None:
    """Text tokens and image tokens computed apart, each with its own row, and put together."""
    x, weight, bias = normal(2, 9, 16), normal(16, seed=1), normal(16, seed=2)
    shift, scale, gate = normal(2, 2, 16, seed=3), normal(2, 2, 16, seed=4), normal(2, 2, 16, seed=5)
    normed = F.layer_norm(x, (16,), weight, bias, 1e-5)
    text = normed[:, :4] * (1 + scale[:, 1:]) + shift[:, 1:]
    image = normed[:, 4:] * (1 + scale[:, :1]) + shift[:, :1]
    result = modulation.layernorm_modulate_reference(x, weight, bias, shift, scale, 4, 1e-5)
    assert_close(result, torch.cat([text, image], 1), torch.float32)
    update, control = normal(2, 9, 16, seed=6), normal(2, 9, 16, seed=7)
    gates = torch.cat([gate[:, 1:].expand(2, 4, 16), gate[:, :1].expand(2, 5, 16)], 1)
    result = modulation.gated_residual_reference(x, update, gate, 4, control)
    assert_close(result, x + gates * update + control, torch.float32)


def test_one_row_recalls_what_was_folded() -> None:
    """A batch of one is normed by the folded weights, given or made; they equal scale and shift after the norm."""
    x, weight, bias, modulations = operands((1, 5, 100, 3), torch.float32)
    affine = weight, bias, modulations[:, :, 0, 0], modulations[:, :, 0, 1]
    made = modulation.layernorm_modulate_reference(x, *affine, 3, 1e-5)
    folded = modulation.fold_modulation(*affine)
    recalled = modulation.layernorm_modulate_reference(x, *affine, 3, 1e-5, None, lambda: folded)
    assert torch.equal(recalled, made)
    pair = [part.expand(2, *part.shape[1:]) for part in (x, *affine[2:])]
    unfolded = modulation.layernorm_modulate_reference(pair[0], weight, bias, *pair[1:], 3, 1e-5)
    assert_close(unfolded[:1], made, torch.float32)
