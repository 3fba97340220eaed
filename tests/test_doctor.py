import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from fakes import serving
from test_ice import stun_server
from test_ports import free_ports, taken

from streaming.channels.report import ChannelReport
from streaming.doctor.findings import Finding, examine_channel, examine_https
from streaming.doctor.media_path import examine_network
from streaming.media.ice import IceAgent
from streaming.media.ice_server import parse
from streaming.media.network import NetworkConfig

pytestmark = pytest.mark.usefixtures("loopback")

REPORT = ChannelReport("main", "a ball", 0, "mini", 192, 128, 8.0, "live", None, 5, 1.0, 1, 0, 6.5, 4, None, None, [])


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


async def network(**values: Any) -> dict[str, Finding]:
    return by_name(await examine_network(IceAgent(NetworkConfig(**values))))


@contextmanager
def silent_turn() -> Iterator[str]:
    """A TURN server's URL with credentials where nobody answers."""
    with taken(0) as bound:
        yield f"turn:ann:hunter2@127.0.0.1:{bound.getsockname()[1]}"


async def test_a_running_server_tells_what_works() -> None:
    """Every subject is there, as JSON for programs; what is well needs no cure."""
    async with serving() as running:
        await running.until(lambda report: report["chunk"] is not None)
        reply = await running.http.get("/doctor")
        assert reply.headers["content-type"] == "application/json"
        found = {entry["name"]: entry for entry in reply.json()["findings"]}
        assert set(found) == {"channel main", "addresses", "ports", "cores", "bf16", "vp8", "h264", "https"}
        assert "preset mini makes 192x128 at 16 frames a second" in found["channel main"]["words"]
        assert found["addresses"]["state"] == "note"
        assert "on this machine only" in found["addresses"]["words"] and found["addresses"]["cure"]
        assert {found[name]["state"] for name in ("vp8", "h264", "https", "channel main")} == {"ok"}


async def test_people_get_a_page() -> None:
    """A browser is given HTML, which runs nothing."""
    async with serving() as running:
        reply = await running.http.get("/doctor", headers={"accept": "text/html,*/*;q=0.8"})
        assert reply.headers["content-type"].startswith("text/html")
        assert "<h1>What works here</h1>" in reply.text and "addresses" in reply.text
        assert reply.headers["content-security-policy"] == "default-src 'self'"


async def test_a_dead_turn_server_is_named_without_its_password() -> None:
    """What fails has a cure, and no report holds a credential."""
    with silent_turn() as url:
        async with serving("--ice-server", url) as running:
            for accept in ("application/json", "text/html"):
                reply = await running.http.get("/doctor", headers={"accept": accept})
                assert "did not answer within 2 s" in reply.text
                assert "hunter2" not in reply.text and "ann" not in reply.text.replace("channel", "")


async def test_many_readers_cost_one_examination() -> None:
    """STUN servers are not asked once a request."""
    async with stun_server() as (protocol, url), serving("--ice-server", url) as running:
        before = protocol.asked
        replies = await asyncio.gather(*(running.http.get("/doctor") for _ in range(8)))
        assert {reply.status_code for reply in replies} == {200}
        assert protocol.asked == before + 1


async def test_stun_tells_a_wrong_public_address() -> None:
    """Another address than the one that viewers are told is a problem, with the right option as its cure."""
    async with stun_server() as (_, url):
        server = parse(url)
        found = await network(servers=(server,), public=("203.0.113.7",))
        assert found["addresses"].state == "problem"
        assert found["addresses"].cure == "--public-address 198.51.100.7"
        found = await network(servers=(server,), public=("198.51.100.7",))
        assert found["addresses"].state == found[server.url].state == "ok"
        assert "sees this machine as 198.51.100.7" in found[server.url].words


async def test_a_public_address_of_another_family_is_a_problem() -> None:
    """Nothing is sent from such an address, so no viewer is told of it."""
    assert (await network(public=("2001:db8::7",)))["addresses"].state == "problem"


