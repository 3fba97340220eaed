"""`python tests/impaired.py CASE... [--codec h264]`: figures of a viewer on a bad network.

A server with a large picture, Chromium behind an impaired link, and a second viewer (aiortc) on a clean one, each in a
network namespace that this makes. Prints one line of JSON a case. Times are in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from networks import Networks, networks, wait_for
from playwright.async_api import Page, async_playwright

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium", path="/usr/bin")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--autoplay-policy=no-user-gesture-required")  # fmt: skip
NEAR, FAR = "10.6.0.1", "10.6.0.2"  # the impaired link
CLEAN_NEAR, CLEAN_FAR = "10.5.0.1", "10.5.0.2"
FRAME_S = 1 / 16
FREEZE_S = max(3 * FRAME_S, FRAME_S + 0.15)  # as WebRTC's statistics count one
WATCH = """async (codec) => {
    const video = document.createElement("video");
    video.muted = true;
    document.documentElement.append(video);
    const peer = window.peer = new RTCPeerConnection();
    window.frames = [];
    const note = (now, frame) => {
        window.frames.push([performance.now() / 1000, frame.rtpTimestamp / 90000, frame.presentedFrames]);
        video.requestVideoFrameCallback(note);
    };
    video.requestVideoFrameCallback(note);
    peer.ontrack = ({track}) => { video.srcObject = new MediaStream([track]); video.play(); };
    peer.addTransceiver("video", {direction: "recvonly"});
    await peer.setLocalDescription();
    const headers = {"content-type": "application/sdp"};
    const reply = await fetch(`/whep/main?codec=${codec}`, {method: "POST", headers, body: peer.localDescription.sdp});
    await peer.setRemoteDescription({type: "answer", sdp: await reply.text()});
}"""
STATS = """async () => {
    const all = [...(await window.peer.getStats()).values()].find((one) => one.type === "inbound-rtp");
    return {received: all.bytesReceived, freezes: all.freezeCount, frozen_s: all.totalFreezesDuration,
        nacks: all.nackCount, plis: all.pliCount, lost: all.packetsLost, decoded: all.framesDecoded,
        retransmitted: all.retransmittedPacketsReceived};
}"""


class Link:
    """The impaired link's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def set(self, **impairments: Any) -> list[dict[str, int]]:
        """Changes impairments; returns what each direction carried until now, the server's first."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(impairments) + "\n")
        self._process.stdin.flush()
        carried: list[dict[str, int]] = json.loads(self._process.stdout.readline())
        return carried


class Steady:
    """The viewer on the clean path."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self) -> dict[str, Any]:
        """Ends it; returns `packets_lost`, and `frames`: time in the video, when it came, when it was decoded."""
        seen: dict[str, Any] = json.loads(self._process.communicate("", timeout=20)[0].splitlines()[-1])
        return seen


