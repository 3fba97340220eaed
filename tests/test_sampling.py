"""Drawing tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import TOLERANCE, load, relative_error
from test_planner import prompt

from engine.published import case_models
from engine.semantic.sampling import (
    SamplingConfig,
    generate_reference,
    guide,
    gumbel,
    keep_top_k,
    keep_top_p,
    sample_code,
    warp,
)
from kernels.tools import launch

RUNS = ("greedy_cfg", "greedy_nocfg", "cfg_equal_1", "sampled_cfg", "sampled_topp", "sampled_topk")


@pytest.mark.parametrize("case", ["lm_a", "lm_b"])
@pytest.mark.parametrize("run", RUNS)
def test_equals_the_published_draws(case: str, run: str) -> None:
    """Every draw at every position, and the codes, equal the published ones."""
    golden = load(case)
    facts = dict(golden.facts["runs"][run])
    generator = torch.Generator().manual_seed(facts.pop("torch_manual_seed"))
    facts["guidance"] = facts.pop("guidance_scale")
    plan = generate_reference(
        case_models.planner(golden),
        prompt(golden),
        golden.config["num_frames"],
        golden.config["motion_score"],
        SamplingConfig(**facts),
        generator,
    )
    assert torch.equal(plan.draws, golden[f"sample/{run}/drawn_all_positions"].flatten())
    assert torch.equal(plan.codes, golden[f"sample/{run}/codes"])


@pytest.mark.parametrize("case", ["lm_a", "lm_b"])
def test_equals_the_published_distribution(case: str) -> None:
    """Raw logits of both rows, guided and cut to the likeliest, give the published probabilities of a code."""
    golden = load(case)
    sampling = SamplingConfig(guidance=golden.config["cfg"], top_k=1)
    logits = golden["sample/greedy_cfg/raw_logits"][: golden.config["iframe_tokens"]]
    probabilities = warp(torch.cat([guide(rows, sampling) for rows in logits]), sampling).softmax(-1)
    assert relative_error(probabilities, golden["sample/greedy_cfg/probs"][: len(logits)]) <= TOLERANCE


def test_top_k_keeps_ties() -> None:
    """All values equal to the k-th largest stay."""
    kept = keep_top_k(torch.tensor([3.0, 1.0, 2.0, 2.0]), 2)
    assert kept.isfinite().tolist() == [True, False, True, True]


def test_top_p_keeps_the_token_that_crosses() -> None:
    """Tokens stay as long as those before them hold less than the mass."""
    logits = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.0001, 0.8999]]).log()
    assert keep_top_p(logits, 0.6).isfinite().tolist() == [[False, True, True], [False, False, True]]


def test_given_noise_draws_the_distribution() -> None:
    """Codes drawn from Gumbel noise occur as often as their probability says."""
    sampling = SamplingConfig(guidance=2.0, temperature=0.8, top_p=0.9)
    logits = torch.randn(2, 13, generator=torch.Generator().manual_seed(3))
    noise = gumbel(torch.rand(40_000, 10, generator=torch.Generator().manual_seed(4)))
    rows = logits[:, None].expand(-1, len(noise), -1).flatten(0, 1)
    share = sample_code(rows, noise, sampling).bincount(minlength=10) / len(noise)
    expected = warp(guide(logits, sampling)[:, :10], sampling).softmax(-1)[0]
    assert (share - expected).abs().max() < 0.01


def test_special_tokens_are_never_drawn() -> None:
    """A special token is not drawn even where it is by far the likeliest."""
    logits = torch.zeros(64, 13)
    logits[:, 10:] = 100.0
    codes = sample_code(logits, gumbel(torch.rand(64, 10)), SamplingConfig(guidance=0.0))
    assert codes.max() < 10


def test_noise_is_finite() -> None:
    """The ends of the unit interval give finite noise."""
    assert gumbel(torch.tensor([0.0, 0.5, 1.0 - 2.0**-24, 1.0])).isfinite().all()


def test_rows_with_the_same_noise_agree() -> None:
    """A row's code depends on its own logits and noise only."""
    sampling = SamplingConfig(guidance=3.0)
    logits, noise = torch.randn(6, 13), gumbel(torch.rand(3, 10))
    together = sample_code(logits, noise, sampling)
    alone = [sample_code(logits[[row, row + 3]], noise[row : row + 1], sampling) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("changes", [{}, {"guidance": 0.0}, {"top_k": 3}, {"top_p": 0.6}], ids=str)
@torch.inference_mode()
def test_the_kernel_draws_the_same_codes(changes: dict[str, Any]) -> None:
    """Guided or not, cut or not, every row draws what it draws in torch; one row of noise serves a single row."""
    sampling = SamplingConfig(**({"guidance": 2.0, "temperature": 0.7} | changes))
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(40 * (1 + sampling.guided), 13, generator=generator)
    noise = gumbel(torch.rand(40, 10, generator=generator))
    plain = sample_code(logits, noise, sampling)
    with launch.preferring("triton"):
        assert torch.equal(sample_code(logits, noise, sampling), plain)
        first = logits[::40] if sampling.guided else logits[:1]
        assert torch.equal(sample_code(first, noise[0], sampling), plain[:1])
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
