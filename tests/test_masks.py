"""Tokenizer masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden import load

from engine.semantic.masks import decoder_mask, encoder_mask


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
    """At 13x30x45 patches and 1218 codes every row and column lets as many through as published."""
    golden = load("fullscale_tables")
    mask = make(13, 30 * 45, 330, 74)
    # Chunks: a whole int64 sum over 18768^2 would take gigabytes.
    rows = torch.cat([part.sum(1, dtype=torch.int32) for part in mask.split(512)])
    columns = torch.stack([part.sum(0, dtype=torch.int32) for part in mask.split(512)]).sum(0, dtype=torch.int32)
    assert torch.equal(rows, golden[f"mask/Video{name}Mask_rowsum"])
    assert torch.equal(columns, golden[f"mask/Video{name}Mask_colsum"])


def test_empty_geometry_is_refused() -> None:
    """A mask without frames raises and names the numbers."""
    with pytest.raises(ValueError, match="frames 0"):
        encoder_mask(0, 4, 2, 1)
