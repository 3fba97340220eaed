"""Which of two bit rates a viewer can take: what its receiver reports, and times, go in; decisions come out. No I/O.

A viewer begins at the high rung. It goes down as soon as its network loses a large share of the packets, holds them
back ever longer, or was dead for a while; a few losses are repaired by retransmissions and are no reason. It goes up
again after probes: packets that it has already are sent once more beside the video. First come bursts, which grow, and
behind each the receiver is asked for the round trip: a burst delays it by its size over the bit rate that there is.
Then comes a third of a second near the high rung's bit rate. A probe that is lost or delayed ends the attempt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Rung(StrEnum):
    """One of the bit rates in which a picture is encoded."""

    HIGH = "high"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class RateConfig:
    """Limits; times in seconds, shares from 0 to 1."""

    window_s: float = 0.5  # over which requested packets are counted
    lost_share: float = 0.2  # of the packets sent in a window: more cannot be repaired
    lost_least: int = 10  # packets
    report_share: float = 0.25  # lost, of one receiver report
    delay_s: float = 0.5  # over the shortest round trip of the last one or two of
    memory_s: float = 60.0
    estimate_share: float = 0.5  # of the bit rate sent: less is overrun, if the estimate was all of it before
    estimate_s: float = 5.0  # of the last one or two of which: estimates grow slowly, and low ones say nothing
    silence_s: float = 2.0  # without RTCP: the network was dead
    keyframes: int = 3  # requests in `keyframes_s`: what is lost is not repaired
    keyframes_s: float = 5.0
    drain_s: float = 0.4  # that nothing is sent to an overrun network, so that its queue empties
    trial_s: float = 10.0  # at the high rung; who is overrun sooner waits twice as long before the next probe
    wait_s: float = 3.0  # at the low rung, before the first probe
    wait_share: float = 0.15  # of the time at the low rung, before each further one
    longest_wait_s: float = 60.0
    burst_octets: int = 5_000  # of the first probe, sent at once: at 300 kbit/s it delays what follows by 0.13 s
    burst_factor: int = 3  # by which each further one is larger
    probe_delay_s: float = 0.07  # over the shortest round trip at the low rung, which a probe may cause
    route_s: float = 10.0  # of the last one or two of which that is the shortest
    probe_s: float = 0.3  # length of the last probe, which is no burst
    probe_share: float = 0.1  # that a probe may lose
    answer_s: float = 2.5  # for the report on a probe
    enough: float = 0.65  # of the high rung's bit rate: what probes must find room for


@dataclass(frozen=True, slots=True)
class Stay:
    """Nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Move:
    """Change to a rung, with its next key frame; nothing is sent for `pause_s` before."""

    rung: Rung
    pause_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Send that much beside the video, at once or spread over `seconds`; then let the receiver report."""

    octets: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Refresh:
    """Send a key frame: the picture cannot be repaired, and the receiver may wait for seconds before it says so."""


Decision = Stay | Move | Probe | Refresh
STAY = Stay()


@dataclass(frozen=True, slots=True)
class Feedback:
    """What one RTCP packet of the receiver says, and how much had been sent by then."""

    packets: int  # of video, sent since the beginning
    octets: int
    requested: int = 0  # packets to send again that were not asked for before
    withheld: int = 0  # packets that are not sent again, since the budget is spent
    keyframe: bool = False  # one is asked for
    lost_share: float | None = None  # of the video's packets since the last report
    resent_lost_share: float | None = None  # of the retransmissions, probes among them
    rtt_s: float | None = None  # round trip of the sender report that this answers
    asked_s: float | None = None  # when that report was sent
    estimate_bps: int | None = None  # the receiver's bandwidth (REMB): it knows no more than what is sent


class RateController:
    """Decisions for one viewer. Times are in seconds and never go back."""

    def __init__(self, rates_bps: Mapping[Rung, int], now_s: float, config: RateConfig | None = None) -> None:
        high_bps, low_bps = rates_bps[Rung.HIGH], rates_bps[Rung.LOW]
        if not 0 < low_bps < high_bps:
            raise ValueError(f"the low rung's {low_bps} bit/s must be above 0 and below the high rung's {high_bps}")
        self.rung = Rung.HIGH
        self.rates_bps = rates_bps
        self._high_bps, self._low_bps = high_bps, low_bps
        self._config = config or RateConfig()
        self._since_s = now_s  # when the rung began
        self._tried = False  # True at a high rung that probes led to
        self._penalty = 1  # factor of waits, for high rungs that did not last
        self._heard_s: float | None = None
        self._shortest = Lately(min, self._config.memory_s)  # round trip
        self._unprobed = Lately(min, self._config.route_s)  # round trip at the low rung, while no probe is on its way
        self._sent: deque[tuple[float, int, int]] = deque()  # time, packets, bytes: of the last two windows
        self._lost: deque[tuple[float, int]] = deque()  # time, packets: of the last window
        self._most_bps = Lately(max, self._config.estimate_s)  # that the receiver estimated
        self._keyframes: deque[float] = deque(maxlen=self._config.keyframes)
        self._probe: Probe | None = None  # the last one of this attempt
        self._probed_s: float | None = None  # when the last probe ends, until it is judged
        self._probe_at_s = float("inf")  # when the next one may

    def take(self, feedback: Feedback, now_s: float) -> Decision:
        """What is to be done after an RTCP packet."""
        silence_s = 0.0 if self._heard_s is None else now_s - self._heard_s
        was_sent = bool(self._sent) and self._sent[-1][1] > 0
        self._note(feedback, now_s)
        if self.rung is Rung.HIGH:
            if was_sent and silence_s > self._config.silence_s:
                # What was lost meanwhile is too much to repair. The network's queue is empty.
                return self._down(f"no word for {silence_s:.1f} s", 0.0, now_s)
            reason = self._overrun(feedback, now_s)
            return self._down(reason, self._config.drain_s, now_s) if reason else STAY
        decision = STAY if self._probed_s is None else self._judge(feedback, self._probed_s, now_s)
        return Refresh() if feedback.withheld and decision == STAY else decision

    def due(self, can_probe: bool, now_s: float) -> Decision:
        """What is to be done without a word of the receiver; to be asked some times a second.

        A connection on which no probe can be sent goes up to try.
        """
        if self.rung is Rung.HIGH:
            if now_s - self._since_s > self._config.trial_s:
                self._penalty = 1
            return STAY
        if self._probed_s is not None:
            if now_s > self._probed_s + self._config.answer_s:
                self._rest(now_s)
            return STAY
        if now_s < self._probe_at_s:
            return STAY
        if not can_probe:
            self._change(Rung.HIGH, now_s)
            return Move(Rung.HIGH, 0.0, "to try")
        self._probe = self._next_probe(self._probe)
        self._probed_s = now_s + self._probe.seconds
        return self._probe

    def _next_probe(self, last: Probe | None) -> Probe:
        """What follows a probe that came through; None began nothing yet."""
        config, enough_bps = self._config, self._config.enough * self._high_bps
        largest = round(enough_bps * config.probe_delay_s / 8)  # is delayed as much as allowed where there is enough
        if last is None:
            return Probe(min(config.burst_octets, largest), 0.0)
        if last.octets < largest:
            return Probe(min(last.octets * config.burst_factor, largest), 0.0)
        return Probe(round((enough_bps - self._low_bps) / 8 * config.probe_s), config.probe_s)

    def _note(self, feedback: Feedback, now_s: float) -> None:
        self._heard_s = now_s
        self._sent.append((now_s, feedback.packets, feedback.octets))
        while len(self._sent) > 2 and self._sent[1][0] <= now_s - 2 * self._config.window_s:
            self._sent.popleft()
        if feedback.requested:
            self._lost.append((now_s, feedback.requested))
        while self._lost and self._lost[0][0] < now_s - self._config.window_s:
            self._lost.popleft()
        if feedback.keyframe:
            self._keyframes.append(now_s)
        if feedback.rtt_s is not None:
            self._shortest.note(feedback.rtt_s, now_s)
            if self.rung is Rung.LOW and self._probed_s is None:
                self._unprobed.note(feedback.rtt_s, now_s)
        if feedback.estimate_bps is not None:
            self._most_bps.note(feedback.estimate_bps, now_s)

    def _overrun(self, feedback: Feedback, now_s: float) -> str | None:
        """Why the network cannot take the high rung; None if it can."""
        config = self._config
        (_, packets, octets), seconds = self._sent[0], now_s - self._sent[0][0]
        lost, packets_sent = sum(count for _, count in self._lost), feedback.packets - packets
        share = config.lost_share * packets_sent * config.window_s / seconds if seconds else 0.0
        if feedback.withheld:
            return f"{feedback.withheld} lost packets not repaired"
        if lost >= max(config.lost_least, share):
            return f"{lost} packets lost in {config.window_s} s"
        if feedback.lost_share is not None and feedback.lost_share > config.report_share:
            return f"{feedback.lost_share:.0%} of the packets lost"
        shortest_s = self._shortest.value or 0.0
        if feedback.rtt_s is not None and feedback.rtt_s > shortest_s + config.delay_s:
            return f"round trip of {feedback.rtt_s:.2f} s"
        if len(self._keyframes) == config.keyframes and now_s - self._keyframes[0] < config.keyframes_s:
            return f"{config.keyframes} key frames asked for in {config.keyframes_s:.0f} s"
        if feedback.estimate_bps is not None and seconds > config.window_s:
            sent_bps = (feedback.octets - octets) * 8 / seconds
            had_bps = self._most_bps.value or 0.0
            fell = feedback.estimate_bps < config.estimate_share * sent_bps and had_bps >= sent_bps
            # Where no more is sent than at the low rung, that would help nobody.
            if fell and sent_bps > self._low_bps:
                return f"{feedback.estimate_bps / 1000:.0f} of {sent_bps / 1000:.0f} kbit/s come through"
        return None

    def _judge(self, feedback: Feedback, probed_s: float, now_s: float) -> Decision:
        """Ends or continues an attempt to go up, by what is heard during and after a probe."""
        config = self._config
        # The route may have become longer since the viewer came.
        usual_s = self._shortest.value if self._unprobed.value is None else self._unprobed.value
        longest_s = (usual_s or 0.0) + config.probe_delay_s
        lost = max(feedback.lost_share or 0.0, feedback.resent_lost_share or 0.0)
        if lost > config.probe_share or (feedback.rtt_s is not None and feedback.rtt_s > longest_s):
            self._rest(now_s)
            return STAY
        if feedback.asked_s is None or feedback.asked_s < probed_s:
            return STAY
        self._probed_s, self._probe_at_s = None, now_s
        if self._probe is not None and not self._probe.seconds:
            return STAY
        self._change(Rung.HIGH, now_s)
        return Move(Rung.HIGH, 0.0, "probes came through")

    def _down(self, reason: str, pause_s: float, now_s: float) -> Decision:
        failed = self._tried and now_s - self._since_s < self._config.trial_s
        self._penalty = self._penalty * 2 if failed else 1
        self._change(Rung.LOW, now_s)
        self._rest(now_s)
        return Move(Rung.LOW, pause_s, reason)

    def _change(self, rung: Rung, now_s: float) -> None:
        self.rung, self._since_s, self._tried, self._probe = rung, now_s, rung is Rung.HIGH, None
        self._unprobed = Lately(min, self._config.route_s)
        self._most_bps = Lately(max, self._config.estimate_s)
        for history in (self._sent, self._lost, self._keyframes):
            history.clear()

    def _rest(self, now_s: float) -> None:
        """Begins to wait for the next attempt, the longer the longer the network has been slow."""
        config = self._config
        self._probed_s, self._probe = None, None
        wait_s = max(config.wait_s, config.wait_share * (now_s - self._since_s)) * self._penalty
        self._probe_at_s = now_s + min(wait_s, config.longest_wait_s)


class Lately:
    """The least or the most of the last one or two spans of time; what is older is forgotten."""

    def __init__(self, choose: Callable[[float, float], float], span_s: float) -> None:
        """`choose`: min or max."""
        self._choose, self._span_s, self._until_s = choose, span_s, float("-inf")
        self._now: float | None = None  # of this span
        self.value: float | None = None  # of this span and the one before; None before the first

    def note(self, value: float, now_s: float) -> None:
        if now_s >= self._until_s:
            self.value, self._now, self._until_s = self._now, None, now_s + self._span_s
        self._now, self.value = (
            value if known is None else self._choose(known, value) for known in (self._now, self.value)
        )