@contextmanager
def impaired_networks(codec: str) -> Iterator[tuple[Networks, Link, Steady]]:
    """A server that runs, its two ways out, and a viewer on the clean one."""
    with networks() as made:
        for name in ("server", "clean", "slow"):
            made.add(name)
        made.switch("wire")
        made.plug("server", "wire", f"{CLEAN_NEAR}/24")
        made.plug("clean", "wire", f"{CLEAN_FAR}/24")
        spaces = [made.inside(name)[3] for name in ("server", "slow")]
        link = subprocess.Popen(
            [sys.executable, "-m", "streaming.bench.link", spaces[0], f"{NEAR}/24", spaces[1], f"{FAR}/24"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent,
        )  # fmt: skip
        steady = None
        try:
            wait_for(link, "ready")
            server = str(HERE / "fakes.py"), "--host", "0.0.0.0", "--no-spare-engine"
            fake = "env", "FAKE_PICTURE=large", sys.executable, *server
            server = made.start("server", *fake, "--log-level", "info")
            wait_for(server, "is ready")
            _drain(server)
            steady = subprocess.Popen(
                [*made.inside("clean"), sys.executable, str(HERE / "steady_viewer.py"), f"http://{CLEAN_NEAR}:8000",
                 codec],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            wait_for(steady, "watching")
            yield made, Link(link), Steady(steady)
        finally:
            for process in (steady, link):
                if process is not None:
                    process.kill()
                    # Closes its pipes too.
                    process.communicate()


def _drain(process: subprocess.Popen[str]) -> None:
    """Shows what a process says in a thread, so that its pipe does not fill up."""
    import threading

    assert process.stdout is not None
    lines = process.stdout

    def show() -> None:
        for line in lines:
            sys.stderr.write(line)

    threading.Thread(target=show, daemon=True).start()


@asynccontextmanager
async def browsing(made: Networks, codec: str) -> AsyncIterator[Page]:
    """Chromium behind the impaired link, with the video on screen."""
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "chromium"
        inside.write_text(f'#!/bin/sh\nexec {" ".join(made.inside("slow"))} {CHROMIUM} "$@"\n')
        inside.chmod(0o755)
        async with async_playwright() as driver:
            browser = await driver.chromium.launch(executable_path=str(inside), args=FLAGS)
            page = await browser.new_page(bypass_csp=True)
            await page.goto(f"http://{NEAR}:8000/healthz")
            await page.evaluate(WATCH, codec)
            await page.wait_for_function("window.frames.length > 16", timeout=20_000)
            yield page
            await browser.close()


async def _seconds(page: Page) -> float:
    return float(await page.evaluate("performance.now() / 1000"))


def gaps(frames: list[list[float]], since_s: float, until_s: float) -> list[tuple[float, float]]:
    """Times between frames on screen that are freezes: when each began, and how long it was."""
    times = [seen_s for seen_s, *_ in frames if seen_s <= until_s] + [until_s]
    pairs = zip(times, times[1:], strict=False)
    return [(a - since_s, b - a) for a, b in pairs if b - a > FREEZE_S and b > since_s]


def steadiness(seen: dict[str, Any], since_s: float) -> dict[str, Any]:
    """Frames that the viewer on the clean path lacks from a time on, and how late they came and were decoded.

    Late is over the earliest frame. Before, the browser starts, which keeps every core busy.
    """
    frames = [frame for frame in seen["frames"] if frame[1] >= since_s]
    steps = [b[0] - a[0] for a, b in zip(frames, frames[1:], strict=False)]
    return {
        "frames": len(frames),
        "packets_lost": seen["packets_lost"],
        "missing": sum(round(step / FRAME_S) - 1 for step in steps if step > 1.5 * FRAME_S),
        "arrived": _lateness([arrived_s - pts_s for pts_s, arrived_s, _ in frames]),
        "decoded": _lateness([decoded_s - pts_s for pts_s, _, decoded_s in frames]),
    }


def _lateness(delays_s: list[float]) -> dict[str, Any]:
    earliest_s = min(delays_s)
    late = sorted(delay_s - earliest_s for delay_s in delays_s)
    return {
        "late_p50_s": round(late[len(late) // 2], 3),
        "late_p99_s": round(late[int(len(late) * 0.99)], 3),
        "late_most_s": round(late[-1], 3),
        "later_than_a_frame": sum(delay > FRAME_S for delay in late),
    }


async def measure(case: str, codec: str) -> dict[str, Any]:
    """Runs one case."""
    with impaired_networks(codec) as (made, link, steady):
        async with browsing(made, codec) as page:
            link.set(delay_s=0.05 if case.endswith("%") else 0.01)
            await asyncio.sleep(8)
            settled_s = time.monotonic()
            figures: dict[str, Any] = {"case": case, "codec": codec}
            clean_s = 6.0
            before = link.set()[0]
            await asyncio.sleep(clean_s)
            after = link.set()[0]
            figures["clean_kbps"] = _kbps(before, after, clean_s)
            began_s = await _seconds(page)
            length_s = await CASES[case](link, figures)
            ended_s = await _seconds(page)
            frames = await page.evaluate("window.frames")
            found = gaps(frames, began_s, ended_s)
            figures["seconds"] = round(length_s, 1)
            figures["freezes"] = [[round(at, 2), round(long, 2)] for at, long in found]
            figures["longest_s"] = round(max((long for _, long in found), default=0.0), 2)
            figures["total_s"] = round(sum(long for _, long in found), 2)
            reports = await page.evaluate("fetch('/channels/main/viewers').then((reply) => reply.json())")
            figures["viewer"] = reports[1]
            metrics = await page.evaluate("fetch('/metrics').then((reply) => reply.text())")
            figures["server"] = {
                line.split()[0]: float(line.split()[-1])
                for line in metrics.splitlines()
                if line.startswith(
                    ("landiff_clock_slips_total", "landiff_viewer_overflows_total", "landiff_frames_repeated_total")
                )
            }
            figures["chromium"] = await page.evaluate(STATS)
        figures["clean_path"] = steadiness(steady.end(), settled_s)
    return figures


def _kbps(before: dict[str, int], after: dict[str, int], seconds: float) -> int:
    return round((after["octets"] - before["octets"]) * 8 / seconds / 1000)


async def _lossy(link: Link, figures: dict[str, Any], loss: float) -> float:
    link.set(loss=loss)
    await asyncio.sleep(20)
    before, then_s = link.set()[0], time.monotonic()
    await asyncio.sleep(40)
    figures["kbps_after_20_s"] = _kbps(before, link.set()[0], time.monotonic() - then_s)
    return 60.0


async def _capped(link: Link, figures: dict[str, Any]) -> float:
    link.set(rate_bps=300_000)
    await asyncio.sleep(15)
    before = link.set(rate_bps=0)[0]
    lifted_s = time.monotonic()
    figures["high_again_s"] = None
    while time.monotonic() - lifted_s < 20:
        then_s = time.monotonic()
        await asyncio.sleep(0.5)
        after = link.set()[0]
        if (
            figures["high_again_s"] is None
            and _kbps(before, after, time.monotonic() - then_s) > 0.8 * figures["clean_kbps"]
        ):
            figures["high_again_s"] = round(time.monotonic() - lifted_s, 1)
        before = after
    return 35.0


async def _dead(link: Link, figures: dict[str, Any]) -> float:
    link.set(dead=True)
    await asyncio.sleep(3)
    link.set(dead=False)
    await asyncio.sleep(15)
    return 18.0


async def _clean(link: Link, figures: dict[str, Any]) -> float:
    await asyncio.sleep(30)
    return 30.0


CASES = {
    "clean": _clean,
    "1%": lambda link, figures: _lossy(link, figures, 0.01),
    "5%": lambda link, figures: _lossy(link, figures, 0.05),
    "cap": _capped,
    "blackhole": _dead,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--codec", default="vp8")
    arguments = parser.parse_args()
    for case in arguments.cases:
        print(json.dumps(asyncio.run(measure(case, arguments.codec))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
