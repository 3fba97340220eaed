"""A viewer without a marker watches changes, whose words the engine's judge reads afterwards."""

from collections.abc import Sequence

import numpy as np
import pytest
from fakes import serving

from streaming.bench import watch, words
from streaming.bench.recording import BenchError, Change, Recording
from streaming.bench.server_process import find_server
from streaming.bench.words import WatchedChange, figures

NIGHT = "a white ball floats up under the stars at night"
BEFORE = Recording(0.0, 1.0, True, [])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "BEFORE_S", 2.0)
    monkeypatch.setattr(words, "WATCH_S", 4.0)
    monkeypatch.setattr(watch, "MIDDLE_LIMIT_S", 1.0)
    monkeypatch.setattr(words, "LABELS", {NIGHT: words.LABELS[NIGHT]})


async def test_frames_behind_the_changed_pixel_are_kept(loopback: None) -> None:
    """From the first that looks different on, whole, with their times; the fake engine turns dark at night."""
    async with serving() as running, find_server(running.url) as server:
        (change,) = await words.watch(server, "vp8", ("flow",), BEFORE)
        assert (await running.report())["viewers"] == 0
    assert (change.prompt, change.mode) == (NIGHT, "flow")
    assert change.pixel_s is not None and change.times_s[0] == change.pixel_s
    assert len(change.frames) == len(change.times_s) > 4
    assert change.frames[0].shape == (192, 192) and change.times_s == sorted(change.times_s)


async def test_a_prompt_that_is_on_air_is_not_asked_for_again(loopback: None) -> None:
    """It would change nothing."""
    before = Recording(0.0, 1.0, True, [], [Change(NIGHT, 0.5)])
    async with serving() as running, find_server(running.url) as server:
        assert await words.watch(server, "vp8", ("flow",), before) == []


async def test_what_is_refused_ends_it(loopback: None) -> None:
    """A server that takes no prompts says so."""
    async with serving("--control-token", "secret", "--view-token", "sight") as running:
        async with find_server(running.url, "sight") as server:
            with pytest.raises(ExceptionGroup) as caught:
                await words.watch(server, "vp8", ("flow",), BEFORE)
    assert caught.group_contains(BenchError, match="401|403")


def watched(pixel_s: float | None, frames: int) -> WatchedChange:
    picture = np.full((192, 192), 90, np.uint8)
    return WatchedChange(NIGHT, "cut", pixel_s, [1.0 + number / 8 for number in range(frames)], [picture] * frames)


def test_the_engine_judges() -> None:
    """Grey pictures show no word, and what changed nothing is not judged at all."""
    found = figures([watched(1.0, 30), watched(None, 0)])
    assert found["prompt_to_words_s"] == {"cut": {"count": 0, "median": None, "p95": None, "most": None}}
    grey, unchanged = found["words"]
    assert grey["pixel_s"] == 1.0 and grey["words_s"] is None and not all(grey["right"].values())
    assert (unchanged["pixel_s"], unchanged["words_s"], unchanged["right"]) == (None, None, {})


def test_the_time_is_that_of_the_first_frame_of_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the request, whichever frame the judge names."""

    def judge(changes: Sequence[WatchedChange]) -> list[dict[str, object]]:
        return [{"first": 4, "right": {"subject": True}} for _ in changes]

    monkeypatch.setattr(words, "_judge", judge)
    found = figures([watched(1.0, 30)])
    assert found["words"][0]["words_s"] == 1.5
    assert found["prompt_to_words_s"]["cut"]["median"] == 1.5


@pytest.mark.parametrize(("limit_s", "reason"), [(0.01, "longer than 0 s"), (100.0, "the judge failed: evaluate: ")])
def test_a_judge_that_fails_is_named(limit_s: float, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line: it is too slow, or cannot read what it is given."""
    monkeypatch.setattr(words, "JUDGE_LIMIT_S", limit_s)
    monkeypatch.setitem(words.LABELS[NIGHT], "subject", "dog")
    with pytest.raises(BenchError, match=reason):
        figures([watched(1.0, 30)])
