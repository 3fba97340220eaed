"""Tokenizer masks."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from golden import load
from tolerances import DEVICE

from engine.runtime.attention import MaskRule, attend, block_mask, mask_of
from engine.semantic.masks import decoder_mask, decoder_rule, encoder_mask, encoder_rule, gop_tokens


@pytest.mark.parametrize(("case", "lengths"), [("tokenizer_a", (1, 3, 13)), ("tokenizer_b", (1, 3, 5))])
def test_equal_the_published_masks(case: str, lengths: tuple[int, ...]) -> None:
    """Both masks equal the published ones at every golden length."""
    golden = load(case)
    config = golden.config
    geometry = (config["grid_h"] * config["grid_w"], config["iframe_tokens"], config["pframe_tokens"])
    for frames in lengths:
        assert torch.equal(encoder_mask(frames, *geometry), golden[f"mask/enc_T{frames}"].bool())
        assert torch.equal(decoder_mask(frames, *geometry), golden[f"mask/dec_T{frames}"].bool())


@pytest.mark.parametrize(("name", "make"), [("Encoder", encoder_mask), ("Decoder", decoder_mask)])
def test_full_size_sums(name: str, make: Callable[..., torch.Tensor]) -> None:
    """At 13x30x45 patches and 1218 tokens every row and column lets as many through as published."""
    golden = load("fullscale_tables")
    mask = make(13, 30 * 45, 330, 74)
    # Chunks: a whole int64 sum over 18768^2 would take gigabytes.
    rows = torch.cat([part.sum(1, dtype=torch.int32) for part in mask.split(512)])
    columns = torch.stack([part.sum(0, dtype=torch.int32) for part in mask.split(512)]).sum(0, dtype=torch.int32)
    assert torch.equal(rows, golden[f"mask/Video{name}Mask_rowsum"])
    assert torch.equal(columns, golden[f"mask/Video{name}Mask_colsum"])


@pytest.mark.parametrize(("rule", "make"), [(encoder_rule, encoder_mask), (decoder_rule, decoder_mask)])
def test_blocks_let_through_what_the_dense_mask_does(
    rule: Callable[..., MaskRule], make: Callable[..., torch.Tensor]
) -> None:
    """FlexAttention with block masks equals exact attention with the dense mask, at a length no block divides."""
    sizes = (5, 40, 30, 9)
    tokens = gop_tokens(*sizes)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, tokens, 16, generator=generator).to(DEVICE) for _ in range(3))
    mask = block_mask(rule(*sizes, DEVICE), tokens, DEVICE)
    with warnings.catch_warnings():
        # Not compiled, FlexAttention warns that it is slow.
        warnings.simplefilter("ignore")
        flexible = attend(q, k, v, mask)
    torch.testing.assert_close(flexible, attend(q, k, v, make(*sizes, DEVICE)), atol=1e-5, rtol=1e-5)


def test_a_rule_is_compiled_once_for_all_lengths() -> None:
    """GOPs of any number of frames share one compiled kernel; each anew would soon exhaust what torch compiles."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention.flex_attention import flex_attention

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(flex_attention, dynamic=True, backend=counter)
    for frames in (5, 4, 7, 6):
        sizes = (frames, 40, 30, 9)
        tokens = gop_tokens(*sizes)
        q = torch.randn(1, 2, tokens, 16)
        with torch.inference_mode():
            compiled(q, q, q, block_mask=block_mask(decoder_rule(*sizes), tokens, torch.device("cpu")))
    assert counter.frame_count == 1


def test_a_cpu_gets_dense_masks() -> None:
    """Without CUDA the mask is a tensor, for exact attention."""
    mask = mask_of(decoder_rule(2, 4, 3, 2), gop_tokens(2, 4, 3, 2), torch.device("cpu"))
    assert isinstance(mask, torch.Tensor)
    assert torch.equal(mask, decoder_mask(2, 4, 3, 2))


def test_empty_geometry_is_refused() -> None:
    """A mask without frames raises and names the numbers."""
    with pytest.raises(ValueError, match="frames 0"):
        encoder_mask(0, 4, 2, 1)
