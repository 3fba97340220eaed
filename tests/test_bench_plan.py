"""Planning by the engine and by LLaMA."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from engine.bench.plan_cost import OwnPlanning, TheirPlanning, codes_per_round
from engine.bench.rounds import TOTAL, Clock
from engine.live.generator import CODES_PER_UNIT, Generator
from engine.loading.model import Model
from engine.runtime.graphs import Graphs
from engine.semantic.sampling import SamplingConfig

CLOCK = Clock(torch.device("cpu"))


def guided_model() -> Model:
    model = tiny_model()
    return replace(model, config=replace(model.config, sampling=SamplingConfig(guidance=1.5, temperature=0.8)))


@pytest.mark.parametrize("rounds", [1, 3])
def test_both_plan_the_same_places_in_the_same_calls(rounds: int) -> None:
    """Rows and lengths of all calls of the first layer are equal over several groups, as is the place at the end."""
    model = guided_model()
    # Calls of modules are seen where nothing is captured.
    own = OwnPlanning(Generator(model, graphs=lambda device: Graphs(None)), CLOCK)
    theirs = TheirPlanning(model, CLOCK)
    ours_seen: list[tuple[int, ...]] = []
    theirs_seen: list[tuple[int, ...]] = []

    def note(seen: list[tuple[int, ...]]) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            seen.append(tuple((args[0] if args else kwargs["hidden_states"]).shape))

        return hook

    model.planner.blocks[0].register_forward_pre_hook(note(ours_seen), with_kwargs=True)
    theirs.peer.model.layers[0].register_forward_pre_hook(note(theirs_seen), with_kwargs=True)
    for _ in range(rounds):
        assert own()[TOTAL] > 0
        assert theirs()[TOTAL] > 0
    assert len(ours_seen) == rounds * codes_per_round(model)
    assert ours_seen == theirs_seen
    assert ours_seen[0][0] == 2
    assert own._channel.plan.position == int(theirs._cache.get_seq_length())


def test_a_round_is_about_a_group_of_whole_units() -> None:
    """42 codes of a tiny group are five units."""
    model = tiny_model()
    assert model.config.tokenizer.group_tokens == 42
    assert codes_per_round(model) == 5 * CODES_PER_UNIT == 40
