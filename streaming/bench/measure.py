"""Figures of a watched video: arrivals and samples in, numbers out, without I/O.

Times are seconds of one monotonic clock unless a name says milliseconds. A frame is *fresh* when its number is higher
than every number before; a repeated frame is a standing picture, so it ends no gap. Where frames carry no marker, their
timestamps take the place of numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from streaming.bench import timeline
from streaming.bench.numbering import counts
from streaming.bench.recording import Arrival, BenchError, Recording, Rendered
from streaming.bench.timeline import Figures, Frame, percentiles, spread
from streaming.media.marker import CLOCK_WRAP_MS, Mark

GROWTH_SAMPLES = 5  # at either end, whose median counts


def fresh(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """Arrivals that show a frame for the first time. A number so high that the next one goes back is a wrong one."""
    listed = list(arrivals)
    marked = any(arrival.mark is not None for arrival in listed)
    placed = [(arrival, place) for arrival in listed if (place := _place(arrival, marked)) is not None]
    shown: list[Arrival] = []
    last = float("-inf")
    behind = [place for _, place in placed[1:]] + [float("inf")]
    for (arrival, place), following in zip(placed, behind, strict=True):
        if last < place and not last < following < place:
            shown.append(arrival)
            last = place
    return shown


def _place(arrival: Arrival, marked: bool) -> float | None:
    if marked:
        return None if arrival.mark is None else arrival.mark.index
    return arrival.media_s


def content(shown: Sequence[Arrival], fps: float) -> list[Frame]:
    """Fresh frames with their place in the video by number: a picture that stood still meanwhile makes them late."""
    return [Frame(one.at_s, one.media_s if one.mark is None else one.mark.index / fps) for one in shown]


def sent(shown: Sequence[Arrival]) -> list[Frame]:
    """Fresh frames with timestamp and the arrival of their last packet; what the decoder makes of them is left out."""
    return [Frame(one.packets.last_s, one.media_s) for one in shown if one.packets is not None]


def delay_ms(at_s: float, mark: Mark) -> float:
    """Milliseconds from a frame's clock mark, drawn just before encoding, to a time of the same clock."""
    apart_ms = (at_s * 1000 - mark.clock_ms) % CLOCK_WRAP_MS
    return apart_ms - CLOCK_WRAP_MS if apart_ms > CLOCK_WRAP_MS / 2 else apart_ms


def delays(shown: Sequence[Arrival], rendered: Sequence[Rendered]) -> Figures:
    """Ages of fresh frames, where the server's clock is the viewer's.

    `transport`: from just before encoding to the last packet. `hold`: from there until decoded. `frame_age`: from
    rendered until decoded, the whole of what lies between engine and eye.
    """
    marked = [(one, one.mark) for one in shown if one.mark is not None]
    ages = [
        (one.at_s - then_s) * 1000 for one, mark in marked if (then_s := rendered_s(rendered, mark.index)) is not None
    ]
    return {
        "transport_ms": spread(delay_ms(one.packets.last_s, mark) for one, mark in marked if one.packets is not None),
        "glass_to_glass_ms": spread(delay_ms(one.at_s, mark) for one, mark in marked),
        "frame_age_ms": spread(ages),
    }


def rendered_s(rendered: Sequence[Rendered], frame: int) -> float | None:
    """When a frame was rendered; None if that was before the first news, or never."""
    if not rendered or frame < rendered[0].end:
        return None
    return next((news.at_s for news in rendered if news.end > frame), None)


def by_stage(chunks: Iterable[Mapping[str, float]]) -> dict[str, Figures]:
    """Spread of milliseconds for each stage and for `total`, over many chunks."""
    values: dict[str, list[float]] = {}
    for chunk in chunks:
        for stage, ms in [*chunk.items(), ("total", sum(chunk.values()))]:
            values.setdefault(stage, []).append(ms)
    return {stage: spread(many) for stage, many in values.items()}


