"""Drawing tokens against the reference."""

import pytest
import torch
from tolerances import DEVICE, fused, normal

from kernels import draw


def gumbel(*shape: int) -> torch.Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(5)).clamp(1e-6, 1 - 1e-6)
    return -torch.log(-torch.log(uniform)).to(DEVICE)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (1, 1.0), (20, 1.0), (5000, 1.0), (0, 0.9), (0, 0.3), (0, 1e-6)]
)
@pytest.mark.parametrize(
    ("guidance_rows", "batch", "vocabulary", "tokens"),
    [(2, 12, 431, 400), (1, 12, 100, 100), (2, 3, 63, 1), (1, 1, 1, 1)],
)
def test_draw_token(guidance_rows: int, batch: int, vocabulary: int, tokens: int, top_k: int, top_p: float) -> None:
    """draw_token draws what its reference draws, at a temperature at which every filter decides."""
    logits = normal(guidance_rows, batch, vocabulary)
    arguments = (logits, gumbel(batch, tokens), 2.5, 3.0, top_k, top_p)
    result = fused(draw.draw_token, *arguments)
    assert torch.equal(result, draw.draw_token_reference(*arguments))
    assert bool((result < tokens).all())


def test_filters_decide() -> None:
    """With the same noise the filters change draws, so the comparison above can fail."""
    logits, noise = normal(1, 12, 400), gumbel(12, 400)
    free = fused(draw.draw_token, logits, noise, 1.0, 3.0, 0, 1.0)
    for top_k, top_p in ((5, 1.0), (0, 0.1)):
        assert not torch.equal(free, fused(draw.draw_token, logits, noise, 1.0, 3.0, top_k, top_p))


def test_ties_and_zeros_stay_together() -> None:
    """Equal logits at the threshold are all kept, and minus zero counts as zero."""
    logits = torch.tensor([[[2.0, 0.0, -0.0, 0.0, -1.0]]], device=DEVICE)
    for place in range(5):
        noise = torch.zeros(1, 5, device=DEVICE)
        noise[0, place] = 9.0
        drawn = fused(draw.draw_token, logits, noise, 1.0, 1.0, 2, 1.0)
        assert drawn.item() == (place if place < 4 else 0)


def test_special_tokens_do_not_count() -> None:
    """Ids beyond the tokens take no place among the top k and no mass, however likely."""
    logits = torch.tensor([[[1.0, 0.5, -9.0, 50.0]]], device=DEVICE)
    noise = torch.tensor([[0.0, 2.0, 0.0]], device=DEVICE)
    for top_k, top_p in ((2, 1.0), (0, 0.9)):
        assert fused(draw.draw_token, logits, noise, 1.0, 1.0, top_k, top_p).item() == 1


def test_refuses_wrong_operands() -> None:
    """Settings out of range, both filters at once and wrong shapes are named before anything runs."""
    logits, noise = normal(2, 1, 8), gumbel(1, 8)
    for settings in ((1.0, 0.0, 0, 1.0), (1.0, 1.0, 0, 0.0), (1.0, 1.0, -1, 1.0), (1.0, 1.0, 5, 0.5)):
        with pytest.raises(ValueError, match="one of top_k, top_p off"):
            draw.draw_token(logits, noise, *settings)
    with pytest.raises(ValueError, match=r"gumbel must have shape \(1, 1..8\), the vocabulary, not \(1, 9\)"):
        draw.draw_token(logits, gumbel(1, 9), 1.0, 1.0, 0, 1.0)
    with pytest.raises(ValueError, match=r"gumbel must have shape \(1, 1..8\), the vocabulary, not \(2, 8\)"):
        draw.draw_token(logits, gumbel(2, 8), 1.0, 1.0, 0, 1.0)
    with pytest.raises(ValueError, match="logits must be torch.float32"):
        draw.draw_token(logits.half(), noise, 1.0, 1.0, 0, 1.0)


@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(0, 1.0, 4), (2, 1.0, 2), (0, 0.75, 2), (0, 0.85, 3)])
def test_draws_follow_the_probabilities(top_k: int, top_p: float, kept: int) -> None:
    """Over many draws each kept token comes as often as its renormalised probability says, no other ever."""
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0], device=DEVICE)
    logits = probabilities.log().clamp_min(-50).repeat(1, 40000, 1)
    uniform = torch.rand(40000, 4, generator=torch.Generator().manual_seed(0)).clamp(1e-9, 1 - 1e-7).to(DEVICE)
    drawn = draw.draw_token_reference(logits, -torch.log(-torch.log(uniform)), 1.0, 1.0, top_k, top_p)
    expected = probabilities[:kept] / probabilities[:kept].sum()
    counts = torch.bincount(drawn, minlength=5) / 40000
    assert not counts[kept:].any()
    assert float((counts[:kept] - expected).abs().max()) < 0.01
