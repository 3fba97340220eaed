"""From a prompt to a changed pixel, and where the time went. Pure: a recording in, figures out.

The viewer itself sees the change (`change.py`); what the server says of frames is used for the split alone, and is
held against what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from streaming.bench.change import Seen, first_change
from streaming.bench.measure import delay_ms, fresh, rendered_s
from streaming.bench.recording import Arrival, Change, Recording
from streaming.bench.timeline import Figures, spread

SETTLED_S = 3.0  # after a change, until the picture has only its own motion
STAGES = ("answer", "wait", "plan", "render", "decode", "buffer", "encode", "transport", "jitter_buffer", "appear")


def figures(recording: Recording) -> Figures:
    """All prompt changes of a recording: how long until the picture changed, by mode, and the parts of it."""
    seen = [Seen(one.at_s, one.sketch) for one in recording.arrivals]
    shown = fresh(recording.arrivals)
    rows, since_s = [], float("-inf")
    for place, change in enumerate(recording.changes):
        # What comes behind the next change is the work of that one.
        until_s = recording.changes[place + 1].sent_s if place + 1 < len(recording.changes) else recording.end_s
        within = [frame for frame in seen if frame.at_s < until_s]
        pixel_s = first_change(within, change.sent_s, since_s)
        since_s = float("-inf") if pixel_s is None else pixel_s + SETTLED_S
        rows.append(_one(recording, change, pixel_s, shown))
    unseen = [f"{row['prompt']!r} changed nothing that can be seen" for row in rows if row["pixel_s"] is None]
    early = [
        f"{row['prompt']!r}: the picture changed {-row['appear_frames']} frames before the server's frame number"
        for row in rows
        if row["appear_frames"] is not None and row["appear_frames"] < -1
    ]
    return {
        "prompt_to_pixel_s": {
            mode: spread(row["pixel_s"] for row in rows if row["mode"] == mode and row["pixel_s"] is not None)
            for mode in sorted({row["mode"] for row in rows})
        },
        "prompt_to_frame_s": spread(row["frame_s"] for row in rows if row["frame_s"] is not None),
        "prompt_split_ms": {
            stage: spread(row["split_ms"][stage] for row in rows if row["split_ms"].get(stage) is not None)
            for stage in STAGES
        },
        "prompts": rows,
        "failed": recording.refused + unseen + early,
    }


def _one(recording: Recording, change: Change, pixel_s: float | None, shown: Sequence[Arrival]) -> Figures:
    first = None
    if change.frame is not None:
        after = (one for one in shown if one.at_s >= change.sent_s and one.mark is not None)
        first = next((one for one in after if one.mark is not None and one.mark.index >= (change.frame or 0)), None)
    new = next((one for one in shown if one.at_s == pixel_s), None)
    frames = None
    if new is not None and new.mark is not None and change.frame is not None:
        frames = new.mark.index - change.frame
    return {
        "prompt": change.prompt,
        "mode": change.mode,
        "pixel_s": None if pixel_s is None else round(pixel_s - change.sent_s, 3),
        "frame_s": None if first is None else round(first.at_s - change.sent_s, 3),
        "appear_frames": frames,  # from the server's frame number to the first that looks different
        "split_ms": _split(recording, change, first, pixel_s),
    }


def _split(recording: Recording, change: Change, first: Arrival | None, pixel_s: float | None) -> Figures:
    """Milliseconds of each stage, in order; their sum is the whole. Without the server's own times there is little."""
    parts: Figures = {}
    if change.answered_s is not None:
        parts["answer"] = change.answered_s - change.sent_s
    if first is None or first.mark is None or first.packets is None or not recording.same_clock:
        return _milliseconds(parts)
    made_s = rendered_s(recording.rendered, change.frame or 0)
    on_air_s = first.packets.last_s - delay_ms(first.packets.last_s, first.mark) / 1000
    if made_s is not None and change.answered_s is not None:
        stages = _stages(recording, change.frame or 0)
        engine_s = made_s - change.answered_s
        parts["wait"] = engine_s - sum(stages.values())
        parts |= stages
        parts["buffer"] = on_air_s - made_s
    parts["encode"] = recording.encode_s or 0.0
    parts["transport"] = first.packets.last_s - on_air_s - parts["encode"]
    parts["jitter_buffer"] = first.at_s - first.packets.last_s
    if pixel_s is not None:
        parts["appear"] = pixel_s - first.at_s
    return _milliseconds(parts)


def _stages(recording: Recording, frame: int) -> dict[str, float]:
    """Seconds that the chunk with this frame took until its first frames were there."""
    made_s = rendered_s(recording.rendered, frame) or 0.0
    chunks = recording.chunks
    place = next((place for place, chunk in enumerate(chunks) if chunk.at_s >= made_s), None)
    if place is None:
        return {}
    since_s = chunks[place - 1].at_s if place else float("-inf")
    # A chunk is decoded in slices, each of which is news; its first frames wait for one of them.
    slices = sum(since_s < news.at_s <= chunks[place].at_s for news in recording.rendered)
    ms = chunks[place].ms
    plan_s, render_s, decode_s = (ms.get(stage, 0.0) / 1000 for stage in ("plan", "render", "vae"))
    return {"plan": plan_s, "render": render_s, "decode": decode_s / max(slices, 1)}


def _milliseconds(parts: Figures) -> Figures:
    return {stage: round(parts[stage] * 1000, 1) for stage in STAGES if stage in parts}
