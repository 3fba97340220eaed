"""The clock of a file's packets where it jumps: the pictures after a jump follow those before it, in their own rhythm.

Broadcasts are cut, recorders start again, and files are put end to end. A new clock is told by its times alone, as
FFmpeg tells it, whether the file marks it or not. In files that cannot hold a jump a long pause is one.
"""

from __future__ import annotations

from fractions import Fraction

from av import Packet

_PAUSE_S = 10  # the longest between two packets, in formats whose clocks jump
_LONG_PAUSE_S = 30 * 3600  # in others
_BACK_S = Fraction(1, 10)  # decoding times that go back by more are of another clock
_MOST_REORDERED = 16  # frames; formats whose clocks do not jump may leave decoding times to be guessed


class PacketClock:
    """Follows the packets of one stream, in file order."""

    def __init__(self, jumps: bool, time_base: Fraction, period_s: Fraction) -> None:
        """`jumps`: whether the format's clock may; a packet without a length lasts `period_s`."""
        self._pause = round((_PAUSE_S if jumps else _LONG_PAUSE_S) / time_base)
        back_s = _BACK_S if jumps else max(_BACK_S, _MOST_REORDERED * period_s)
        self._back, self._period = round(back_s / time_base), round(period_s / time_base)
        self._last: int | None = None  # decoding time of the packet before, and when the next one is due
        self._due = 0
        self.shift = 0  # ticks that are added to the file's times

    def follow(self, packet: Packet) -> bool:
        """Sets a packet's times to those of the first clock. Returns whether another clock begins with it."""
        jumped = False
        if packet.dts is not None:
            time = packet.dts + self.shift
            if self._last is not None and (abs(time - self._due) > self._pause or time < self._last - self._back):
                jumped = True
                self.shift, time = self.shift + self._due - time, self._due
            self._last, self._due = time, time + (packet.duration or self._period)
            packet.dts = time
        if packet.pts is not None:
            packet.pts += self.shift
        return jumped
