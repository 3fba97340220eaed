"""A hop by the engine and by its peers."""

import pytest
import torch
from tiny import tiny_model

from engine.bench.hop_cost import (
    CONDITION,
    FEATURES,
    LEAD_IN,
    PARTS,
    PROMPT_HALF,
    STEPS,
    OwnHops,
    TheirDecoding,
    TheirHops,
    guided_rows,
)
from engine.bench.rounds import TOTAL, Clock
from engine.config import preset
from engine.live.generator import Generator
from engine.perceptual.solver import solver_of

CLOCK = Clock(torch.device("cpu"))


def test_own_hops_go_on_and_every_part_takes_time() -> None:
    """Each turn is the channel's next hop; prompt half and steps make the total."""
    generator = Generator(tiny_model())
    own = OwnHops(generator, CLOCK)
    parts = [own() for _ in range(3)]
    assert own._channel.hop == LEAD_IN + 3
    for turn in parts:
        assert set(turn) == {*PARTS, TOTAL}
        assert min(turn[name] for name in PARTS if name != "plan") > 0
        assert turn[TOTAL] == pytest.approx(turn[PROMPT_HALF] + turn[STEPS])
    assert own._generator.model.config.new_latents == 6


class Told(Clock):
    """A clock that goes on when it is told to."""

    at_s = 0.0

    def now_s(self) -> float:
        return self.at_s


def test_parts_outside_the_comparison_are_left_out() -> None:
    """Time in the up-sampler or the tokenizer counts there, and not in the total."""
    model, clock = tiny_model(), Told(torch.device("cpu"))
    own = OwnHops(Generator(model), clock)

    def dawdle(*arguments: object) -> None:
        clock.at_s += 1.0

    for module in (model.renderer.condition, model.tokenizer.decoder):
        module.register_forward_hook(dawdle)
    turn = own()
    assert min(turn[CONDITION], turn[FEATURES]) >= 1.0
    assert turn[TOTAL] == 0.0


def test_their_hop_computes_a_whole_window_at_every_step() -> None:
    """As many layers as base and control, all 13 latents, once a step and row."""
    model = tiny_model()
    theirs = TheirHops(model, 3, CLOCK)
    seen: list[tuple[int, ...]] = []
    theirs.peer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    assert theirs()[TOTAL] > 0
    dit = model.config.renderer.dit
    assert seen == [(1, 13, dit.channels, dit.height, dit.width)] * 3
    assert len(theirs.peer.transformer_blocks) == dit.layers + model.config.renderer.control_layers == theirs.layers


def test_rows_are_those_that_the_engine_computes() -> None:
    """One without guidance, two with it, as the generator has it."""
    mini, landiff = preset("mini"), preset("landiff")
    assert guided_rows(solver_of(mini.schedule, 4)) == 1
    assert guided_rows(solver_of(landiff.schedule, 50)) == 2


def test_their_decoding_begins_a_video() -> None:
    """As many frames as our first hop has."""
    model = tiny_model()
    theirs = TheirDecoding(model, CLOCK)
    assert theirs.frames == model.config.first_hop_frames
    assert theirs()[TOTAL] > 0
