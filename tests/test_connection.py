import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from certificate import make_certificate, trusting
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from streaming.http import connection, guard
from streaming.http.access import Access, Tokens
from streaming.http.app import HttpServer
from streaming.http.listening import listen
from streaming.http.tls import context

HUGE_BYTES = 50_000_000
HELLO = b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n"


class Endless:
    """An app with one short answer and one without end."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.app = FastAPI()
        self.app.get("/hello")(self.hello)
        self.app.get("/endless")(self.endless)

    async def hello(self) -> str:
        return "hello"

    async def endless(self) -> StreamingResponse:
        async def text() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(65536)
                    await asyncio.sleep(0)
            finally:
                self.ended.set()

        return StreamingResponse(text())


@asynccontextmanager
async def listening(app: FastAPI, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The app's port while it is served."""
    http = HttpServer(app, tls)
    with listen("127.0.0.1", 0) as listener:
        task = asyncio.create_task(http.serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            http.should_exit = True
            await task


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the server closes or cuts the connection."""
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nhost: ", HELLO])
async def test_header_must_arrive_in_time(monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    """A connection that sends no whole header, first or next, is cut off; others are answered meanwhile."""
    monkeypatch.setattr(connection, "HEADER_TIMEOUT_S", 0.3)
    async with listening(Endless().app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begin)
        other_reader, other = await asyncio.open_connection("127.0.0.1", port)
        other.write(HELLO)
        assert (await other_reader.readline()).startswith(b"HTTP/1.1 200")
        assert (await ended(reader)).startswith(b"HTTP/1.1 200" if begin == HELLO else b"")
        for end in (writer, other):
            end.close()


async def test_one_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection over the limit gets 503 as problem+json, and a place is free once another closes."""
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 2)
    async with listening(Endless().app) as port:
        writers = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HELLO)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writers.append(writer)
        refused, writer = await asyncio.open_connection("127.0.0.1", port)
        reply = await ended(refused)
        assert reply.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"application/problem+json" in reply and b"Retry-After: 2" in reply
        assert reply.endswith(b'"detail":"Too many connections are open; try again later."}')
        writers[0].close()
        await asyncio.sleep(0.1)
        reader, last = await asyncio.open_connection("127.0.0.1", port)
        last.write(HELLO)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        for end in (writer, last, writers[1]):
            end.close()


async def test_unread_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read its answer loses the connection, and the answer's generator ends."""
    monkeypatch.setattr(connection, "SEND_TIMEOUT_S", 0.3)
    served = Endless()
    async with listening(served.app) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.send(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            async with asyncio.timeout(5):
                await served.ended.wait()


def guarded() -> FastAPI:
    made = Endless().app
    guard.install(made)
    made.add_middleware(guard.Framing)

    @made.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    return made


@pytest.mark.parametrize("header", [f"content-length: {HUGE_BYTES}", "transfer-encoding: chunked"])
async def test_whoever_sends_a_huge_body_whole_reads_why_it_is_refused(header: str) -> None:
    """A client that reads only after 50 MB were sent finds a 413 and an orderly end, no reset."""
    body = bytes(HUGE_BYTES)
    if "chunked" in header:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (HUGE_BYTES, body)

    def send_then_read(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(f"POST /echo HTTP/1.1\r\nhost: x\r\n{header}\r\n\r\n".encode() + body)
            return b"".join(iter(lambda: client.recv(65536), b""))

    async with listening(guarded()) as port:
        reply = await asyncio.to_thread(send_then_read, port)
    assert reply.startswith(b"HTTP/1.1 413 ") and b"application/problem+json" in reply
    assert b"The body is larger than 32768 bytes." in reply


async def test_a_stranger_who_sends_a_huge_body_whole_reads_why() -> None:
    """The refusal for want of a token, which comes before the body is read, arrives too."""
    app = guarded()
    app.add_middleware(Access, tokens=Tokens(control="x"))

    def send_then_read(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(f"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {HUGE_BYTES}\r\n\r\n".encode())
            client.sendall(bytes(HUGE_BYTES))
            return client.recv(65536)

    async with listening(app) as port:
        reply = await asyncio.to_thread(send_then_read, port)
    assert reply.startswith(b"HTTP/1.1 401 ")


async def test_who_asks_before_sending_is_answered_at_once() -> None:
    """With `Expect: 100-continue` a body that is too large is refused before it is sent."""
    async with listening(guarded()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 50000000\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()


POST = b"POST /echo HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"content-length: 3\r\n" + CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n",
        POST + CHUNKED + b"content-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        POST + b"content-length: -3\r\n\r\nabc",
        POST + b"transfer-encoding: gzip\r\n\r\nabc",
        POST + CHUNKED + b"\r\nxyz\r\n",
        b"GET /hello HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_what_is_no_clear_http_is_a_problem(request_bytes: bytes) -> None:
    """A body whose end is told twice, or not rightly, and all that is malformed: 400 as problem+json, and the end."""
    async with listening(guarded()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        reply = (await ended(reader)).lower()
        writer.close()
    assert reply.startswith(b"http/1.1 400 "), reply
    assert b"content-type: application/problem+json" in reply and b"connection: close" in reply


async def test_tls_connections_count_before_their_handshake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that never shake hands are within the limit, are cut off in time, and then others are served."""
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(connection, "HEADER_TIMEOUT_S", 1.0)
    certificate, key = make_certificate(tmp_path)
    async with listening(Endless().app, context(str(certificate), str(key))) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port, ssl=trusting(certificate))
        for reader, writer in silent:
            assert await ended(reader) == b""
            writer.close()
        plain, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HELLO)
        assert not (await ended(plain)).startswith(b"HTTP")
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(certificate))
        for _ in range(2):
            writer.write(HELLO)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            while (await reader.readline()).strip():
                pass
            assert await reader.readexactly(7) == b'"hello"'
        writer.close()


async def test_a_huge_body_over_tls_finds_its_answer(tmp_path: Path) -> None:
    """Encrypted or not is no difference."""
    certificate, key = make_certificate(tmp_path)

    def send_then_read(port: int) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
            trusting(certificate).wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            client.sendall(f"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {HUGE_BYTES}\r\n\r\n".encode())
            client.sendall(bytes(HUGE_BYTES))
            return client.recv(65536)

    async with listening(guarded(), context(str(certificate), str(key))) as port:
        reply = await asyncio.to_thread(send_then_read, port)
    assert reply.startswith(b"HTTP/1.1 413 ")