def memory(series: Sequence[tuple[float, float]], from_s: float) -> Figures:
    """End, peak and growth of a process' memory, from samples of (time, MB).

    Growth is from `from_s` to the end, of medians of a few samples; None when there are too few to tell the ends apart.
    """
    late = [size_mb for at_s, size_mb in series if at_s >= from_s]
    growth = None
    if len(late) >= 2 * GROWTH_SAMPLES:
        growth = round(statistics.median(late[-GROWTH_SAMPLES:]) - statistics.median(late[:GROWTH_SAMPLES]), 3)
    most = max(size_mb for _, size_mb in series)
    return {"end": series[-1][1], "most": most, "growth": growth, "growth_from_s": from_s}


def share_of_core(
    series: Sequence[tuple[float, float]], from_s: float = 0.0, to_s: float = float("inf")
) -> float | None:
    """Percent of one core that a process computed within a span, from samples of (time, seconds of computing)."""
    inside = [sample for sample in series if from_s <= sample[0] <= to_s]
    if len(inside) < 2 or inside[-1][0] <= inside[0][0]:
        return None
    return round(100 * (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]), 2)


def figures(recording: Recording, settle_s: float, growth_from_s: float) -> Figures:
    """All figures of a recording. Raises BenchError when it has fewer than two frames."""
    shown = fresh(recording.arrivals)
    if len(shown) < 2:
        raise BenchError(f"{len(recording.arrivals)} frames were decoded, {len(shown)} of them new; nothing to measure")
    last = recording.samples[-1][1] if recording.samples else {}
    fps = last.get("fps") or 1 / timeline.period_of(sent(shown) or content(shown, 1.0))
    begin_s = recording.begin_s + settle_s
    settled = [one for one in shown if begin_s <= one.at_s < recording.end_s]
    return {
        **timeline.intervals([one.at_s for one in shown], fps, begin_s, recording.end_s),
        **timeline.freezes([one.at_s for one in settled]),
        **timeline.jitter_ms(sent(settled)),
        "playback": timeline.playback(content(settled, fps), 1 / fps),
        **counts(recording.arrivals, fps),
        **(delays(settled, recording.rendered) if recording.same_clock else {}),
        "hold_ms": spread((one.at_s - one.packets.last_s) * 1000 for one in settled if one.packets is not None),
        **_network(recording, settled),
        **_server(recording, settle_s, growth_from_s),
    }


def _network(recording: Recording, settled: Sequence[Arrival]) -> Figures:
    """Bit rate and loss of the media."""
    lasted_s = settled[-1].at_s - settled[0].at_s if len(settled) > 1 else 0.0
    sizes = [one.packets.size for one in settled if one.packets is not None]
    received, lost = (recording.stats.get(name) for name in ("packetsReceived", "packetsLost"))
    return {
        "bitrate_kbps": round(sum(sizes) * 8 / 1000 / lasted_s, 1) if lasted_s else None,
        "frame_bytes": spread(sizes),
        "packet_loss": round(lost / (received + lost), 6) if received and lost is not None else None,
    }


def _server(recording: Recording, settle_s: float, growth_from_s: float) -> Figures:
    """What the server says of itself, and what its processes take; empty for one of another make."""
    if not recording.samples:
        return {}
    last = recording.samples[-1][1]
    factors = (report["realtime_factor"] for at_s, report in recording.samples if at_s >= settle_s)
    factor, least = percentiles((value for value in factors if value is not None), 0.5, 0.0)
    return {
        "realtime_factor": factor,
        "realtime_factor_least": least,
        "rung_changes": recording.rung_changes,
        "repeats": last["repeats"] - recording.samples[0][1]["repeats"],
        "chunk_ms": by_stage(chunk.ms for chunk in recording.chunks),
        "encode_ms": None if recording.encode_s is None else round(recording.encode_s * 1000, 3),
        "rss_mb": {name: memory(series, growth_from_s) for name, series in recording.memory.items()},
        "cpu_percent": {name: share_of_core(series, settle_s) for name, series in recording.computing.items()},
    }
