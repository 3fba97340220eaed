import asyncio
import logging
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from aioice import stun
from aiortc import RTCConfiguration, RTCPeerConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fakes import Serving, not_understood, sample_offer, serving, watching
from networks import end, turn_command
from test_ports import free_ports, taken

from streaming.errors import Unavailable
from streaming.media.ice import IceAgent
from streaming.media.ice_requests import IceServerError, probe, within
from streaming.media.ice_server import parse, rest_credentials
from streaming.media.network import NetworkConfig

pytestmark = pytest.mark.usefixtures("loopback")
needs_coturn = pytest.mark.skipif(
    shutil.which("turnserver") is None, reason="turnserver is missing: apt-get install coturn"
)
SDP = {"content-type": "application/sdp"}
SECRET = "north wind"


class StunServer(asyncio.DatagramProtocol):
    """A STUN server that sees everyone at 198.51.100.7."""

    def __init__(self) -> None:
        self.answers = True
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes | str, addr: tuple[str, int]) -> None:
        assert isinstance(data, bytes)
        request = stun.parse_message(data)
        self.asked += 1
        if self.answers:
            reply = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, request.transaction_id)
            reply.attributes["XOR-MAPPED-ADDRESS"] = ("198.51.100.7", addr[1])
            self.transport.sendto(bytes(reply), addr)


