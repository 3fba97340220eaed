"""Costs counted on the modules against sums written out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from engine.config import preset
from engine.loading.costs import PROMPT_TOKENS, Stage, group_s, hop_s, stages
from engine.loading.inspect_model import modules_of
from engine.loading.model import build


def test_spans_and_bounds() -> None:
    """Calls are spread over the video they make, and the slower of arithmetic and memory decides."""
    stage = Stage("x", flops=4e12, traffic_bytes=1e9, calls=3, span_s=6.0)
    assert stage.per(2.0) == (4e12, 1e9)
    assert stage.bound_ms(2.0, tflops=100, gb_s=1000) == pytest.approx(40)
    assert stage.bound_ms(2.0, tflops=1e6, gb_s=10) == pytest.approx(100)


def test_landiff_counts() -> None:
    """Planner token, denoising step and tokenizer equal the sums of their matrix products."""
    config = preset("landiff")
    assert (group_s(config), hop_s(config)) == (6.5, 3.0)
    token, group, _, step, _ = stages(config, build(config))
    width, mlp, layers = 2048, 11008, 24
    weights = layers * (4 * width**2 + 3 * width * mlp) + 2055 * width
    middle = 3 + PROMPT_TOKENS + 2 * 1244 - 1244 // 2 + 1
    assert token.flops == pytest.approx(2 * (2 * weights + 4 * layers * width * middle), rel=1e-6)
    assert token.calls == 1244
    count, hidden = 226 + 13 * 1350, 1920
    layer = 2 * 12 * hidden**2 * count + 4 * count**2 * hidden
    zeros = 2 * hidden**2 * count
    assert step.flops == pytest.approx(2 * (45 * layer + 15 * zeros), rel=2e-2)
    assert step.calls == 50
    tokens, size = 13 * 1350 + 1218, 768
    assert group.flops == pytest.approx(12 * (2 * 12 * size**2 * tokens + 4 * tokens**2 * size), rel=2e-2)


def test_mini_reads_its_prompt_half_once_a_hop() -> None:
    """A window is opened once for all of its steps; an anchored hop has two windows."""
    for windows, config in enumerate((dataclasses.replace(preset("mini"), anchors=()), preset("mini")), start=1):
        costs = {stage.name: stage for stage in stages(config, modules_of(config))}
        assert costs["open a window"].calls == windows and costs["denoising step"].calls == windows * config.steps
    assert all(stage.flops > 0 and stage.traffic_bytes > 0 for stage in costs.values())
