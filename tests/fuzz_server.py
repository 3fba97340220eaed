"""A server with a fake engine in a thread of its own, for requests that may be anything."""

from __future__ import annotations

import asyncio
import atexit
import http.client
import json
import re
import tempfile
import threading
from contextlib import suppress
from functools import cache
from urllib.parse import quote, urlsplit

from fakes import serving
from test_whep import HOST, OFFER

BODIES = ("POST", "PATCH", "DELETE", "OPTIONS")  # methods; answers to GET may have no end
LIMIT_S = 20.0  # for an answer
# It would knock at the doors of strangers: the addresses are made up.
ELSEWHERE = "pushes"
JSON, SDP, TRICKLE = "application/json", "application/sdp", "application/trickle-ice-sdpfrag"


def http_seeds() -> list[bytes]:
    """Requests: a line with method, path and content type, then the body. SESSION stands for one that is open."""
    offer = "".join(f"{row}\r\n" for row in OFFER)
    requests = [
        ("PATCH", "/channels/main", JSON, json.dumps({"prompt": "a red ball", "mode": "cut", "seed": 3})),
        ("PATCH", "/channels/main", JSON, json.dumps({"paused": False, "seed": 3.0})),
        ("POST", "/channels", JSON, json.dumps({"id": "a", "prompt": "the sea", "seed": 1, "steps": "auto"})),
        ("POST", "/channels", JSON, json.dumps({"from": {"channel": "main", "chunk": 1}, "steps": 2})),
        ("POST", "/channels", JSON, json.dumps({"from": {"journal": "main.20260101-000000-000000", "chunk": 1}})),
        ("POST", "/channels", JSON, json.dumps({"start": "iVBORw0KGgo=", "prompt": "the sea"})),
        ("DELETE", "/channels/a?purge=true", JSON, ""),
        ("POST", "/channels/main/plan/discard", JSON, json.dumps({"frame": 30, "seed": 3})),
        ("POST", "/channels/main/recordings", JSON, ""),
        ("DELETE", "/channels/main/recordings/20260101-000000-000", JSON, ""),
        ("POST", "/whep/main?codec=h264&marker=true", SDP, offer),
        ("PATCH", "/whep/main/SESSION", TRICKLE, f"{HOST}\r\n"),
        ("PATCH", "/whep/main/SESSION", TRICKLE, "a=ice-ufrag:other\r\na=ice-pwd:" + "p" * 22 + f"\r\n{HOST}\r\n"),
        ("DELETE", "/whep/main/SESSION", SDP, ""),
    ]
    return [f"{method} {path} {kind}\n{body}".encode() for method, path, kind, body in requests]


class FuzzServer:
    """Serves until the process ends."""

    def __init__(self) -> None:
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._session = ""
        self._thread.start()
        self._ready.wait(60)
        self._connection = http.client.HTTPConnection(self._address, timeout=LIMIT_S)
        atexit.register(self.close)

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        with tempfile.TemporaryDirectory() as folder:
            async with serving("--recordings", folder) as running:
                self._address = urlsplit(running.url).netloc
                self._ready.set()
                await self._stop.wait()

    def close(self) -> None:
        """Ends it."""
        self._connection.close()
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def status(self, data: bytes) -> int:
        """Of the answer to a request, which is a problem where it is an error."""
        line, _, body = data.partition(b"\n")
        words = (*line.decode("latin-1").split(" "), "", "", "")
        method = words[0] if words[0] in BODIES else "POST"
        path = quote(words[1], safe="/?=&%+;,:@") or "/"
        path = path if path.startswith("/") else f"/{path}"
        if ELSEWHERE in path or re.match(r"/channels/main/?(\?|$)", path) and method == "DELETE":
            return 404
        if "SESSION" in path:
            path = path.replace("SESSION", self._open_session())
        status, kind, content = self._ask(method, path, re.sub(r"[^\x20-\x7e]", "", words[2]), body)
        if "/whep/main/" in path and (status == 404 or method == "DELETE"):
            self._session = ""
        if status >= 400:
            told = json.loads(content)
            assert kind == "application/problem+json" and told["status"] == status and told["detail"], content
        return status

    def _open_session(self) -> str:
        if not self._session:
            offer = "".join(f"{row}\r\n" for row in OFFER)
            self._ask("POST", "/whep/main", SDP, offer.encode())
        return self._session or "none"

    def _ask(self, method: str, path: str, kind: str, body: bytes) -> tuple[int, str, bytes]:
        headers = {"Content-Type": kind, **({"If-Match": "*"} if "sdpfrag" in kind else {})}
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            content = answer.read()
        except (http.client.HTTPException, OSError):
            self._connection.close()
            raise
        if answer.status == 201 and path.startswith("/whep/"):
            self._session = (answer.getheader("Location") or "").rpartition("/")[2]
        return answer.status, answer.getheader("Content-Type") or "", content


@cache
def _server() -> FuzzServer:
    return FuzzServer()


def http_status(data: bytes) -> int:
    """Of the answer of a server that is started with the first call."""
    return _server().status(data)


def stop() -> None:
    """Ends it, if it was started."""
    if _server.cache_info().currsize:
        _server().close()
        _server.cache_clear()
