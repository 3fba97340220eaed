"""Players and a relay of other makers, each in a network namespace beside the server's. docs/PLAYERS.md has the table.

npm's packages are looked for in `$PLAYERS/node_modules`:
`npm install --prefix "$PLAYERS" werift whip-whep @eyevinn/webrtc-player esbuild`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networks
import pytest
from networks import Networks, wait_for

HERE = Path(__file__).parent
WHY_NOT = networks.missing()
PLAYERS = Path(os.environ.get("PLAYERS", "/nowhere"))
SERVER, VIEWER, RELAY, MOVED = "10.3.0.1", "10.3.0.2", "10.3.0.3", "10.3.0.4"
URL = f"http://{SERVER}:8000/whep/main"
FRAMES = 20  # that each player counts
CODECS = ("vp8", "h264")
GOCODE = Path("/usr/share/gocode/src/github.com/pion/webrtc")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--autoplay-policy=no-user-gesture-required")  # fmt: skip
WHIP_WHEP = """
import { WHEPClient } from "whip-whep/whep.js";
window.play = async (video, url) => {
    const peer = new RTCPeerConnection({bundlePolicy: "max-bundle"});
    peer.addTransceiver("video", {direction: "recvonly"});
    peer.ontrack = ({track}) => { video.srcObject = new MediaStream([track]); video.play(); };
    const client = window.client = new WHEPClient();
    await client.view(peer, url);
};
"""
EYEVINN = """
import { WebRTCPlayer } from "@eyevinn/webrtc-player";
window.play = async (video, url) => {
    const player = window.player = new WebRTCPlayer({video, type: "whep"});
    await player.load(new URL(url));
};
"""

pytestmark = [pytest.mark.players, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


@pytest.fixture
def wire() -> Iterator[Networks]:
    """A server, and places for a player and a relay on one wire."""
    with networks.networks() as made:
        made.switch("wire")
        for name, address in (("server", SERVER), ("viewer", VIEWER), ("relay", RELAY)):
            made.add(name)
            made.plug(name, "wire", f"{address}/24", "10.3.0.9")
        wait_for(made.start("server", sys.executable, str(HERE / "fakes.py"), "--host", "0.0.0.0"), "is ready")
        yield made


def said(made: Networks, *command: str) -> dict[str, Any]:
    """The last line that a player prints; shown with -s."""
    found: dict[str, Any] = json.loads(made.run("viewer", *command).splitlines()[-1])
    sys.stderr.write(f"{found}\n")
    return found


def needs_package(name: str) -> Any:
    there = (PLAYERS / "node_modules" / name).is_dir()
    reason = f"npm's {name} is not in $PLAYERS/node_modules: npm install --prefix $PLAYERS {name}"
    return pytest.mark.skipif(not there, reason=reason)


def has_gstreamer() -> bool:
    """True if Debian's Python has webrtcbin."""
    words = "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstWebRTC', '1.0'); "
    words += "from gi.repository import Gst; Gst.init(None); "
    words += "assert all(map(Gst.ElementFactory.find, ('webrtcbin', 'nicesrc', 'vp8dec', 'openh264dec')))"
    return subprocess.run(["/usr/bin/python3", "-c", words], capture_output=True).returncode == 0


@pytest.mark.skipif(
    not has_gstreamer(),
    reason="webrtcbin is missing: apt-get install python3-gi gir1.2-gst-plugins-bad-1.0 gstreamer1.0-plugins-bad "
    "gstreamer1.0-plugins-good gstreamer1.0-nice",
)
@pytest.mark.parametrize("codec", CODECS)
def test_gstreamer_plays(wire: Networks, codec: str) -> None:
    """webrtcbin decodes the video."""
    command = ("/usr/bin/python3", str(HERE / "player_gst.py"), f"{URL}?codec={codec}", codec)
    assert said(wire, *command)["frames"] == FRAMES


@needs_package("werift")
@pytest.mark.parametrize("codec", CODECS)
def test_werift_plays(wire: Networks, codec: str) -> None:
    """werift receives the video's frames."""
    command = ("node", str(HERE / "player_werift.mjs"), str(PLAYERS), f"{URL}?codec={codec}", codec)
    assert said(wire, *command)["frames"] == FRAMES


@pytest.fixture(scope="session")
def pion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the player and relay, built with Debian's Pion."""
    go = shutil.which("go")
    if go is None or not GOCODE.is_dir():
        pytest.skip("Pion is missing: apt-get install golang-go golang-github-pion-webrtc.v3-dev")
    folder = tmp_path_factory.mktemp("pion")
    # Debian keeps it beside its import path.
    shutil.copytree(GOCODE, folder / "src/github.com/pion/webrtc/v3")
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": f"{folder}:/usr/share/gocode",
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "",
    }
    built = str(folder / "player_pion")
    command = [go, "build", "-o", built, str(HERE / "player_pion.go")]
    subprocess.run(command, check=True, env=environment, cwd=folder)
    return built


