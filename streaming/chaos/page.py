"""The page in Chromium over the end of its server: when it shows pictures again, by itself."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

from streaming.bench.chromium import CHROMIUM, FLAGS, missing
from streaming.bench.recording import BenchError
from streaming.bench.timeline import Figures, spread
from streaming.chaos.stage import Stage

PLAYS = 16  # pictures, after which the page is taken to play
LIMIT_S = 90.0  # for them
CALM_S = (6.0, 12.0)  # that the page plays before the next end; the video's state is kept every 3 s
NOTE = """() => {
    const video = document.getElementById("video");
    window.shown = [];
    const note = (now) => {
        window.shown.push((performance.timeOrigin + now) / 1000);
        video.requestVideoFrameCallback(note);
    };
    video.requestVideoFrameCallback(note);
}"""


class Page:
    """A page that is open; times are seconds of the wall clock, which its browser and we share."""

    def __init__(self, page: Any) -> None:
        self._page = page

    async def shown(self) -> list[float]:
        """When each picture came to the screen."""
        times: list[float] = await self._page.evaluate("window.shown")
        return times

    async def plays(self, since_s: float) -> list[float]:
        """Waits until PLAYS pictures came since then; all times. Raises BenchError where they do not."""
        give_up_s = time.monotonic() + LIMIT_S
        while time.monotonic() < give_up_s:
            times = await self.shown()
            if sum(at_s >= since_s for at_s in times) >= PLAYS:
                return times
            await asyncio.sleep(0.1)
        raise BenchError(f"the page showed no pictures within {LIMIT_S:.0f} s")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Page]:
    """The server's own page in Chromium. Raises BenchError with the browser's words."""
    if (why := missing()) is not None:
        raise BenchError(why)
    from playwright.async_api import Error, async_playwright

    try:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            try:
                page = await browser.new_page()
                await page.goto(url)
                await page.evaluate(NOTE)
                yield Page(page)
            finally:
                await browser.close()
    except Error as error:
        raise BenchError(f"the browser failed: {str(error).splitlines()[0]}") from error


async def server_ends(stage: Stage, times: int, rng: random.Random) -> Figures:
    """Kills the server that many times, each time with another one at once; how long until pictures come again."""
    rows: list[Figures] = []
    async with opened(stage.http.url) as page:
        for _ in range(times):
            await page.plays(time.time())
            await asyncio.sleep(rng.uniform(*CALM_S))
            left = await stage.kill()
            await stage.start()
            began_s = stage.signalled_s
            ready_s = time.time() - began_s
            seen = await page.plays(time.time())
            gap_s, again_s = longest_gap(seen, began_s)
            row = {"ready_s": round(ready_s, 3), "picture_s": round(again_s - began_s, 3), "gap_s": round(gap_s, 3)}
            rows.append(row | {"left": left})
    return {name: spread(row[name] for row in rows) for name in ("ready_s", "picture_s", "gap_s")} | {"ends": rows}


def longest_gap(times: list[float], since_s: float) -> tuple[float, float]:
    """The longest time between two pictures whose later one came since then, and when that was."""
    return max((later - earlier, later) for earlier, later in pairwise(times) if later >= since_s)