@asynccontextmanager
async def stun_server() -> AsyncIterator[tuple[StunServer, str]]:
    """A server and its URL."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(StunServer, ("127.0.0.1", 0))
    try:
        yield protocol, f"stun:127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()


def free_tcp_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def make_certificate(folder: Path) -> tuple[str, str]:
    """Files of a certificate for localhost that it signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(hours=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    files[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    return str(files[0]), str(files[1])


@contextmanager
def turn_server(*options: str, tls: bool = False) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """coturn on loopback, and its port."""
    port = free_tcp_port()
    command = turn_command("127.0.0.1", port, *(() if tls else ("--no-tls",)), *options)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield process, port
    finally:
        end(process)  # type: ignore[arg-type]


async def post(running: Serving) -> httpx.Response:
    return await running.http.post("/whep/main", content=await sample_offer(running), headers=SDP)


def candidates(reply: httpx.Response) -> list[tuple[str, int, str]]:
    found = re.findall(r"a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ (\w+)", reply.text)
    return [(host, int(port), kind) for host, port, kind in found]


async def test_answer_names_the_public_address_alone() -> None:
    """Host candidates carry it with the real port, also as the default; media still comes from the machine's own."""
    async with serving("--public-address", "203.0.113.7") as running, watching(running) as watcher:
        assert watcher.answer is not None
        ((host, port, kind),) = candidates(watcher.answer)
        assert (host, kind) == ("203.0.113.7", "host") and port > 0
        assert "127.0.0.1" not in watcher.answer.text.replace("o=- ", "")
        await watcher.received(2)


async def test_a_range_of_one_serves_one_at_a_time() -> None:
    """The second viewer is told to come back, and comes in when the first one has left."""
    port = free_ports(1).first
    async with serving("--media-ports", f"{port}-{port}") as running:
        async with watching(running) as first:
            assert first.answer is not None
            assert candidates(first.answer) == [("127.0.0.1", port, "host")]
            refused = await post(running)
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert "Every media port is in use" in refused.json()["detail"]
            await first.received(2)
            assert (await running.http.delete(first.location)).status_code == 200
        for _ in range(3):
            async with watching(running) as next_one:
                await next_one.received(1)
                await running.http.delete(next_one.location)


async def test_ports_of_failed_sessions_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An offer that aiortc cannot take leaves its port."""
    port = free_ports(1).first
    async with serving("--media-ports", str(port)) as running:
        offer = await sample_offer(running)
        with monkeypatch.context() as patch:
            patch.setattr(RTCPeerConnection, "setRemoteDescription", not_understood)
            for _ in range(3):
                assert (await running.http.post("/whep/main", content=offer, headers=SDP)).status_code == 400
        assert (await post(running)).status_code == 201


async def test_ports_of_other_programs_are_passed_over() -> None:
    """A range of which another has one serves from the other, and with both gone it is a 503."""
    ports = free_ports(2)
    async with serving("--media-ports", str(ports)) as running:
        with taken(ports.first):
            reply = await post(running)
            assert candidates(reply) == [("127.0.0.1", ports.last, "host")]
            await running.http.delete(reply.headers["location"])
            with taken(ports.last):
                assert (await post(running)).status_code == 503


async def test_sessions_that_never_connect_give_their_port_up() -> None:
    """With every port in use the one that waits longest makes room, as with every limit."""
    port = free_ports(1).first
    async with serving("--media-ports", str(port)) as running:
        assert (await post(running)).status_code == 201
        assert (await post(running)).status_code == 503
        await asyncio.sleep(2.1)
        assert (await post(running)).status_code == 201


async def test_stun_tells_the_outer_address() -> None:
    """The answer has a server-reflexive candidate, and players are told of the server."""
    async with stun_server() as (_, url), serving("--ice-server", url) as running:
        reply = await post(running)
        assert [kind for _, _, kind in candidates(reply)] == ["host", "srflx"]
        assert candidates(reply)[1][0] == "198.51.100.7"
        assert reply.headers.get_list("link") == [f'<{url}>; rel="ice-server"']


async def test_a_dead_server_delays_nobody_for_long(caplog: pytest.LogCaptureFixture) -> None:
    """Viewers who meet it first are answered within 1.5 s, all at once, later ones at once; the log tells it once."""
    async with stun_server() as (protocol, url), serving("--ice-server", url) as running:
        offers = [await sample_offer(running) for _ in range(7)]

        async def answered_s(offer: str) -> float:
            began_s = time.monotonic()
            reply = await running.http.post("/whep/main", content=offer, headers=SDP)
            assert [kind for _, _, kind in candidates(reply)] == ["host"]
            return time.monotonic() - began_s

        protocol.answers = False
        with caplog.at_level(logging.WARNING, "streaming.media.ice"):
            assert max(await asyncio.gather(*map(answered_s, offers[:6]))) < 1.6
            asked = protocol.asked
            assert await answered_s(offers[6]) < 0.5
        assert protocol.asked == asked
        assert [record.getMessage() for record in caplog.records] == [
            f"ice server {url} did not answer within 1 s; going on without it for 30 s"
        ]


async def test_a_public_address_that_nobody_is_told_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """One of a family that the machine has no address of takes no effect: a warning at the start has the cure."""
    agent = IceAgent(NetworkConfig(public=("203.0.113.7", "2001:db8::7")))
    with caplog.at_level(logging.WARNING, "streaming.media.ice"):
        await agent.check()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "--public-address 2001:db8::7 has no effect, since media is sent from 127.0.0.1: leave it out, or give the "
        "machine an IPv6 address"
    )


async def test_a_server_that_is_down_at_start_is_no_reason_to_stay_down(caplog: pytest.LogCaptureFixture) -> None:
    """The server starts, says so, and answers without it."""
    with taken(0) as silent, caplog.at_level(logging.WARNING, "streaming.media.ice"):
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        async with serving(
            "--ice-server", f"turn:a:b@{url}", "--ice-server", f"turn:a:b@{url}?transport=tcp"
        ) as running:
            began_s = time.monotonic()
            reply = await post(running)
            assert time.monotonic() - began_s < 0.5
            assert [kind for _, _, kind in candidates(reply)] == ["host"]
            assert len(reply.headers.get_list("link")) == 2
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "did not answer within 2 s" in said[0] and "cannot be reached" in said[1]


async def test_sessions_that_end_while_they_gather_leave_nothing() -> None:
    """A client that goes away during the wait for a dead server leaves no port, no task and no session."""
    port = free_ports(1).first
    async with stun_server() as (protocol, url), serving("--ice-server", url, "--media-ports", str(port)) as running:
        offer = await sample_offer(running)
        protocol.answers = False
        with pytest.raises(httpx.ReadTimeout):
            await running.http.post("/whep/main", content=offer, headers=SDP, timeout=0.2)
        # The session is there until its answer is made, and then until it makes room.
        await asyncio.sleep(2.1)
        assert (await post(running)).status_code == 201


def run_server(*argv: str) -> subprocess.CompletedProcess[str]:
    fakes = str(Path(__file__).parent / "fakes.py")
    command = [sys.executable, fakes, "--port", "0", "--ice-address", "127.0.0.1", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("error", "words", "final"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "is at no host: Name or service", True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "is at no host: Temporary failure", False),
        (ConnectionRefusedError(111, "Connection refused"), "cannot be reached: Connection refused", False),
        (KeyError("XOR-MAPPED-ADDRESS"), "answers with what cannot be used", False),
        (stun.TransactionTimeout(), "did not answer", False),
    ],
)
async def test_failures_are_told_in_words(error: Exception, words: str, final: bool) -> None:
    """Only what cannot change by itself keeps the server from starting."""

    async def job() -> None:
        raise error

    with pytest.raises(IceServerError, match=words) as caught:
        await within(1.0, job())
    assert caught.value.final is final


@needs_coturn
async def test_turn_over_tls_needs_a_trusted_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the certificate among the trusted ones it relays; else the reason is the certificate."""
    certificate, key = make_certificate(tmp_path)
    tls = free_tcp_port()
    options = ("--lt-cred-mech", "--user", "ann:right", "--tls-listening-port", str(tls), "--cert", certificate)
    with turn_server(*options, "--pkey", key, tls=True):
        server = parse(f"turns:ann:right@localhost:{tls}")
        with pytest.raises(IceServerError, match="certificate verify failed"):
            await probe(server)
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert await probe(server) == "127.0.0.1"


@needs_coturn
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_wrong_credentials_are_refused_at_start(transport: str) -> None:
    """The TURN server's own word is final: one line, status 2."""
    with turn_server("--lt-cred-mech", "--user", "ann:right") as (_, port):
        result = run_server("--ice-server", f"turn:ann:wrong@127.0.0.1:{port}?transport={transport}")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"turn:127.0.0.1:{port}?transport={transport} refuses the credentials: 401" in line


@needs_coturn
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_relay_is_in_the_answer_and_given_back(transport: str) -> None:
    """Each session has an allocation with credentials made for it, and the viewer gets others."""
    options = ("--use-auth-secret", "--static-auth-secret", SECRET)
    with turn_server(*options) as (_, port):
        argv = ("--ice-server", f"turn:127.0.0.1:{port}?transport={transport}", "--turn-secret", SECRET)
        async with serving(*argv) as running:
            tasks = len(asyncio.all_tasks())
            replies = [await post(running) for _ in range(2)]
            names = []
            for reply in replies:
                assert [kind for _, _, kind in candidates(reply)] == ["host", "relay"]
                link = reply.headers["link"]
                found = re.search(r'username="(\d+):(\w+)"; credential="([^"]+)"', link)
                assert found and int(found[1]) > time.time() + 3600
                assert found[3] == rest_credentials(SECRET, int(found[1]), found[2])[1]
                assert await probe(parse(f"turn:{found[1]}%3A{found[2]}:{found[3]}@127.0.0.1:{port}")) == "127.0.0.1"
                names.append(found[2])
                await running.http.delete(reply.headers["location"])
            assert names[0] != names[1]
            async with asyncio.timeout(3):
                while len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)


@needs_coturn
async def test_sessions_survive_the_death_of_their_turn_server() -> None:
    """A viewer who is connected otherwise goes on; its end waits for nothing, nor does the server's."""
    with turn_server("--lt-cred-mech", "--user", "ann:right") as (process, port):
        async with serving("--ice-server", f"turn:ann:right@127.0.0.1:{port}") as running, watching(running) as watcher:
            process.kill()
            await watcher.received(4)
            began_s = time.monotonic()
            assert (await running.http.delete(watcher.location)).status_code == 200
            assert time.monotonic() - began_s < 0.5
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 3


@needs_coturn
async def test_probe_names_what_is_wrong() -> None:
    """Wrong credentials are final; a STUN request to a TURN server works without any."""
    with turn_server("--lt-cred-mech", "--user", "ann:right") as (_, port):
        assert await probe(parse(f"stun:127.0.0.1:{port}")) == "127.0.0.1"
        with pytest.raises(IceServerError, match="refuses the credentials") as caught:
            await probe(parse(f"turn:bob:right@127.0.0.1:{port}"))
        assert caught.value.final


@pytest.mark.parametrize(("authorization", "count"), [({}, 1), ({"authorization": "Bearer s3"}, 2)])
async def test_options_keep_credentials_from_strangers(authorization: dict[str, str], count: int) -> None:
    """With a token, OPTIONS gives TURN servers to those who have it and STUN servers to all; GET and HEAD ask."""
    with taken(0) as silent:
        turn = f"turn:a:b@127.0.0.1:{silent.getsockname()[1]}"
        async with (
            stun_server() as (_, url),
            serving("--ice-server", turn, "--ice-server", url, "--token", "s3") as running,
        ):
            async with httpx.AsyncClient(base_url=running.url, headers=authorization) as http:
                for method in ("OPTIONS", "GET", "HEAD") if authorization else ("OPTIONS",):
                    reply = await http.request(method, "/whep/main")
                    assert reply.status_code == 204
                    links = reply.headers.get_list("link")
                    assert len(links) == count
                    assert sum("credential=" in link for link in links) == count - 1
                if not authorization:
                    assert (await http.get("/whep/main")).status_code == 401


async def test_without_servers_there_is_no_link() -> None:
    """Nothing is asked for and nothing is told."""
    async with serving() as running:
        assert "link" not in (await post(running)).headers
        assert "link" not in (await running.http.options("/whep/main")).headers


async def test_without_an_address_there_is_no_answer() -> None:
    """A server whose address is gone says so at once, instead of an answer that leads nowhere."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transport = peer.addTransceiver("video", direction="sendonly").sender.transport
    with pytest.raises(Unavailable, match="no network address"):
        await IceAgent(NetworkConfig(addresses=("192.0.2.77",))).gather(transport)
    await peer.close()
