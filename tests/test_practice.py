"""What is rendered when there is time, so that the first cut need not wait for it."""

import logging
from dataclasses import dataclass

import pytest
from tiny import tiny_model

from engine.live.generator import Generator
from engine.live.offline import finished, next_chunk
from engine.live.practice import Practice


@dataclass
class _Channel:
    state: object
    least_steps: int


def _recorded(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("captured")]


def test_a_cut_records_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Behind the practice a chunk in the steps of a cut runs from what is recorded; the practice ends."""
    generator = Generator(tiny_model())
    channel = generator.open("a red ball", seed=3, steps=4)
    for _ in range(2):
        list(finished(next_chunk(generator, channel)))
    practice = Practice(generator)
    with caplog.at_level(logging.DEBUG, "engine.runtime.graphs"):
        while practice.work([_Channel(channel, 1)]):
            pass
        assert len(_recorded(caplog)) >= 3
        assert not practice.work([_Channel(channel, 1)])
        caplog.clear()
        for steps in (2, 1):
            while generator.needs_plan(channel):
                generator.plan(channel)
            list(finished(generator.chunk(channel, steps).units))
        assert _recorded(caplog) == []
        list(finished(next_chunk(generator, channel)))
        while generator.needs_plan(channel):
            generator.plan(channel)
        list(finished(generator.chunk(channel, 3).units))
        assert _recorded(caplog)


def test_a_channel_whose_steps_are_fixed_needs_none() -> None:
    """Its cuts take as many as all of its chunks."""
    generator = Generator(tiny_model())
    channel = generator.open("a red ball", seed=3, steps=2)
    assert not Practice(generator).work([_Channel(channel, 2)])
