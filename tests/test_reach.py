"""Viewers and servers behind NAT and firewalls, in namespaces that the tests make."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import networks
import pytest
from certificate import make_certificate
from networks import Networks, turn_command, wait_for, wait_for_port

HERE = Path(__file__).parent
WHY_NOT = networks.missing()
TURN, SERVER, SERVER_NAT, VIEWER_NAT = "203.0.113.10", "203.0.113.4", "203.0.113.3", "203.0.113.2"
REST = "203.0.113.1"  # way to all other addresses, where nobody answers
PRIVATE = "10.2.0.2"
MASQUERADE = 'table ip nat { chain post { type nat hook postrouting priority 100; oifname "eth1" masquerade; }; }'
SECRET = "north wind"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
PAGE_WAIT_MS = 20_000
LATE_S = 6.0
PICTURE = "document.getElementById('video').videoWidth > 0"
OVER_HTTP = "document.getElementById('connection').textContent.includes('Live over HTTP')"
COUNT_FRAMES = """() => {
    const video = document.getElementById("video");
    window.shown = 0;
    const count = () => { window.shown += 1; video.requestVideoFrameCallback(count); };
    video.requestVideoFrameCallback(count);
}"""
KEEP_PEER = """RTCPeerConnection = class extends RTCPeerConnection {
    constructor(configuration) { super(configuration); window.peer = this; }
}"""
FIRST_SOURCE_STAYS_SHUT = """
window.sources = 0;
MediaSource = class extends MediaSource {
    constructor() { super(); window.sources += 1; }
    addEventListener(name, ...rest) {
        if (name !== "sourceopen" || window.sources > 1) super.addEventListener(name, ...rest);
    }
}"""
OWN_PORT = """async () => {
    const stats = [...(await window.peer.getStats()).values()];
    const {selectedCandidatePairId} = stats.find((one) => one.type === "transport");
    const {localCandidateId} = stats.find((one) => one.id === selectedCandidatePairId);
    return stats.find((one) => one.id === localCandidateId).port;
}"""

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
needs_coturn = pytest.mark.skipif(
    shutil.which("turnserver") is None, reason="turnserver is missing: apt-get install coturn"
)


@pytest.fixture
def internet() -> Iterator[Networks]:
    """A wire with a viewer behind a router that masquerades."""
    with networks.networks() as made:
        made.switch("wire")
        made.add("rest")
        made.plug("rest", "wire", f"{REST}/24")
        made.router("home")
        made.add("viewer")
        made.link("viewer", "10.1.0.2/24", "home", "10.1.0.1/24")
        made.plug("home", "wire", f"{VIEWER_NAT}/24", REST)
        made.nft("home", MASQUERADE)
        yield made


def public_server(made: Networks, *argv: str) -> None:
    """The server on the wire itself."""
    made.add("server")
    made.plug("server", "wire", f"{SERVER}/24", REST)
    serve(made, *argv)


def private_server(made: Networks, forwards: str, *argv: str, udp: bool = True) -> None:
    """The server behind a router that maps what `forwards` matches to it, and lets everything out."""
    made.router("cloud")
    made.add("server")
    made.link("server", f"{PRIVATE}/24", "cloud", "10.2.0.1/24")
    made.plug("cloud", "wire", f"{SERVER_NAT}/24", REST)
    made.nft("cloud", MASQUERADE)
    rule = f"{forwards} dnat to {PRIVATE};"
    made.nft(
        "cloud", f'table ip into {{ chain pre {{ type nat hook prerouting priority -100; iifname "eth1" {rule} }}; }}'
    )
    if not udp:
        block_udp(made, router="cloud")
    serve(made, *argv)


def serve(made: Networks, *argv: str) -> None:
    command = (sys.executable, str(HERE / "fakes.py"), "--host", "0.0.0.0", *argv)
    wait_for(made.start("server", *command), "is ready")


def start_turn(made: Networks, tls: Sequence[str] = ("--no-tls",)) -> None:
    made.add("turn")
    made.plug("turn", "wire", f"{TURN}/24", REST)
    options = (*tls, "--use-auth-secret", "--static-auth-secret", SECRET)
    made.start("turn", *turn_command(TURN, 3478, *options))
    wait_for_port(made, "turn", 3478)


def block_udp(made: Networks, but: str = "", router: str = "home") -> None:
    """Lets no UDP pass a router, as company networks do."""
    rule = f"ip protocol udp {but} drop;"
    made.nft(router, f"table ip wall {{ chain forward {{ type filter hook forward priority 0; {rule} }}; }}")


def watch(made: Networks, host: str, links: bool = True) -> dict[str, Any]:
    command = (sys.executable, str(HERE / "far_viewer.py"), f"http://{host}:8000", "links" if links else "bare")
    said: dict[str, Any] = json.loads(made.run("viewer", *command))
    sys.stderr.write(str({key: value for key, value in said.items() if key != "answer"}))
    return said


def test_viewer_behind_nat_sees_a_public_server(internet: Networks) -> None:
    """Nothing has to be set where the server itself has a public address."""
    public_server(internet)
    assert "picture_s" in watch(internet, SERVER)


def test_server_behind_nat_is_reached_by_its_public_address(internet: Networks) -> None:
    """The answer names the public address and one port, and a picture comes through these alone."""
    forwards = "ip protocol { tcp, udp } th dport { 8000, 40000 }"
    private_server(internet, forwards, "--public-address", SERVER_NAT, "--media-ports", "40000-40000")
    said = watch(internet, SERVER_NAT)
    assert f"{SERVER_NAT} 40000 typ host" in said["answer"]
    assert PRIVATE not in said["answer"]
    assert said["remote"] == SERVER_NAT


@needs_coturn
def test_server_that_nobody_reaches_is_seen_through_turn(internet: Networks) -> None:
    """Its relay is in the answer, and the viewer, which may speak to the TURN server alone, gets credentials."""
    start_turn(internet)
    block_udp(internet, f"ip daddr != {TURN} ip saddr != {TURN}")
    servers = ("--ice-server", f"stun:{TURN}", "--ice-server", f"turn:{TURN}", "--turn-secret", SECRET)
    private_server(internet, "tcp dport 8000", *servers)
    said = watch(internet, SERVER_NAT)
    assert re.search(rf" {TURN} [0-9]+ typ relay raddr {SERVER_NAT} ", said["answer"])
    assert re.search(rf" {SERVER_NAT} [0-9]+ typ srflx raddr {PRIVATE} ", said["answer"])
    assert TURN in (said["remote"], said["local_host"])
    assert said["picture_s"] < 3


@needs_coturn
def test_viewer_without_udp_sees_through_tcp(internet: Networks) -> None:
    """Where no UDP passes, a viewer takes the TURN server of the `Link` header, over TCP."""
    start_turn(internet)
    block_udp(internet)
    public_server(internet, "--ice-server", f"turn:{TURN}?transport=tcp", "--turn-secret", SECRET)
    said = watch(internet, SERVER)
    assert said["local"] == "relay"
    assert said["picture_s"] < 7


@needs_coturn
def test_viewer_with_tcp_443_alone_sees_through_tls(
    internet: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Server and viewer reach a TURN server by `turns:`, whose certificate both look at."""
    certificate, key = map(str, make_certificate(tmp_path, address=TURN))
    start_turn(internet, ("--tls-listening-port", "443", "--cert", certificate, "--pkey", key))
    wait_for_port(internet, "turn", 443)
    block_udp(internet)
    rule = 'iifname "eth0" tcp dport != { 443, 8000 } drop;'
    internet.nft("home", f"table ip web {{ chain forward {{ type filter hook forward priority 0; {rule} }}; }}")
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    public_server(internet, "--ice-server", f"turns:{TURN}:443", "--turn-secret", SECRET)
    said = watch(internet, SERVER)
    assert re.search(rf" {TURN} [0-9]+ typ relay raddr {SERVER} ", said["answer"])
    assert (said["local"], said["local_host"]) == ("relay", TURN)
    assert said["picture_s"] < 7


