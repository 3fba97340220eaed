import asyncio

import pytest

from streaming.media.adaptation import Adaptation
from streaming.media.rate import STAY, Decision, Feedback, Move, Probe, RateController, Refresh, Rung

RATES = {Rung.HIGH: 800_000, Rung.LOW: 200_000}


class Script(RateController):
    """Decides what it is told to."""

    def __init__(self, *decisions: Decision) -> None:
        super().__init__(RATES, 0.0)
        self.decisions = list(decisions)

    def take(self, feedback: Feedback, now_s: float) -> Decision:
        return self.decisions.pop(0)

    def due(self, can_probe: bool, now_s: float) -> Decision:
        return STAY


class Ends:
    """A stream and a link that note what is asked of them."""

    can_probe = True

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.asked_report = asyncio.Event()
        self.held_s: float | None = None

    def pause(self) -> None:
        self.asked.append("pause")

    def change(self, rung: Rung) -> None:
        self.asked.append(rung)

    def request_keyframe(self) -> None:
        self.asked.append("key frame")

    def hold(self, delay_s: float) -> None:
        self.held_s = delay_s

    def limit(self, rate_bps: int) -> None:
        self.asked.append(rate_bps)

    def probe(self, size: int) -> None:
        self.asked.append(size)

    async def ask_report(self) -> None:
        self.asked_report.set()


def adaptation(*decisions: Decision) -> tuple[Adaptation, Ends]:
    ends = Ends()
    made = Adaptation("v", ends, Script(*decisions))
    made.link = ends
    return made, ends


async def test_change_of_rung_pauses_first() -> None:
    """What was sent is not sent again, and the new rung begins after the pause."""
    one, ends = adaptation(Move(Rung.LOW, 0.01, "slow"))
    one.heard(Feedback(0, 0))
    assert ends.asked == ["pause", 200_000]
    await asyncio.sleep(0.05)
    assert ends.asked == ["pause", 200_000, Rung.LOW]
    assert one.changes == 1


async def test_broken_picture_gets_a_key_frame() -> None:
    """It is asked for at the rung that there is."""
    one, ends = adaptation(Refresh())
    one.heard(Feedback(0, 0))
    assert ends.asked == ["key frame"]


async def test_lost_packets_let_pictures_wait() -> None:
    """The receiver that asks for many is told to hold pictures back."""
    one, ends = adaptation(STAY, STAY)
    one.heard(Feedback(0, 0))
    assert ends.held_s == 0.0
    one.heard(Feedback(100, 100_000, requested=10))
    assert ends.held_s and ends.held_s > 0.2


@pytest.mark.parametrize(("seconds", "parts"), [(0.1, [1000] * 5), (0.0, [5000])])
async def test_probe_is_spread_and_ends_with_a_question(seconds: float, parts: list[int]) -> None:
    """Its bytes go out in small parts or at once, and then the receiver is asked for a report."""
    one, ends = adaptation(Probe(5000, seconds))
    one.heard(Feedback(0, 0))
    async with asyncio.timeout(5):
        await ends.asked_report.wait()
    assert ends.asked == parts


@pytest.mark.parametrize("decision", [Move(Rung.LOW, 0.01, "slow"), Probe(5000, 0.04)])
async def test_closed_adaptation_does_nothing_more(decision: Decision) -> None:
    """A pause or a probe that runs when the viewer ends has no further effect; closing twice does no harm."""
    one, ends = adaptation(decision)
    one.heard(Feedback(0, 0))
    one.close()
    one.close()
    asked = list(ends.asked)
    await asyncio.sleep(0.05)
    assert ends.asked == asked
    assert not ends.asked_report.is_set()
