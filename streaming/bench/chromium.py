"""Chromium as a viewer, beside the one that decodes here: what its page is shown, frame by frame.

Playwright drives Debian's chromium. The page joins by WHEP and notes each frame by `requestVideoFrameCallback`, which
fires when a frame is composed for the screen, and what `getStats` counts at the end.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

from streaming.bench import timeline
from streaming.bench.recording import BenchError
from streaming.bench.timeline import Figures, Frame, spread

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
    "--allow-loopback-in-peer-connection", "--disable-features=WebRtcHideLocalIpsWithMdns",
)  # fmt: skip
JOIN_LIMIT_S = 60.0
WATCH = """
async ({url, token, seconds, limit}) => {
  const peer = new RTCPeerConnection();
  peer.addTransceiver("video", {direction: "recvonly"});
  const video = document.querySelector("video");
  peer.ontrack = event => { video.srcObject = new MediaStream([event.track]); };
  await peer.setLocalDescription();
  await new Promise(done => {
    peer.onicegatheringstatechange = () => peer.iceGatheringState === "complete" && done();
    setTimeout(done, 500);
  });
  const began = performance.now();
  const headers = {"Content-Type": "application/sdp", ...(token ? {Authorization: "Bearer " + token} : {})};
  const reply = await fetch(url, {method: "POST", headers, body: peer.localDescription.sdp});
  if (!reply.ok) throw new Error(`POST ${url}: ${reply.status}`);
  await peer.setRemoteDescription({type: "answer", sdp: await reply.text()});
  const frames = [];
  const first = new Promise(done => {
    const note = (now, data) => {
      frames.push([data.expectedDisplayTime ?? now, data.rtpTimestamp, data.receiveTime ?? null, data.presentedFrames,
                   data.processingDuration ?? null]);
      done();
      video.requestVideoFrameCallback(note);
    };
    video.requestVideoFrameCallback(note);
  });
  const late = new Promise((_, fail) => setTimeout(() => fail(new Error("no picture")), limit * 1000));
  await Promise.race([first, late]);
  await new Promise(done => setTimeout(done, seconds * 1000));
  const counted = {};
  for (const entry of (await peer.getStats()).values())
    if (entry.type === "inbound-rtp" && entry.kind === "video")
      for (const name of ["freezeCount", "totalFreezesDuration", "framesDecoded", "framesDropped", "packetsLost",
                          "jitterBufferDelay", "jitterBufferEmittedCount", "totalDecodeTime", "totalProcessingDelay"])
        counted[name] = entry[name] ?? null;
  const place = reply.headers.get("Location");
  delete headers["Content-Type"];
  if (place) await fetch(new URL(place, url), {method: "DELETE", headers});
  peer.close();
  return {ttff: frames[0][0] - began, frames, counted};
}
"""


def missing() -> str | None:
    """Why there can be no browser here; None if there can."""
    if shutil.which(CHROMIUM) is None:
        return f"{CHROMIUM} is missing: apt-get install chromium"
    try:
        import playwright.async_api  # noqa: F401
    except ImportError:
        return "Playwright is missing: pip install playwright"
    return None


async def watch(page_url: str, endpoint: str, token: str | None, seconds: float) -> Any:
    """Watches an endpoint from a page of its own server for a while; returns what the page noted.

    Raises BenchError with the browser's words.
    """
    from playwright.async_api import Error, async_playwright

    try:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            page = await browser.new_page()
            # A page of the same origin may ask it; its own script is not wanted here.
            await page.route(
                "**/bench-page",
                lambda route: route.fulfill(
                    content_type="text/html", body="<video muted autoplay playsinline></video>"
                ),
            )
            await page.goto(page_url + "/bench-page")
            said = {"url": endpoint, "token": token, "seconds": seconds, "limit": JOIN_LIMIT_S}
            async with asyncio.timeout(seconds + 2 * JOIN_LIMIT_S):
                noted = await page.evaluate(WATCH, said)
            await browser.close()
            return noted
    except (Error, TimeoutError) as error:
        raise BenchError(
            f"the browser failed: {str(error).splitlines()[0] if str(error) else 'it took too long'}"
        ) from error


def figures(noted: Any, fps: float) -> Figures:
    """Figures of a page's notes, by the definitions of `timeline`."""
    clock_hz = 90_000
    shown = [Frame(at_ms / 1000, stamp / clock_hz) for at_ms, stamp, *_ in noted["frames"]]
    times_s = [frame.at_s for frame in shown]
    counted = noted["counted"]
    emitted, decoded = counted["jitterBufferEmittedCount"], counted["framesDecoded"]
    received = [Frame(at_ms / 1000, stamp / clock_hz) for _, stamp, at_ms, *_ in noted["frames"] if at_ms is not None]
    return {
        "viewer": "chromium",
        "ttff_s": round(noted["ttff"] / 1000, 3),
        **timeline.intervals(times_s, fps, times_s[0], times_s[-1]),
        **timeline.freezes(times_s),
        "playback": timeline.playback(shown, 1 / fps),
        **timeline.jitter_ms(received),
        "received_to_shown_ms": spread(
            shown_ms - at_ms for shown_ms, _, at_ms, *_ in noted["frames"] if at_ms is not None
        ),
        "frames_not_shown": noted["frames"][-1][3] - noted["frames"][0][3] + 1 - len(noted["frames"]),
        "jitter_buffer_ms": round(1000 * counted["jitterBufferDelay"] / emitted, 3) if emitted else None,
        "decode_ms": round(1000 * counted["totalDecodeTime"] / decoded, 3) if decoded else None,
        "stats": counted,
    }