@needs_coturn
def test_neither_side_needs_udp(internet: Networks) -> None:
    """Where both may only speak TCP, two relays of the TURN server meet."""
    start_turn(internet)
    block_udp(internet)
    private_server(
        internet, "tcp dport 8000", "--ice-server", f"turn:{TURN}?transport=tcp", "--turn-secret", SECRET, udp=False
    )
    said = watch(internet, SERVER_NAT)
    assert (said["local_host"], said["remote"]) == (TURN, TURN)
    assert said["picture_s"] < 7


@asynccontextmanager
async def browsing(made: Networks, folder: Path) -> AsyncIterator[Any]:
    """A page of Chromium in the viewer's network."""
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    chromium = shutil.which("chromium", path="/usr/bin")
    if chromium is None:
        pytest.skip("/usr/bin/chromium is missing: apt-get install chromium")
    inside = folder / "chromium"
    inside.write_text(f'#!/bin/sh\nexec {" ".join(made.inside("viewer"))} {chromium} "$@"\n')
    inside.chmod(0o755)
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=str(inside), args=FLAGS)
        yield await browser.new_page(bypass_csp=True)
        await browser.close()


async def comes(page: Any, what: str, later_s: float = 0.0) -> None:
    """Waits until an expression is true in the page, and says what the page shows where it does not become so."""
    try:
        await page.wait_for_function(what, timeout=PAGE_WAIT_MS + 1000 * later_s)
    except Exception as error:
        error.add_note(f"The page says {await page.inner_text('#stage')!r}.")
        raise


