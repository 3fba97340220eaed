"""What is known of one viewer's connection, as one record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ViewerReport:
    """A viewer of a channel. What its receiver has not told yet is null."""

    number: int  # its place, from 0; free again for the next one when it leaves
    channel: str
    codec: str
    connected_s: float | None  # how long; null until it is
    rung: str  # "high" or "low"
    rung_changes: int
    loss: float | None  # share of packets that its last report calls lost
    remb_bps: int | None  # its estimate of its bandwidth
    round_trip_s: float | None
    playout_delay_s: float  # that it is told to hold pictures back, since it loses packets
    retransmissions: int  # packets sent again
    withheld: int  # packets that it asked for and did not get, since they would have filled its network
    keyframes: int  # sent
    keyframe_requests: int
