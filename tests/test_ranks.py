"""Several processes that render one video: equal to one, whatever the layout, and what happens when one is lost."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from rank_workers import LIMIT_S, difference, run
from test_layout import MODULES, imported, name_of

from engine.config import preset
from engine.ranks.agreement import RanksDifferError, agree, model_facts
from engine.ranks.exchange import TokenGroup, shares
from engine.ranks.group import SILENCE, RankError, RankPlace, receive, silence_s
from engine.ranks.layout import RankLayout
from engine.runtime.attention import attend

NEAR = 1e-5  # what ranks together may differ from one, relative to the largest value


@pytest.mark.parametrize(
    ("name", "ranks", "steps"),
    [
        ("guided", 2, 3),  # a row of guidance each
        ("guided, 4 heads", 3, 3),  # both rows, tokens and heads in unequal parts
        ("guided, 4 heads", 4, 2),  # two rows, each of two ranks
        ("tiny", 2, 2),  # half-causal, one row
        ("mini", 2, 2),  # three heads: two and one
    ],
)
def test_ranks_together_make_the_latents_of_one(name: str, ranks: int, steps: int) -> None:
    """Guidance rows, shared tokens, and both at once give one rank's latents, in the first chunk and later."""
    results = run(ranks, difference, name, steps)
    assert results[1:] == [None] * (ranks - 1), results
    assert 0 <= results[0] < NEAR, results


def _attended(place: RankPlace) -> float:
    """Largest error of attention over shared tokens; some ranks have more tokens and heads than others."""
    tokens, heads = 13, 6
    drawn = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(2, heads, tokens, 8, generator=drawn) for _ in range(3))
    x = torch.randn(2, tokens, 5, generator=drawn)
    share = TokenGroup(dist.new_group(list(range(place.ranks))), heads)(tokens)
    assert torch.equal(share.whole(share.own(x)), x)
    assert share.own_of_first(tokens) == share.own(x).shape[1]
    assert sum(TokenGroup(dist.group.WORLD, heads)(tokens).tokens) == tokens
    own = [part.split(shares(tokens, place.ranks), dim=2)[place.rank] for part in (q, k, v)]
    made = share.to_tokens(attend(*share.to_heads(*own)))
    truth = attend(q, k, v).split(shares(tokens, place.ranks), dim=2)[place.rank]
    return float((made - truth).abs().max())


def test_attention_over_shared_tokens_is_that_over_all() -> None:
    """Own tokens of all heads to all tokens of own heads and back, for numbers that ranks do not divide."""
    assert max(run(4, _attended)) < 1e-6


def test_shares_are_as_equal_as_they_can_be() -> None:
    """What is left over goes to the first ranks."""
    assert shares(30, 4) == [8, 8, 7, 7] and shares(3, 2) == [2, 1]


def test_a_layout_says_what_each_rank_does() -> None:
    """Guidance takes two rows where there are two for it; a pipeline sets two ranks apart."""
    landiff, mini = preset("landiff"), preset("mini")
    four = RankLayout.of(landiff, 4)
    assert (four.rows, four.context, four.row(1), four.decoder, four.planner) == (2, 2, [2, 3], 0, 0)
    apart = RankLayout.of(landiff, 8, pipeline=True)
    assert (apart.rendering, apart.rows, apart.context) == ([2, 3, 4, 5, 6, 7], 2, 3)
    assert (apart.decoder, apart.planner, apart.row(1)) == (0, 1, [5, 6, 7])
    assert RankLayout.of(landiff, 3).rows == 1 and RankLayout.of(mini, 2).rows == 1


def test_ranks_without_work_are_refused() -> None:
    """More ranks than attention heads, and a pipeline of two, are refused with both numbers."""
    with pytest.raises(ValueError, match="4 ranks cannot share the 3 attention heads of preset 'mini'"):
        RankLayout.of(preset("mini"), 4)
    with pytest.raises(ValueError, match="at least 3 ranks, not 2"):
        RankLayout.of(preset("landiff"), 2, pipeline=True)


