"""A crowd of viewers that do not decode, in this process."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator

import pytest
from fakes import serving

from streaming.bench import light

WATCHED_S = 1.5


class Input:
    """Ends after a while, as the pipe of whoever measures does."""

    def read(self) -> str:
        time.sleep(WATCHED_S)
        return ""


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch, loopback: None) -> Iterator[None]:
    monkeypatch.setattr(sys, "stdin", Input())
    yield


@pytest.mark.parametrize("codec", ["vp8", None])
async def test_frames_are_counted_whole(codec: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Two viewers see frames at the video's rate, lose nothing on loopback, and leave no session."""
    async with serving() as running:
        figures = await light.run(f"{running.url}/whep/main", 2, 20.0, codec, None)
        assert figures["joined"] == 2 and figures["failed"] == [] and figures["packets_missing"] == 0
        assert figures["frames"] > 2 and figures["packets"] >= figures["frames"]
        assert figures["ttff_s"]["count"] == 2 and figures["bytes"] > 0 and figures["watched_s"] >= WATCHED_S
        await running.until(lambda report: report["viewers"] == 0)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(line) for line in said] == [{"ttff_s"}, {"ttff_s"}, {"joined", "failed"}]


async def test_an_audience_that_is_refused_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Each viewer that cannot join says why, and the figures hold without one."""
    async with serving("--max-viewers", "1") as running:
        figures = await light.run(f"{running.url}/whep/main", 2, 20.0, "vp8", None)
    assert figures["joined"] == 1 and "1 viewers are connected" in figures["failed"][0]


def test_the_command_prints_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """One line of JSON at the end, also where no server is."""
    assert light.main(["http://127.0.0.1:9/whep/main", "--address", "127.0.0.1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["joined"] == 0


async def test_packets_out_of_order_spoil_no_count() -> None:
    """A gap spoils its frame; what comes late, again or of another stream is passed over."""
    viewer = light.LightViewer(light.Http("http://127.0.0.1:9"), "vp8")

    async def take(number: int, marker: bool, stream: int = 7) -> None:
        await viewer._on_packet(light.HEADER.pack(0x80, 96 | (0x80 if marker else 0), number, 0, stream) + b"x", 0)

    for number, marker in ((65535, False), (0, True), (1, False), (3, True), (2, False), (4, True), (5, True)):
        await take(number, marker)
    await take(6, True, stream=8)
    assert (len(viewer.frames_s), viewer.missing, viewer.packets) == (3, 1, 7)
    await asyncio.wait_for(viewer.aclose(), 10)
