"""`python tests/far_viewer.py URL [links|bare]`: a viewer in a process of its own; prints one line of JSON.

With `links` it asks for the server's ICE servers first, as a WHEP player may. Times are in seconds since its offer.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

import httpx
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

LIMIT_S = 9.0


def servers_of(links: list[str]) -> list[RTCIceServer]:
    """ICE servers of `Link` headers."""
    servers = []
    for link in links:
        url = re.match(r"<([^>]*)>", link)
        values = dict(re.findall(r'; ([a-z-]+)="([^"]*)"', link))
        assert url and values["rel"] == "ice-server", link
        servers.append(RTCIceServer(url[1], values.get("username"), values.get("credential")))
    return servers


async def watch(url: str, links: bool) -> dict[str, object]:
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        began_s = time.monotonic()
        reply = await http.options("/whep/main")
        servers = servers_of(reply.headers.get_list("link")) if links else []
        peer = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        try:
            receiver = peer.addTransceiver("video", direction="recvonly").receiver
            await peer.setLocalDescription(await peer.createOffer())
            offered_s = time.monotonic()
            headers = {"content-type": "application/sdp"}
            answer = await http.post("/whep/main", content=peer.localDescription.sdp, headers=headers)
            answered_s = time.monotonic()
            said = {"status": answer.status_code, "answer": answer.text, "answered_s": answered_s - offered_s}
            await peer.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
            try:
                async with asyncio.timeout(LIMIT_S):
                    for _ in range(4):
                        await receiver.track.recv()
                        said.setdefault("picture_s", time.monotonic() - began_s)
            except TimeoutError:
                return said
            (pair,) = receiver.transport.transport._connection._nominated.values()
            local, remote = pair.local_candidate, pair.remote_candidate
            return said | {"local": local.type, "local_host": local.host, "remote": remote.host}
        finally:
            await peer.close()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(watch(sys.argv[1], "links" in sys.argv))))
