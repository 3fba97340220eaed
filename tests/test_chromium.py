from typing import Any

import pytest
from fakes import FPS, serving

from streaming.bench import chromium
from streaming.bench.recording import BenchError

# What a page notes of a video of 10 frames a second that stood for half a second: display time in ms, timestamp,
# arrival in ms, frames presented so far, decoding time.
NOTED: Any = {
    "ttff": 120.0,
    "frames": [[at, n * 9000, at - 30, n + 1, 0.002] for n, at in enumerate((0, 100, 200, 700, 800, 900))],
    "counted": {
        "jitterBufferDelay": 0.3, "jitterBufferEmittedCount": 6, "totalDecodeTime": 0.012, "framesDecoded": 6,
        "freezeCount": 1,
    },
}  # fmt: skip


def test_figures_of_a_page_are_by_the_same_definitions() -> None:
    """The pause is a stall, a freeze, and a frame that was not there when due; what the browser counts is kept."""
    found = chromium.figures(NOTED, 10.0)
    assert (found["ttff_s"], found["stalls"], found["freezes"], found["frames_not_shown"]) == (0.12, 1, 1, 0)
    assert found["playback"][0]["attained"] == pytest.approx(5 / 6, abs=1e-6)
    assert found["received_to_shown_ms"]["median"] == 30
    assert (found["jitter_buffer_ms"], found["decode_ms"]) == (50.0, 2.0)
    assert found["stats"]["freezeCount"] == 1


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser, with the cure."""
    monkeypatch.setattr(chromium, "CHROMIUM", "/nowhere/chromium")
    assert chromium.missing() == "/nowhere/chromium is missing: apt-get install chromium"


@pytest.mark.browser
@pytest.mark.skipif(chromium.missing() is not None, reason=str(chromium.missing()))
async def test_a_browser_watches_beside(loopback: None) -> None:
    """Frames reach its screen at the video's rate; an endpoint that refuses is named in one line."""
    async with serving() as running:
        noted = await chromium.watch(running.url, f"{running.url}/whep/main?codec=vp8", None, 3.0)
        with pytest.raises(BenchError, match="the browser failed: .*404") as caught:
            await chromium.watch(running.url, f"{running.url}/whep/other", None, 1.0)
    assert "\n" not in str(caught.value)
    found = chromium.figures(noted, FPS)
    assert found["ttff_s"] > 0 and found["fps"] == pytest.approx(FPS, rel=0.4)
    assert found["stats"]["framesDecoded"] > 10
    assert found["received_to_shown_ms"]["count"] > 0
