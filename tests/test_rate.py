from collections import deque

import pytest

from streaming.media.rate import STAY, Decision, Feedback, Move, Probe, RateConfig, RateController, Refresh, Rung

HIGH_BPS, LOW_BPS = 2_400_000, 200_000
CONFIG = RateConfig()


class Network:
    """A controller on a clock of its own, with a receiver that reports; 250 packets a second are sent."""

    def __init__(self, high_bps: int = HIGH_BPS) -> None:
        self.now_s = 100.0
        self.packets = self.octets = 0
        self.controller = RateController({Rung.HIGH: high_bps, Rung.LOW: LOW_BPS}, self.now_s)
        self.next: Decision = STAY  # that `wait` came to

    def say(self, after_s: float = 0.1, bps: int = HIGH_BPS, **what: object) -> object:
        """Feedback after some time in which the video was sent."""
        self.now_s += after_s
        self.packets += round(250 * after_s)
        self.octets += round(bps * after_s / 8)
        return self.controller.take(Feedback(self.packets, self.octets, **what), self.now_s)  # type: ignore[arg-type]

    def watch(self, seconds: float, **what: object) -> None:
        """A receiver that reports ten times a second, which changes nothing."""
        for _ in range(round(seconds * 10)):
            assert self.say(**what) == STAY

    def fall(self) -> Move:
        """What makes the viewer go down."""
        self.watch(2.0, lost_share=0.0, rtt_s=0.02)
        move = self.say(lost_share=0.9)
        assert isinstance(move, Move)
        return move

    def probes(self, **answer: object) -> list[Decision]:
        """What is decided from the next probe on until the rung changes; each probe gets the same answer."""
        decided = [self.next]
        while isinstance(probe := decided[-1], Probe):
            self.now_s += probe.seconds
            said = self.say(0.5, LOW_BPS, lost_share=0.0, resent_lost_share=0.0, asked_s=self.now_s, **answer)
            decided.append(self.controller.due(True, self.now_s) if said == STAY else said)
        return decided

    def wait(self) -> float:
        """Seconds until the next probe."""
        began_s = self.now_s
        while (decided := self.controller.due(True, self.now_s)) == STAY:
            self.now_s += 0.1
            assert self.now_s < began_s + 100, "there is no next probe"
        self.next = decided
        return self.now_s - began_s


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1])
def test_losses_that_are_repaired_change_nothing(share: float) -> None:
    """A viewer that loses a tenth of its packets, and asks for each, stays at the high rung."""
    network = Network()
    network.watch(60.0, requested=round(25 * share) or 1, lost_share=share, rtt_s=0.1)
    assert network.controller.rung is Rung.HIGH


def test_burst_of_losses_moves_down_at_once() -> None:
    """Requests for many packets are enough, before any report; then nothing is sent until the queue is empty."""
    network = Network()
    network.watch(2.0, lost_share=0.0)
    assert network.say(requested=15) == STAY
    move = network.say(requested=15)
    assert isinstance(move, Move)
    assert (move.rung, move.pause_s) == (Rung.LOW, CONFIG.drain_s)
    assert "30 packets lost" in move.reason


def test_what_is_not_repaired_needs_a_key_frame() -> None:
    """Where lost packets are not sent again the viewer moves down; at the low rung it gets a key frame at once."""
    network = Network()
    network.watch(2.0, lost_share=0.0)
    move = network.say(requested=5, withheld=2)
    assert isinstance(move, Move) and "2 lost packets not repaired" in move.reason
    assert network.say(requested=5, withheld=2) == Refresh()
    assert network.say(requested=5) == STAY


def test_few_packets_say_nothing() -> None:
    """Where little is sent, some lost packets are no reason, though they are a large share."""
    network = Network()
    for _ in range(20):
        network.now_s += 0.6
        network.packets += 4
        feedback = Feedback(network.packets, network.octets, requested=CONFIG.lost_least - 1)
        assert network.controller.take(feedback, network.now_s) == STAY


