"""How long a receiver should hold pictures back, so that packets which are sent again come in time for them. No I/O.

A receiver on a path without losses shows a picture as soon as it has it. One that loses packets gets them again a round
trip later, and its own buffer grows too little for that: the picture stands for a moment and then jumps. The header
extension playout-delay of WebRTC tells it how long to wait; it gets there by playing a little slower for some seconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from streaming.media.rate import Feedback, Lately

STEP_S = 0.05  # of the delay, so that not every round trip changes it


@dataclass(frozen=True, slots=True)
class PlayoutConfig:
    """Limits; times in seconds."""

    window_s: float = 5.0  # over which packets that are asked for again are counted
    lost_share: float = 0.005  # of the packets sent in it: from here on pictures are held back
    lost_least: int = 5  # packets
    calm_s: float = 60.0  # without such losses, until they are not any more
    notice_s: float = 0.1  # until a receiver notices a loss: the last packet of a frame is missed at the next one
    attempts: int = 2  # to send a packet again, for which there is time
    attempt_least_s: float = 0.12  # a receiver asks again no sooner, however short the round trip
    attempt_share: float = 1.2  # of the round trip: an attempt with what both ends need
    most_s: float = 1.0
    memory_s: float = 60.0  # of the shortest round trip


class PlayoutDelay:
    """Of one receiver. Times are in seconds and never go back."""

    def __init__(self, config: PlayoutConfig | None = None) -> None:
        self._config = config or PlayoutConfig()
        # Of round trips, since a queue on the way is none of the path's length.
        self._shortest = Lately(min, self._config.memory_s)
        self._window: deque[tuple[float, int, int]] = deque()  # time, packets sent by then, packets asked for then
        self._requested = 0  # packets, in the window
        self._lossy_s = float("-inf")  # when there were losses last
        self.seconds = 0.0

    def take(self, feedback: Feedback, now_s: float) -> float:
        """The delay after an RTCP packet of the receiver; 0.0 where it need not wait."""
        config = self._config
        if feedback.rtt_s is not None:
            self._shortest.note(feedback.rtt_s, now_s)
        self._window.append((now_s, feedback.packets, feedback.requested))
        self._requested += feedback.requested
        while self._window[0][0] < now_s - config.window_s:
            self._requested -= self._window.popleft()[2]
        sent = feedback.packets - self._window[0][1]
        if self._requested >= max(config.lost_least, config.lost_share * sent):
            self._lossy_s = now_s
            self.seconds = max(self.seconds, self._needed_s())
        elif now_s - self._lossy_s > config.calm_s:
            self.seconds = 0.0
        return self.seconds

    def _needed_s(self) -> float:
        config, round_trip_s = self._config, self._shortest.value or 0.0
        attempt_s = max(config.attempt_least_s, round_trip_s * config.attempt_share)
        steps = math.ceil((config.notice_s + config.attempts * attempt_s) / STEP_S)
        return min(config.most_s, round(STEP_S * steps, 2))
