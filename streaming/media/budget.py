"""What one receiver may cost: packets of its own that are heard, and bytes that are sent again. Arithmetic only."""

from __future__ import annotations

from streaming.media.rtp_sender import HISTORY

GAP_S = 0.1  # a packet is not sent again sooner than this
SAVED_S = 1.0  # seconds of bytes to send again that can be saved up


class Allowance:
    """What may be spent, which grows with time up to a limit."""

    def __init__(self, rate: float, most: float, now_s: float) -> None:
        self._rate, self._most, self._left, self._then_s = rate, most, most, now_s

    def spend(self, amount: float, now_s: float) -> bool:
        """False, and nothing is spent, where there is less."""
        self._left = min(self._left + (now_s - self._then_s) * self._rate, self._most)
        self._then_s = now_s
        if amount > self._left:
            return False
        self._left -= amount
        return True


class ResendBudget:
    """Bytes that may be sent again, and when each packet was sent again last."""

    def __init__(self, rate_bytes_s: float, now_s: float) -> None:
        self.refused = 0  # packets for which there was nothing left
        self._allowance = Allowance(rate_bytes_s, rate_bytes_s * SAVED_S, now_s)
        # One entry for each place in the sender's history, so that it cannot grow.
        self._resent: dict[int, tuple[int, float]] = {}

    def spend(self, sequence_number: int, size: int, now_s: float) -> bool:
        place = sequence_number % HISTORY
        last_number, last_s = self._resent.get(place, (-1, 0.0))
        if last_number == sequence_number and now_s - last_s < GAP_S:
            return False
        if not self._allowance.spend(size, now_s):
            self.refused += 1
            return False
        self._resent[place] = (sequence_number, now_s)
        return True
