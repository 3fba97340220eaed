"""Drawing tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import TOLERANCE, load, relative_error

from engine.semantic.sampling import (
    SamplingConfig,
    filtered_logits,
    guided_logits,
    gumbel,
    sample_token,
)
from kernels.draw import filter_logits
from kernels.tools import launch


@pytest.mark.parametrize("case", ["lm_a", "lm_b"])
def test_equals_the_published_distribution(case: str) -> None:
    """Raw logits of both rows, guided and cut to the likeliest, give the published probabilities of a token."""
    golden = load(case)
    sampling = SamplingConfig(guidance=golden.config["cfg"], top_k=1)
    logits = golden["sample/greedy_cfg/raw_logits"][: golden.config["iframe_tokens"]]
    probabilities = filtered_logits(torch.cat([guided_logits(rows, sampling) for rows in logits]), sampling).softmax(-1)
    assert relative_error(probabilities, golden["sample/greedy_cfg/probs"][: len(logits)]) <= TOLERANCE


def test_top_k_keeps_ties() -> None:
    """All values equal to the k-th largest stay."""
    kept = filter_logits(torch.tensor([3.0, 1.0, 2.0, 2.0]), 1.0, 2, 1.0)
    assert kept.isfinite().tolist() == [True, False, True, True]


def test_top_p_keeps_the_token_that_crosses() -> None:
    """Tokens stay as long as those before them hold less than the mass."""
    logits = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.0001, 0.8999]]).log()
    assert filter_logits(logits, 1.0, 0, 0.6).isfinite().tolist() == [[False, True, True], [False, False, True]]


def test_given_noise_draws_the_distribution() -> None:
    """Codes drawn from Gumbel noise occur as often as their probability says."""
    sampling = SamplingConfig(guidance=2.0, temperature=0.8, top_p=0.9)
    logits = torch.randn(2, 13, generator=torch.Generator().manual_seed(3))
    noise = gumbel(torch.rand(40_000, 10, generator=torch.Generator().manual_seed(4)))
    rows = logits[:, None].expand(-1, len(noise), -1).flatten(0, 1)
    share = sample_token(rows, noise, sampling).bincount(minlength=10) / len(noise)
    expected = filtered_logits(guided_logits(logits, sampling)[:, :10], sampling).softmax(-1)[0]
    assert (share - expected).abs().max() < 0.01


def test_special_tokens_are_never_drawn() -> None:
    """A special token is not drawn even where it is by far the likeliest."""
    logits = torch.zeros(64, 13)
    logits[:, 10:] = 100.0
    tokens = sample_token(logits, gumbel(torch.rand(64, 10)), SamplingConfig(guidance=0.0))
    assert tokens.max() < 10


def test_noise_is_finite() -> None:
    """The ends of the unit interval give finite noise."""
    assert gumbel(torch.tensor([0.0, 0.5, 1.0 - 2.0**-24, 1.0])).isfinite().all()


def test_rows_with_the_same_noise_agree() -> None:
    """A row's token depends on its own logits and noise only."""
    sampling = SamplingConfig(guidance=3.0)
    logits, noise = torch.randn(6, 13), gumbel(torch.rand(3, 10))
    together = sample_token(logits, noise, sampling)
    alone = [sample_token(logits[[row, row + 3]], noise[row : row + 1], sampling) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("changes", [{}, {"guidance": 0.0}, {"top_k": 3}, {"top_p": 0.6}], ids=str)
@torch.inference_mode()
def test_the_kernel_draws_the_same_tokens(changes: dict[str, Any]) -> None:
    """Guided or not, cut or not, every row draws what it draws in torch; one row of noise serves a single row."""
    sampling = SamplingConfig(**({"guidance": 2.0, "temperature": 0.7} | changes))
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(40 * (1 + sampling.guided), 13, generator=generator)
    noise = gumbel(torch.rand(40, 10, generator=generator))
    plain = sample_token(logits, noise, sampling)
    with launch.preferring("triton"):
        assert torch.equal(sample_token(logits, noise, sampling), plain)
        first = logits[::40] if sampling.guided else logits[:1]
        assert torch.equal(sample_token(first, noise[0], sampling), plain[:1])
    assert len(plain.unique()) > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"top_k": 5, "top_p": 0.9}, "exclude each other"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 1.5}, "top_p 1.5"),
    ],
)
def test_wrong_configuration_is_refused(changes: dict[str, Any], message: str) -> None:
    """Settings that cannot work raise and name the values."""
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**changes)