def test_growing_delay_moves_down() -> None:
    """A round trip far above the shortest one means that packets wait; a long one that does not grow means nothing."""
    far, near = Network(), Network()
    far.watch(20.0, rtt_s=0.9)
    near.watch(2.0, rtt_s=0.02)
    move = near.say(rtt_s=0.9)
    assert isinstance(move, Move)
    assert "0.90 s" in move.reason


@pytest.mark.parametrize("seconds", [2, 30])
def test_longer_route_is_no_delay(seconds: int) -> None:
    """A round trip that became longer, as the viewer went down or at the low rung, is not taken for a probe's doing."""
    network = Network()
    network.fall()
    for second in range(seconds):
        network.say(1.0, LOW_BPS, rtt_s=0.3 if second > seconds - 25 else 0.02)
    network.wait()
    assert network.probes(rtt_s=0.3)[-1] == Move(Rung.HIGH, 0.0, "probes came through")
    network.fall()
    network.say(1.0, LOW_BPS, rtt_s=0.3)
    network.wait()
    assert network.probes(rtt_s=0.4)[-1] == STAY


def test_estimate_counts_once_it_was_high() -> None:
    """A receiver's estimate grows slowly from nothing; when it falls below what is sent, the viewer moves down."""
    network = Network()
    network.watch(5.0, estimate_bps=300_000)
    network.watch(1.0, estimate_bps=2_500_000)
    network.watch(1.0, estimate_bps=2_000_000)
    move = network.say(estimate_bps=300_000)
    assert isinstance(move, Move)
    assert "300 of 2400 kbit/s" in move.reason


