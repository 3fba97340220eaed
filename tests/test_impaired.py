"""A viewer on a bad network beside one on a good one. `tests/impaired.py` takes the figures that documents show."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from typing import Any

import networks
import pytest

pytest.importorskip("playwright.async_api", reason="playwright is not installed")
from impaired import CLEAN_NEAR, browsing, impaired_networks
from networks import Networks
from playwright.async_api import Page

WHY_NOT = networks.missing()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.skipif(
        shutil.which("chromium", path="/usr/bin") is None,
        reason="/usr/bin/chromium is missing: apt-get install chromium",
    ),
]
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def viewers(made: Networks) -> list[dict[str, Any]]:
    """Reports of the viewer on the clean path and of the one behind the impaired link."""
    url = f"http://{CLEAN_NEAR}:8000/channels/main/viewers"
    reports: list[dict[str, Any]] = json.loads(made.run("clean", sys.executable, "-c", ASK, url))
    return reports


def slow_viewer(made: Networks) -> dict[str, Any]:
    clean, slow = viewers(made)
    assert clean["rung"] == "high", "the viewer on the clean path is not touched"
    return slow


async def settled(made: Networks, page: Page) -> None:
    """Chromium's start keeps every core busy, which may cost both viewers their bit rate before all begins."""
    await page.wait_for_function("window.frames.length > 64", timeout=30_000)
    async with asyncio.timeout(60):
        while any(report["rung"] != "high" for report in viewers(made)):  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.5)


async def until(made: Networks, condition: Callable[[dict[str, Any]], bool], limit_s: float = 40.0) -> None:
    async with asyncio.timeout(limit_s):
        # Nothing tells which rung a viewer gets.
        while not condition(slow_viewer(made)):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("codec", ["vp8", "h264"])
async def test_slow_network_has_a_low_bit_rate_and_hurts_nobody(codec: str) -> None:
    """At 300 kbit/s the picture moves on at the low rung; when there is room it is the high one again."""
    with impaired_networks(codec) as (made, link, steady):
        async with browsing(made, codec) as page:
            await settled(made, page)
            link.set(rate_bps=300_000, delay_s=0.01)
            await until(made, lambda report: report["rung"] == "low")
            shown = await page.evaluate("window.frames.length")
            await page.wait_for_function(f"window.frames.length > {shown + 32}", timeout=20_000)
            link.set(rate_bps=0)
            await until(made, lambda report: report["rung"] == "high")
            shown = await page.evaluate("window.frames.length")
            await page.wait_for_function(f"window.frames.length > {shown + 16}", timeout=20_000)
        assert steady.end()["packets_lost"] == 0


async def test_lossy_network_keeps_its_bit_rate() -> None:
    """At 5 % loss the viewer is told to hold pictures back, and stays at the high rung while each is repaired."""
    with impaired_networks("vp8") as (made, link, steady):
        async with browsing(made, "vp8") as page:
            await settled(made, page)
            link.set(delay_s=0.05, loss=0.05)
            await until(made, lambda report: report["playout_delay_s"] > 0.2)
            shown = await page.evaluate("window.frames.length")
            await page.wait_for_function(f"window.frames.length > {shown + 160}", timeout=40_000)
            report = slow_viewer(made)
            assert (report["rung"], report["rung_changes"], report["keyframe_requests"]) == ("high", 0, 0)
            assert report["retransmissions"] > 50
        assert steady.end()["packets_lost"] == 0


async def test_dead_network_comes_back_with_a_picture() -> None:
    """After three seconds without a packet the same session goes on."""
    with impaired_networks("vp8") as (made, link, steady):
        async with browsing(made, "vp8") as page:
            await settled(made, page)
            link.set(dead=True)
            await asyncio.sleep(3)
            link.set(dead=False)
            shown = await page.evaluate("window.frames.length")
            await page.wait_for_function(f"window.frames.length > {shown + 32}", timeout=20_000)
            await until(made, lambda report: report["rung"] == "high")
        assert steady.end()["packets_lost"] == 0
