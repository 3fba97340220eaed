"""A thousandth hop costs what an early one does."""

import pytest
import torch
from tiny import tiny_config, tiny_model

from engine.bench import growth
from engine.bench.growth import cycle_hops, least_hops, measure_growth
from engine.bench.hop_cost import advance
from engine.bench.rounds import WARM_UPS, Clock
from engine.config import preset
from engine.live.generator import ChannelState, Generator

CLOCK = Clock(torch.device("cpu"))


def test_ends_are_whole_cycles_of_groups_against_hops() -> None:
    """Groups of 13 frames and hops of 6 meet again after 13 hops."""
    assert cycle_hops(preset("mini")) == 13
    assert least_hops(tiny_config()) == 55


def test_too_short_a_video_is_refused() -> None:
    """The message says how long it must be."""
    with pytest.raises(ValueError, match="54 hops asked for, 55 are the fewest"):
        measure_growth(Generator(tiny_model()), 54, CLOCK)


def test_a_long_video_and_a_young_one_are_compared_at_equal_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are at the same place in the cycle whenever they take turns, and the long one is as long as asked."""
    hops: dict[int, list[int]] = {}

    def noting(generator: Generator, channel: ChannelState) -> None:
        hops.setdefault(id(channel), []).append(channel.hop)
        advance(generator, channel)

    monkeypatch.setattr(growth, "advance", noting)
    monkeypatch.setattr(growth, "_CYCLES", 1)
    figures = measure_growth(Generator(tiny_model()), 31, CLOCK)
    old, young = hops.values()
    assert (len(old) - len(young)) % 13 == 0
    assert old == list(range(31 + WARM_UPS + 13))
    assert figures["young_hops"] == len(young) - WARM_UPS - 13
    assert [point["hop"] for point in figures["series"]] == list(range(1, 32))
    assert figures["old_hop_s"]["rounds"] == figures["last_hops_s"]["rounds"] == 13
    assert figures["rss_mb"]["end"] > 0
    assert 0.2 < figures["ratio"] < 5


@pytest.mark.parametrize(("factor", "equal"), [(1.0, True), (1.015, True), (1.1, False), (0.8, False)])
def test_a_difference_beyond_noise_is_told(factor: float, equal: bool) -> None:
    """Turn by turn, so that a machine that slows down for both hides nothing."""
    young = [1.0 + 0.5 * (turn % 7) for turn in range(26)]
    old = [factor * seconds * (1.0 + 0.001 * (turn % 2)) for turn, seconds in enumerate(young)]
    assert growth._compared(young, old)["equal"] is equal
