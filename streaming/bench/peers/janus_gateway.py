"""`python -m streaming.bench.peers.janus_gateway PORT JANUS_PORT`: WHEP in front of Janus' streaming plugin.

Janus has an API of its own for signalling; media does not pass here.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import urllib.request
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

MOUNTPOINT = 1
REPLACED = ("a=setup:", "a=sendonly", "a=recvonly", "a=sendrecv")
OF_A_SIDE = ("a=ice-ufrag:", "a=ice-pwd:", "a=fingerprint:", "a=candidate:", "a=end-of-candidates", *REPLACED)
_numbers = itertools.count()


class Janus:
    """Requests to Janus' HTTP API, as its transport wants them."""

    def __init__(self, url: str) -> None:
        self._url = url

    def watch(self, offer: str) -> str:
        """The answer to a viewer's offer. Both sides make an offer here, and each gets the other's as its answer."""
        session = self._ask("", {"janus": "create"})["data"]["id"]
        handle = self._ask(f"/{session}", {"janus": "attach", "plugin": "janus.plugin.streaming"})["data"]["id"]
        place = f"/{session}/{handle}"
        self._ask(place, {"janus": "message", "body": {"request": "watch", "id": MOUNTPOINT}})
        while "jsep" not in (event := self._get(f"/{session}?rid={time.time_ns()}")):
            if "error" in event or "error" in event.get("plugindata", {}).get("data", {}):
                raise ValueError(f"Janus refuses: {event}")
        theirs = str(event["jsep"]["sdp"])
        answer = {"type": "answer", "sdp": _as_answer(theirs, offer, "passive", "recvonly")}
        self._ask(place, {"janus": "message", "body": {"request": "start"}, "jsep": answer})
        # Janus opens DTLS: aiortc does not get along with its RSA certificate the other way round.
        return _as_answer(theirs, theirs, "active", "sendonly")

    def _ask(self, path: str, value: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(value | {"transaction": str(next(_numbers))}).encode()
        request = urllib.request.Request(self._url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            return dict(json.load(reply))

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self._url + path, timeout=40) as reply:
            return dict(json.load(reply))


def _as_answer(form: str, source: str, setup: str, direction: str) -> str:
    """An answer with the media lines of `form`, and connection and candidates of `source`."""
    kept = [line for line in form.splitlines() if not line.startswith(OF_A_SIDE)]
    own = [line for line in source.splitlines() if line.startswith(OF_A_SIDE) and not line.startswith(REPLACED)]
    return "\r\n".join([*kept, *dict.fromkeys(own), f"a=setup:{setup}", f"a={direction}", ""])


def create(janus: Janus) -> FastAPI:
    app = FastAPI()

    @app.post("/whep")
    async def whep(request: Request) -> Response:
        answer = await run_in_threadpool(janus.watch, (await request.body()).decode())
        return Response(answer, 201, media_type="application/sdp")

    return app


if __name__ == "__main__":
    gateway = create(Janus(f"http://127.0.0.1:{sys.argv[2]}/janus"))
    uvicorn.run(gateway, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