@pytest.mark.parametrize("codec", CODECS)
def test_pion_plays(wire: Networks, pion: str, codec: str) -> None:
    """Pion receives the video's frames."""
    found = said(wire, pion, "play", f"{URL}?codec={codec}")
    assert (found["frames"], found["codec"].lower()) == (FRAMES, f"video/{codec}")


def test_relay_takes_one_stream_and_serves_many(wire: Networks, pion: str) -> None:
    """Behind a relay three players cost the server one viewer."""
    wait_for(wire.start("relay", pion, "relay", URL, ":8000"), "relaying")
    relayed = f"http://{RELAY}:8000/whep/main"
    players = [wire.start("viewer", pion, "play", relayed) for _ in range(3)]
    for player in players:
        assert json.loads(wait_for(player, "frames"))["frames"] == FRAMES
    assert '"viewers":1' in wire.run("viewer", "curl", "-s", f"http://{SERVER}:8000/channels/main")


@pytest.mark.parametrize("certificate", ["ecdsa", "rsa"])
@pytest.mark.parametrize("codec", CODECS)
def test_pion_takes_a_push(wire: Networks, pion: str, codec: str, certificate: str) -> None:
    """A WHIP server of Pion receives the channel's frames; with an RSA certificate it is the DTLS server."""
    server = wire.start("relay", pion, "take", ":8000", certificate)
    wait_for(server, "taking")
    body = json.dumps({"url": f"http://{RELAY}:8000/whip/main", "codec": codec})
    curl = ("curl", "-s", f"http://{SERVER}:8000/channels/main/pushes", "-H", "content-type: application/json")
    report = json.loads(wire.run("viewer", *curl, "-d", body))
    assert report.get("state") == "live", report
    found = json.loads(wait_for(server, "frames"))
    sys.stderr.write(f"{found}\n")
    assert (found["frames"], found["codec"].lower()) == (FRAMES, f"video/{codec}")


async def in_chromium(made: Networks, folder: Path, source: str, url: str, restart: bool = False) -> None:
    """Plays with an npm package in Chromium; with `restart` the viewer gets another address then, and restarts ICE."""
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    chromium = shutil.which("chromium", path="/usr/bin")
    if chromium is None:
        pytest.skip("/usr/bin/chromium is missing: apt-get install chromium")
    script = folder / "player.js"
    script.write_text(source)
    esbuild = [str(PLAYERS / "node_modules/.bin/esbuild"), str(script), "--bundle", "--format=iife"]
    environment = os.environ | {"NODE_PATH": str(PLAYERS / "node_modules")}
    bundle = (await asyncio.to_thread(subprocess.check_output, esbuild, text=True, env=environment)).strip()
    inside = folder / "chromium"
    inside.write_text(f'#!/bin/sh\nexec {" ".join(made.inside("viewer"))} {chromium} "$@"\n')
    inside.chmod(0o755)
    seen = "async (count) => { window.shown = 0; const video = document.querySelector('video');"
    seen += "const next = () => { window.shown += 1; video.requestVideoFrameCallback(next); };"
    seen += "video.requestVideoFrameCallback(next); }"
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=str(inside), args=FLAGS)
        page = await browser.new_page(bypass_csp=True)
        await page.goto(f"http://{SERVER}:8000/healthz")
        await page.evaluate("document.body.append(Object.assign(document.createElement('video'), {muted: true}))")
        await page.add_script_tag(content=bundle)
        await page.evaluate(seen)
        await page.evaluate("(url) => window.play(document.querySelector('video'), url).then(() => true)", url)
        await page.wait_for_function(f"window.shown >= {FRAMES}", timeout=20_000)
        if restart:
            before = await page.evaluate("window.client.etag")
            made.run("viewer", "ip", "address", "del", f"{VIEWER}/24", "dev", "eth0")
            made.run("viewer", "ip", "address", "add", f"{MOVED}/24", "dev", "eth0")
            await page.evaluate("window.client.restart()")
            # The answer to the restart names the new ICE session.
            await page.wait_for_function(f"window.client.etag !== {json.dumps(before)}", timeout=20_000)
            await page.evaluate("window.shown = 0")
            await page.wait_for_function(f"window.shown >= {FRAMES}", timeout=20_000)
        await browser.close()


@pytest.mark.browser
@needs_package("esbuild")
@needs_package("whip-whep")
@pytest.mark.parametrize("codec", CODECS)
async def test_whip_whep_plays(wire: Networks, tmp_path: Path, codec: str) -> None:
    """The WHEP client of npm's whip-whep shows the video in Chromium, and from another address by an ICE restart."""
    await in_chromium(wire, tmp_path, WHIP_WHEP, f"{URL}?codec={codec}", restart=True)


@pytest.mark.browser
@needs_package("esbuild")
@needs_package("@eyevinn/webrtc-player")
@pytest.mark.parametrize("codec", CODECS)
async def test_eyevinn_plays(wire: Networks, tmp_path: Path, codec: str) -> None:
    """npm's @eyevinn/webrtc-player shows the video in Chromium."""
    await in_chromium(wire, tmp_path, EYEVINN, f"{URL}?codec={codec}")