def _agree(place: RankPlace, facts: list[dict[str, object]]) -> None:
    agree(facts[place.rank])


def test_ranks_that_differ_are_refused_with_name_and_values() -> None:
    """Every rank raises the same line, whichever of them is the odd one."""
    facts = [{"--seed": 3, "--steps": 4}, {"--seed": 3, "--steps": 4}, {"--seed": 3, "--steps": 2}]
    results = run(3, _agree, facts)
    assert {type(result) for result in results} == {RanksDifferError}
    assert {str(result) for result in results} == {"ranks differ in --steps: 4 on rank 0, 2 on rank 2; start all alike"}
    assert run(2, _agree, [facts[0], facts[0]]) == [None, None]


def test_the_facts_of_a_model_name_fields_versions_and_weights(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A field of any stage, other weights and an environment variable of ours all show."""
    config, cpu = preset("mini"), torch.device("cpu")
    plain = model_facts(config, tmp_path, cpu, torch.float32)
    heads = replace(config.renderer.dit, heads=6)
    other = model_facts(replace(config, renderer=replace(config.renderer, dit=heads)), tmp_path, cpu, torch.float32)
    assert {name for name in plain if plain[name] != other[name]} == {"renderer.dit.heads"}
    monkeypatch.setenv("LANDIFF_ATTENTION", "math")
    (tmp_path / "vae.safetensors").write_bytes(b"0")
    after = model_facts(config, tmp_path, cpu, torch.float32)
    assert {name for name in after if plain.get(name) != after[name]} == {"weights", "LANDIFF_ATTENTION"}
    assert plain["version of the engine"] and plain["version of torch"] == torch.__version__


def test_a_rank_that_ends_is_an_error_at_once() -> None:
    """Those that wait for it need no time to run out."""
    began_s = time.monotonic()
    error = run(2, _gone)[0]
    assert isinstance(error, RankError) and time.monotonic() - began_s < LIMIT_S
    assert "rank 0 has lost the others" in str(error)


def test_a_silent_rank_is_an_error_after_the_time_that_is_set() -> None:
    """A rank that is stopped keeps the others waiting as long as the setting says, and no longer."""
    error = run(2, _silent, silence_s=1.0)[0]
    assert isinstance(error, RankError), error
    assert "rank 0 has lost the others: one of them ended, or was silent for 1 s" in str(error)


def _silent(place: RankPlace) -> None:
    if place.rank == 1:
        time.sleep(3)
    else:
        receive(1)


def _gone(place: RankPlace) -> None:
    if place.rank == 1:
        os._exit(9)
    receive(1)


def test_how_long_ranks_wait_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no such number is refused with the variable's name."""
    monkeypatch.setenv(SILENCE, "2.5")
    assert silence_s() == 2.5
    for wrong in ("0", "-1", "soon", "inf", "nan"):
        monkeypatch.setenv(SILENCE, wrong)
        with pytest.raises(ValueError, match=f"{SILENCE}='{wrong}' is not a number of seconds above 0"):
            silence_s()


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_WORLD_SIZE"])
def test_without_torchrun_the_place_is_not_known(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that torchrun sets and that is not there is named."""
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert RankPlace.from_environment() == RankPlace(5, 8, 1, 4, None)
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match=f"{missing} not set in the environment"):
        RankPlace.from_environment()


def test_one_process_needs_nothing_of_ranks() -> None:
    """Only modules that several processes load import `engine.ranks`, and nobody imports those by name."""
    doors = {"engine.video.ranked", "engine.live.ranked", "engine.bench.ranks"}
    for path in MODULES:
        others = set(imported(path))
        if not name_of(path).startswith("engine.ranks") and name_of(path) not in doors:
            assert not any(other.startswith(("engine.ranks", *doors)) for other in others), path