@needs_coturn
@pytest.mark.browser
async def test_page_without_udp_sees_through_tcp(internet: Networks, tmp_path: Path) -> None:
    """The page takes the TURN server of the answer: a browser that may send no UDP shows the video within 7 s."""
    start_turn(internet)
    block_udp(internet)
    public_server(internet, "--ice-server", f"turn:{TURN}?transport=tcp", "--turn-secret", SECRET)
    async with browsing(internet, tmp_path) as page:
        began_s = time.monotonic()
        await page.goto(f"http://{SERVER}:8000/")
        await comes(page, PICTURE)
        took_s = time.monotonic() - began_s
    sys.stderr.write(f"page without UDP: {took_s:.2f} s\n")
    assert took_s < 7


@pytest.mark.browser
async def test_page_that_nothing_but_http_reaches(internet: Networks, tmp_path: Path) -> None:
    """Without UDP and without a TURN server the page shows the video over HTTP."""
    block_udp(internet)
    public_server(internet)
    async with browsing(internet, tmp_path) as page:
        began_s = time.monotonic()
        await page.goto(f"http://{SERVER}:8000/")
        await comes(page, PICTURE)
        sys.stderr.write(f"page over HTTP: {time.monotonic() - began_s:.2f} s\n")
        await comes(page, OVER_HTTP)


@pytest.mark.browser
async def test_page_comes_to_http_where_its_machine_is_slow(internet: Networks, tmp_path: Path) -> None:
    """An answer that comes late, and a browser's player that never opens the first time, end in the video too."""
    block_udp(internet)
    public_server(internet)
    async with browsing(internet, tmp_path) as page:
        await page.add_init_script(FIRST_SOURCE_STAYS_SHUT)
        late: list[str] = []

        async def answer(route: Any) -> None:
            if route.request.method == "POST" and not late:
                late.append(route.request.url)
                reply = await route.fetch()
                await asyncio.sleep(LATE_S)
                await route.fulfill(response=reply)
            else:
                await route.continue_()

        await page.route("**/whep/main", answer)
        await page.goto(f"http://{SERVER}:8000/")
        await comes(page, "window.sources === 1", LATE_S)
        await comes(page, OVER_HTTP)
        assert await page.evaluate("window.sources") == 2


@pytest.mark.browser
async def test_page_finds_another_way(internet: Networks, tmp_path: Path) -> None:
    """When nothing passes by the path that there was the page restarts ICE, and the same session goes on."""
    public_server(internet)
    async with browsing(internet, tmp_path) as page:
        joined: list[int] = []
        page.on("response", lambda reply: joined.append(reply.status) if reply.request.method == "POST" else None)
        await page.add_init_script(KEEP_PEER)
        await page.goto(f"http://{SERVER}:8000/")
        await page.evaluate(COUNT_FRAMES)
        await comes(page, "window.shown > 8")
        port = await page.evaluate(OWN_PORT)
        async with page.expect_response(is_restart, timeout=PAGE_WAIT_MS):
            rule = f"udp sport {port} drop; udp dport {port} drop;"
            internet.nft("home", f"table ip cut {{ chain forward {{ type filter hook forward priority 0; {rule} }}; }}")
        shown = await page.evaluate("window.shown")
        await comes(page, f"window.shown > {shown + 16}")
        assert await page.evaluate(OWN_PORT) != port
        assert joined == [201], "it joined once"


def is_restart(reply: Any) -> bool:
    """True of the answer to an ICE restart."""
    return bool(reply.request.method == "PATCH" and reply.status == 200)
