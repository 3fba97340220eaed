"""What a viewer saw of each death of an engine, in numbers. Pure: what was watched in, figures out.

An I420 frame is [3H/2, W] uint8. A *change* is the mean absolute difference of two frames, in levels of 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streaming.bench.client import Pixels
from streaming.bench.timeline import Figures, spread

CLIP = 49  # frames that the judge reads at a time, about 6 s of `mini`
Z_95 = 1.96  # standard errors in half a 95 % interval


@dataclass(frozen=True, slots=True)
class Death:
    """One end of an engine and what was watched of it."""

    prompt: str
    first: int  # number of the first frame that another process made
    made_s: float  # from the fault until the server had it
    gap_s: float  # the longest time between two new frames, as the viewer saw them
    repeats_s: float  # of video that stood
    pictures: Mapping[int, Pixels]  # by number, around the first
    undisturbed: Mapping[int, Pixels] = field(default_factory=dict)  # the same by a replay; none where it is not known

    @property
    def clips(self) -> dict[str, list[Pixels]]:
        """What the judge compares; what is long before tells how it differs from clip to clip by itself."""
        begins = {"long before": self.first - 2 * CLIP, "before": self.first - CLIP, "after": self.first}
        clips = {name: _clip(self.pictures, begin) for name, begin in begins.items()}
        return clips | ({"undisturbed": _clip(self.undisturbed, self.first)} if self.undisturbed else {})

    def apart(self, begin: int) -> float | None:
        """The mean difference of a clip that was watched from the same of the replay; None where there is none."""
        numbers = [n for n in range(begin, begin + CLIP) if n in self.pictures and n in self.undisturbed]
        apart = [_difference(self.pictures[number], self.undisturbed[number]) for number in numbers]
        return float(np.mean(apart)) if apart else None

    def change(self, number: int) -> float | None:
        """To a frame from the one before it; None where one of them was lost on the way."""
        if number not in self.pictures or number - 1 not in self.pictures:
            return None
        return _difference(self.pictures[number], self.pictures[number - 1])

    def around(self, number: int) -> float | None:
        """The mean change to the frames within a clip's length of that number, but to that one itself."""
        numbers = [one for one in range(number - CLIP + 1, number + CLIP) if one != number]
        changes = [change for one in numbers if (change := self.change(one)) is not None]
        return float(np.mean(changes)) if changes else None


def _clip(pictures: Mapping[int, Pixels], begin: int) -> list[Pixels]:
    """A clip's length of frames from a number on; for each that is not there the nearest one."""
    return [pictures[min(pictures, key=lambda one: abs(one - number))] for number in range(begin, begin + CLIP)]


def _difference(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).mean())


def figures(deaths: Sequence[Death], found: Sequence[Mapping[str, Mapping[str, bool]]]) -> Figures:
    """`found` has for each death which words were right in each of its clips."""
    rows = [_row(*pair) for pair in zip(deaths, found, strict=True)]
    return {
        "new_frames_s": spread(row["new_frames_s"] for row in rows),
        "gap_s": spread(row["gap_s"] for row in rows),
        "repeats_s": spread(row["repeats_s"] for row in rows),
        "seam_ratio": _ratio([(row["seam"], row["around"]) for row in rows]),
        "seam_ratio_a_clip_before": _ratio([(row["seam_before"], row["around_before"]) for row in rows]),
        "same_words": _count(rows, "before", "after"),
        "same_words_a_clip_before": _count(rows, "long before", "before"),
        **_undisturbed(rows),
        "deaths": rows,
    }


def _undisturbed(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """The video that was watched, held against its replay; empty where there is none."""
    known = [row for row in rows if "undisturbed" in row["right"]]
    if not known:
        return {}
    return {
        "same_words_as_undisturbed": _count(known, "after", "undisturbed"),
        "levels_from_undisturbed": {
            side: spread(row[f"apart_{side}"] for row in known if row[f"apart_{side}"] is not None)
            for side in ("before", "after")
        },
    }


def _row(death: Death, right: Mapping[str, Mapping[str, bool]]) -> dict[str, Any]:
    earlier = death.first - CLIP
    return {
        "prompt": death.prompt,
        "first_frame": death.first,
        "new_frames_s": round(death.made_s, 3),
        "gap_s": round(death.gap_s, 3),
        "repeats_s": round(death.repeats_s, 3),
        "seam": death.change(death.first),
        "around": death.around(death.first),
        "seam_before": death.change(earlier),
        "around_before": death.around(earlier),
        "apart_before": death.apart(earlier),
        "apart_after": death.apart(death.first),
        "right": right,
    }


def _ratio(pairs: Sequence[tuple[float | None, float | None]]) -> Figures:
    """Mean of the first over mean of the second, with the half width of its 95 % interval over deaths."""
    whole = np.asarray([pair for pair in pairs if None not in pair], float)
    if len(whole) < 2:
        return {"ratio": None, "half_width_95": None, "n": len(whole)}
    tops, bottoms = whole.T
    ratio = float(tops.mean() / bottoms.mean())
    half = Z_95 * float((tops - ratio * bottoms).std(ddof=1)) / np.sqrt(len(whole)) / float(bottoms.mean())
    return {"ratio": round(ratio, 4), "half_width_95": round(float(half), 4), "n": len(whole)}


def _count(rows: Sequence[Mapping[str, Any]], one: str, other: str) -> dict[str, Any]:
    """In how many deaths two clips have the same words right: all of them, and each."""
    pairs = [(row["right"][one], row["right"][other]) for row in rows]
    words = dict.fromkeys(word for before, _ in pairs for word in before)
    by_word = {word: [before[word] == after.get(word) for before, after in pairs if word in before] for word in words}
    return {
        "same": sum(before == after for before, after in pairs),
        "of": len(pairs),
        "by_word": {word: {"same": sum(same), "of": len(same)} for word, same in by_word.items()},
    }
