import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request

from streaming.http import guard


def app() -> FastAPI:
    made = FastAPI()
    guard.install(made)
    made.add_middleware(guard.Framing)

    @made.get("/echo")
    async def get() -> str:
        return "read"

    @made.post("/echo")
    async def post(request: Request) -> int:
        return len(await request.body())

    @made.post("/typed")
    async def typed(body: dict[str, int]) -> dict[str, int]:
        return body

    @made.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "Short and stout.", {"X-Spout": "yes"})

    @made.get("/defect")
    async def defect() -> None:
        raise RuntimeError("secret detail")

    return made


def client(made: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(made, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def is_problem(reply: httpx.Response, status: int) -> bool:
    body = reply.json()
    return (
        reply.status_code == status == body["status"]
        and reply.headers["content-type"] == "application/problem+json"
        and set(body) == {"type", "title", "status", "detail"}
        and bool(body["detail"])
    )


async def test_every_error_is_a_problem() -> None:
    """404, 405, own errors, validation errors and defects have one shape; a defect tells no detail.

    An unknown path and a wrong method are named, with the cure.
    """
    async with client(app()) as http:
        missing, wrong = await http.get("/nowhere"), await http.delete("/echo")
        assert is_problem(missing, 404) and is_problem(wrong, 405)
        assert missing.json()["detail"] == "There is nothing at /nowhere; /openapi.json lists the paths."
        assert wrong.json()["detail"] == "/echo takes no DELETE, but GET, HEAD, OPTIONS, POST."
        assert len((await http.get("/" + "x" * 9000)).json()["detail"]) < 300
        teapot = await http.get("/teapot")
        assert is_problem(teapot, 418)
        assert teapot.headers["x-spout"] == "yes"
        defect = await http.get("/defect")
        assert is_problem(defect, 500)
        assert "secret" not in defect.text
        for body, status in (
            (b"{", 422),
            (b"[]", 422),
            (b'{"a": "x"}', 422),
            (b'{"a": "\\ud800"}', 422),
            (b"\xff", 400),
            ('{"a": 1}'.encode("utf-16"), 400),
            ('{"a": 1}'.encode("utf-32"), 400),
            (b"[" * 20_000, 400),
        ):
            reply = await http.post("/typed", content=body, headers={"content-type": "application/json"})
            assert is_problem(reply, status), body


async def test_body_limit_is_exact() -> None:
    """A body of the limit passes whole; one byte more is 413, also when it comes in pieces of unknown length."""

    async def pieces(size: int) -> Iterator[bytes]:
        for _ in range(size // 1024):
            yield bytes(1024)
        yield bytes(size % 1024)

    limit = guard.USUAL.most_bytes
    async with client(app()) as http:
        assert (await http.post("/echo", content=bytes(limit))).json() == limit
        assert (await http.post("/echo", content=pieces(limit))).json() == limit
        assert is_problem(await http.post("/echo", content=bytes(limit + 1)), 413)
        assert is_problem(await http.post("/echo", content=pieces(limit + 1)), 413)


async def test_body_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that never ends is 408 after the time limit."""
    monkeypatch.setattr(guard, "USUAL", guard.Bounds(guard.USUAL.most_bytes, 0.05))
    sent = []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(60)
        return {}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/echo", "headers": [], "query_string": b""}
    await app()(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 408


async def test_files_are_taken_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to their own limit and a few at a time; on other routes, and of unknown length, they are too large."""
    monkeypatch.setattr(guard, "UPLOADS", {("POST", "/echo")})
    monkeypatch.setattr(guard, "UPLOAD", guard.Bounds(200_000, 60.0))
    async with client(app()) as http:
        assert (await http.post("/echo", content=bytes(200_000))).json() == 200_000
        assert is_problem(await http.post("/echo", content=bytes(200_001)), 413)
        assert is_problem(await http.post("/typed", content=bytes(100_000)), 413)

        async def pieces() -> AsyncIterator[bytes]:
            yield bytes(100_000)

        assert is_problem(await http.post("/echo", content=pieces()), 413)


async def test_slow_files_are_given_up_and_leave_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told to come back; those that do not arrive are 408, and their places are free again."""
    monkeypatch.setattr(guard, "UPLOADS", {("POST", "/echo")})
    monkeypatch.setattr(guard, "UPLOAD", guard.Bounds(200_000, 0.2))
    monkeypatch.setattr(guard, "DRAIN_IDLE_S", 0.0)
    guarded, sent = app(), [[] for _ in range(guard.MOST_UPLOADS + 1)]  # type: ignore[var-annotated]

    async def receive() -> dict[str, object]:
        await asyncio.sleep(60)
        return {}

    async def ask(messages: list[dict[str, object]]) -> None:
        async def send(message: dict[str, object]) -> None:
            messages.append(message)

        headers = [(b"content-length", b"100000")]
        scope = {"type": "http", "method": "POST", "path": "/echo", "headers": headers, "query_string": b""}
        await guarded(scope, receive, send)  # type: ignore[arg-type]

    await asyncio.gather(*map(ask, sent))
    assert [messages[0]["status"] for messages in sent] == [408] * guard.MOST_UPLOADS + [503]
    assert (b"retry-after", b"2") in sent[-1][0]["headers"]
    await ask(again := [])
    assert again[0]["status"] == 408


async def test_a_refused_body_is_read_on_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is whole before the rest of the body is read; what never ends is left after the limits."""
    sent: list[dict[str, object]] = []
    reads = []

    async def receive() -> dict[str, object]:
        reads.append([message["type"] for message in sent])
        await asyncio.sleep(0)
        return {"type": "http.request", "body": bytes(10_000), "more_body": True}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/echo", "headers": [], "query_string": b""}
    for name, value in (("DRAIN_BYTES", 100_000), ("DRAIN_S", 0.05), ("DRAIN_IDLE_S", 0.0)):
        with monkeypatch.context() as patch:
            patch.setattr(guard, name, value)
            sent.clear(), reads.clear()
            await app()(scope, receive, send)  # type: ignore[arg-type]
        assert (sent[0]["status"], sent[-1]["more_body"]) == (413, False)
        assert json.loads(bytes(sent[1]["body"]))["status"] == 413  # type: ignore[call-overload]
        assert reads[-1] == ["http.response.start", "http.response.body"]
    announced = {**scope, "headers": [(b"content-length", b"50000000")]}
    sent.clear(), reads.clear()
    monkeypatch.setattr(guard, "DRAIN_BYTES", 1)
    await app()(announced, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 413 and reads[0] == ["http.response.start", "http.response.body"]


async def test_two_lengths_are_refused() -> None:
    """Content-Length beside Transfer-Encoding is 400, whatever the method and path."""
    async with client(app()) as http:
        for method, path in (("POST", "/echo"), ("GET", "/echo"), ("PATCH", "/nowhere")):
            headers = {"content-length": "3", "transfer-encoding": "chunked"}
            reply = await http.request(method, path, content=b"abc", headers=headers)
            assert is_problem(reply, 400) and reply.headers["connection"] == "close"
