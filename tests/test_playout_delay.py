import pytest

from streaming.media.playout_delay import PlayoutConfig, PlayoutDelay
from streaming.media.rate import Feedback

CONFIG = PlayoutConfig()


class Receiver:
    """A receiver that reports ten times a second, on a clock of its own; 250 packets a second are sent."""

    def __init__(self) -> None:
        self.now_s, self.sent, self.lost = 100.0, 0, 0.0
        self.delay = PlayoutDelay()

    def watch(self, seconds: float, lost_share: float = 0.0, rtt_s: float | None = None) -> float:
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            self.sent += 25
            self.lost += 25 * lost_share
            requested, self.lost = int(self.lost), self.lost % 1
            self.delay.take(Feedback(self.sent, 1000 * self.sent, requested=requested, rtt_s=rtt_s), self.now_s)
        return self.delay.seconds


@pytest.mark.parametrize("lost_share", [0.0, 0.002])
def test_a_path_that_loses_next_to_nothing_needs_no_delay(lost_share: float) -> None:
    """Pictures are shown as soon as they are there."""
    assert Receiver().watch(30, lost_share, 0.1) == 0.0


@pytest.mark.parametrize(
    ("rtt_s", "wanted_s"), [(None, 0.35), (0.01, 0.35), (0.1, 0.35), (0.2, 0.6), (0.3, 0.85), (2.0, CONFIG.most_s)]
)
def test_losses_need_time_for_two_attempts(rtt_s: float | None, wanted_s: float) -> None:
    """Whatever the round trip, a packet and once more its repair come in time, within a limit."""
    receiver = Receiver()
    receiver.watch(2, 0.0, rtt_s)
    assert receiver.watch(2, 0.05, rtt_s) == pytest.approx(wanted_s)


def test_a_full_queue_is_no_long_path() -> None:
    """The shortest round trip counts, so that a network which is overrun holds pictures back no longer."""
    receiver = Receiver()
    receiver.watch(2, 0.0, 0.1)
    assert receiver.watch(5, 0.3, 0.6) == pytest.approx(0.35)


def test_the_delay_stays_while_there_are_losses() -> None:
    """It never falls before a minute without, and then it ends."""
    receiver = Receiver()
    assert receiver.watch(5, 0.05, 0.2) == pytest.approx(0.6)
    assert receiver.watch(CONFIG.calm_s - 1, 0.0, 0.05) == pytest.approx(0.6)
    assert receiver.watch(5, 0.02, 0.05) == pytest.approx(0.6)
    assert receiver.watch(CONFIG.calm_s + 10, 0.0, 0.05) == 0.0