async def test_ports_are_counted() -> None:
    """How many are free, and a problem where none is."""
    ports = free_ports(2)
    assert "any free UDP port" in (await network())["ports"].words
    with taken(ports.first):
        assert (await network(ports=ports))["ports"].words.startswith(f"1 of the 2 UDP ports of {ports} are free")
        with taken(ports.last):
            assert (await network(ports=ports))["ports"].state == "problem"


async def test_servers_for_players_only_are_said_to_be() -> None:
    """Nothing is asked of them."""
    server = parse("stuns:stun.example.org")
    found = (await network(servers=(server,)))[server.url]
    assert (found.state, found.cure) == ("note", None) and "for players only" in found.words


@pytest.mark.parametrize(
    ("addresses", "state", "words"),
    [
        (("10.0.0.5",), "note", "in this network only"),
        (("127.0.0.1",), "note", "on this machine only"),
        (("10.0.0.5", "8.8.8.8"), "ok", "viewers anywhere can reach"),
        (("8.8.8.8", "2001:4860:4860::8888"), "ok", "viewers anywhere can reach"),
        (("10.0.0.5", "2001:4860:4860::8888"), "note", "those with IPv4 alone in this network at most"),
        (("2001:4860:4860::8888",), "note", "those with IPv4 alone in this network at most"),
        (("10.0.0.5", "fd00::5"), "note", "viewers in this network only"),
    ],
)
async def test_addresses_say_who_can_watch(addresses: tuple[str, ...], state: str, words: str) -> None:
    """Private ones need a router's mapping or TURN; a global IPv4 address is enough, an IPv6 one is not."""
    found = (await network(addresses=addresses))["addresses"]
    assert found.state == state and words in found.words
    assert (found.cure is None) is (state == "ok")


async def test_public_addresses_are_judged_by_family() -> None:
    """An IPv6 one helps nobody who has IPv4 alone, and a STUN server that sees an IPv4 one does not contradict it."""
    six, four, both = "2001:4860:4860::8888", "203.0.113.7", ("10.0.0.5", "fd00::5")
    assert (await network(addresses=both, public=(four,)))["addresses"].state == "ok"
    assert (await network(addresses=both, public=(four, six)))["addresses"].state == "ok"
    async with stun_server() as (_, url):
        found = (await network(addresses=both, public=(six,), servers=(parse(url),)))["addresses"]
    assert found.state == "note" and "those with IPv4 alone in this network at most" in found.words
    assert found.cure is not None and found.cure.startswith("--public-address 198.51.100.7 where a router")


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({}, "ok", "6.5 s of video a second"),
        ({"realtime_factor": 0.5}, "problem", "only 0.50 s of video a second"),
        ({"realtime_factor": None}, "ok", "at 8 frames a second"),
        ({"width": None, "state": "starting", "progress": "weights 40%"}, "note", "starting: weights 40%"),
        ({"state": "failed", "error": "no weights in 'x'"}, "problem", "failed: no weights in 'x'"),
    ],
)
def test_the_channel_tells_of_engine_and_weights(change: dict[str, Any], state: str, words: str) -> None:
    """Whether it is warm, fast enough, or why not."""
    found = examine_channel(replace(REPORT, **change))
    assert found.state == state and words in found.words
    assert (found.cure is None) is (state == "ok")


@pytest.mark.parametrize(
    ("scheme", "host", "state"),
    [
        ("https", "live.example.org", "ok"),
        ("http", "localhost", "ok"),
        ("http", "127.0.0.1", "ok"),
        ("http", "::1", "ok"),
        ("http", "live.example.org", "note"),
        ("http", "10.0.0.5", "note"),
    ],
)
def test_https_is_asked_for_beyond_this_machine(scheme: str, host: str, state: str) -> None:
    """Plain HTTP is fine on loopback only."""
    assert examine_https(scheme, host).state == state