def test_estimate_of_little_video_says_nothing() -> None:
    """A receiver estimates no more than comes: neither what a video begins with, nor motion behind stillness, is much
    for its network."""
    network = Network()
    network.watch(1.0, bps=LOW_BPS // 2, estimate_bps=LOW_BPS)
    network.watch(2.0, bps=LOW_BPS // 2, estimate_bps=LOW_BPS // 10)
    network.watch(30.0, bps=LOW_BPS * 2, estimate_bps=LOW_BPS * 3)
    network.watch(30.0, estimate_bps=LOW_BPS * 4)


def test_dead_network_is_no_full_one() -> None:
    """After three seconds without a word the low rung begins at once: there is no queue to empty."""
    network = Network()
    network.watch(2.0, lost_share=0.0)
    assert network.say(3.0) == Move(Rung.LOW, 0.0, "no word for 3.0 s")


def test_silence_before_the_first_packet_is_none() -> None:
    """A receiver that was connected long before it got video has not been silent."""
    network = Network()
    network.controller.take(Feedback(0, 0), network.now_s)
    assert network.say(5.0) == STAY


def test_viewer_that_needs_key_frames_gets_its_own() -> None:
    """A third request within five seconds moves it to where it has no part in the others' key frames."""
    network = Network()
    network.watch(1.0)
    for _ in range(4):
        assert network.say(4.0 / 2, keyframe=True) == STAY or network.controller.rung is Rung.LOW
    assert network.controller.rung is Rung.LOW
    calm = Network()
    for _ in range(6):
        calm.watch(2.9)
        assert calm.say(0.1, keyframe=True) == STAY


def test_probes_grow_until_the_high_rung_is_near() -> None:
    """Two bursts and a third of a second at 1,560 kbit/s bring a viewer from 200 to 2,400 kbit/s."""
    network = Network()
    network.fall()
    assert network.wait() == pytest.approx(CONFIG.wait_s, abs=0.2)
    probes = [Probe(5_000, 0.0), Probe(13_650, 0.0), Probe(51_000, 0.3)]
    assert network.probes(rtt_s=0.03) == [*probes, Move(Rung.HIGH, 0.0, "probes came through")]
    assert network.controller.rung is Rung.HIGH


@pytest.mark.parametrize("answer", [{"rtt_s": 0.2}, {"rtt_s": 0.02, "keyframe": True, "lost_share": 0.5}])
def test_probe_that_is_held_back_or_lost_ends_the_attempt(answer: dict[str, object]) -> None:
    """The viewer stays where it is, and the next attempt waits."""
    network = Network()
    network.fall()
    network.wait()
    assert isinstance(network.next, Probe)
    network.now_s += network.next.seconds
    said = {"lost_share": 0.0, "asked_s": network.now_s} | answer
    assert network.say(0.5, LOW_BPS, **said) == STAY
    assert network.wait() > CONFIG.wait_s - 0.2
    assert network.controller.rung is Rung.LOW


def test_report_from_before_the_end_of_a_probe_does_not_judge_it() -> None:
    """Only an answer to what was sent after the probe tells what it did to the queue."""
    network = Network()
    network.fall()
    network.wait()
    began_s = network.now_s
    assert network.say(0.1, LOW_BPS, lost_share=0.0, rtt_s=0.02, asked_s=began_s - 0.1) == STAY
    assert network.controller.due(True, network.now_s) == STAY


def test_probe_without_answer_is_given_up() -> None:
    """The next one comes after a wait."""
    network = Network()
    network.fall()
    network.wait()
    assert network.wait() > CONFIG.answer_s + CONFIG.wait_s


def test_waits_grow_with_the_time_at_the_low_rung() -> None:
    """A network that is slow for hours is probed about once a minute."""
    network = Network()
    network.fall()
    for _ in range(40):
        network.wait()
        network.say(1.0, LOW_BPS, lost_share=0.5)
    assert CONFIG.longest_wait_s - 1 < network.wait() <= CONFIG.longest_wait_s + 1


def test_high_rung_that_does_not_last_makes_the_next_wait_longer() -> None:
    """Each failure within ten seconds doubles the wait; one high rung that lasts makes it short again."""
    network = Network()
    network.fall()
    waits = []
    for _ in range(3):
        waits.append(network.wait())
        network.probes(rtt_s=0.02)
        network.fall()
    assert waits[1:] == pytest.approx([2 * CONFIG.wait_s, 4 * CONFIG.wait_s], abs=0.3)
    network.wait()
    network.probes(rtt_s=0.02)
    network.watch(CONFIG.trial_s + 1)
    network.fall()
    assert network.wait() == pytest.approx(CONFIG.wait_s, abs=0.3)


def test_connection_without_probes_tries() -> None:
    """Where nothing can be sent twice, the high rung itself is the probe."""
    network = Network()
    network.fall()
    network.now_s += CONFIG.wait_s + 0.1
    assert network.controller.due(False, network.now_s) == Move(Rung.HIGH, 0.0, "to try")


def test_small_picture_needs_one_burst() -> None:
    """From 200 to 590 kbit/s a burst that is smaller than the first one is enough."""
    network = Network(590_000)
    network.fall()
    network.wait()
    burst, last, move = network.probes(rtt_s=0.02)
    assert isinstance(burst, Probe) and isinstance(last, Probe) and isinstance(move, Move)
    assert burst.octets < CONFIG.burst_octets and last.seconds == CONFIG.probe_s


@pytest.mark.parametrize("rates", [(200_000, 200_000), (200_000, 0), (100_000, 200_000)])
def test_rungs_are_two(rates: tuple[int, int]) -> None:
    """The low rung must be below the high one."""
    with pytest.raises(ValueError, match=str(rates[1])):
        RateController(dict(zip(Rung, rates, strict=True)), now_s=0.0)


def test_frequent_feedback_costs_no_more_each() -> None:
    """What is kept of a receiver does not grow with how often it reports, but for half a second of packets."""
    network = Network()
    for _ in range(2000):
        network.say(0.001, rtt_s=0.02, estimate_bps=5_000_000)
    kept = [len(one) for one in vars(network.controller).values() if isinstance(one, deque)]
    assert max(kept) <= 2 * CONFIG.window_s * 1000 + 2
