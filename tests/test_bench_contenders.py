"""Contenders and their race."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_model
from transformers import StaticCache

from engine.bench import contenders, peers
from engine.bench.contenders import (
    STAGES,
    TOTAL,
    WARM_UPS,
    guided_rows,
    our_chunks,
    our_tokens,
    race,
    summary,
    their_chunks,
    their_tokens,
)
from engine.config import preset
from engine.live.generator import Generator
from engine.perceptual.solver import solver_of
from engine.semantic.sampling import SamplingConfig

CPU = torch.device("cpu")


def test_contenders_take_turns_and_each_begins_as_often() -> None:
    """Warm-up rounds are not counted; the first of a round changes; a turn may tell its own total and its parts."""
    order: list[str] = []

    def tell() -> dict[str, float]:
        order.append("a")
        return {TOTAL: float(len(order)), "part": 1.0}

    timings = race({"a": tell, "b": lambda: order.append("b")}, 4, CPU)
    assert "".join(order) == "abba" * ((WARM_UPS + 4) // 2)
    told_ms = {part: values.tolist() for part, values in timings["a"].items()}
    assert told_ms == {TOTAL: [5000.0, 8000.0, 9000.0, 12000.0], "part": [1000.0] * 4}
    assert len(timings["b"][TOTAL]) == 4 and min(timings["b"][TOTAL]) > 0


def test_summary_is_median_and_middle_half() -> None:
    """One outlier moves neither."""
    assert summary(np.array([5.0, 1.0, 3.0, 2.0, 400.0])) == {"median": 3.0, "middle_half": [2.0, 5.0]}
    assert summary(np.array([2.5])) == {"median": 2.5, "middle_half": [2.5, 2.5]}


def test_every_stage_of_our_chunks_takes_time() -> None:
    """Context and steps make the total."""
    turn = our_chunks(Generator(tiny_model()))
    for parts in (turn(), turn(), turn()):
        assert set(parts) == {*STAGES, TOTAL}
        assert min(parts[name] for name in STAGES if name != "plan") > 0
        assert parts[TOTAL] == pytest.approx(parts["context"] + parts["steps"])


def test_stages_outside_the_comparison_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time in the up-sampler or the tokenizer counts there, and not in the total."""
    model, clock_s = tiny_model(), [0.0]

    def wait(*arguments: object) -> None:
        clock_s[0] += 1.0

    for module in (model.renderer.condition, model.tokenizer.decoder):
        module.register_forward_hook(wait)
    monkeypatch.setattr(contenders, "now_s", lambda device: clock_s[0])
    parts = our_chunks(Generator(model))()
    assert min(parts["condition"], parts["features"]) >= 1.0
    assert parts[TOTAL] == 0.0


def test_their_chunk_computes_a_whole_window_at_every_step() -> None:
    """All 13 latents, once a step and row."""
    model = tiny_model()
    config, dit = model.config, model.config.renderer.dit
    peer = peers.placed(lambda: peers.transformer(dit, 2), CPU, torch.float32)
    seen: list[tuple[int, ...]] = []
    peer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    with torch.inference_mode():
        their_chunks(model, peer, solver_of(config.schedule, 3))()
    assert seen == [(1, 13, dit.channels, dit.height, dit.width)] * 3


def test_rows_are_those_that_the_engine_computes() -> None:
    """One without guidance, two with it."""
    assert guided_rows(solver_of(preset("mini").schedule, 4)) == 1
    assert guided_rows(solver_of(preset("landiff").schedule, 50)) == 2


@torch.inference_mode()
def test_both_plan_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is a GOP's frames; the peer reads one token a call, prefix and context anew where a GOP begins."""
    model = tiny_model()
    model = replace(model, config=replace(model.config, sampling=SamplingConfig(guidance=1.5, temperature=0.8)))
    length = model.config.planner.max_len(model.config.text.planner_tokens)
    peer = peers.placed(lambda: peers.llama(model.config.planner, length), CPU, torch.float32)
    seen: list[int] = []
    peer.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    tokens = their_tokens(model, peer, StaticCache(peer.config, max_cache_len=length))
    for _ in range(2 * model.config.tokenizer.gop_tokens):
        next(tokens)
    gop = [1] * 5 + 12 * [3, 1, 1]
    prefix, context = model.config.planner.prefix_len(6), model.config.planner.plan_len(13)
    assert seen == [prefix + context + 1, *gop] * 2
    generator, channels = Generator(model), []
    monkeypatch.setattr(
        generator, "open", lambda *given: channels.append(Generator.open(generator, *given)) or channels[0]
    )
    turn = our_tokens(generator)
    before = generator.planned(channels[0])
    turn()
    assert generator.planned(channels[0]) >= before + model.config.tokenizer.frames
