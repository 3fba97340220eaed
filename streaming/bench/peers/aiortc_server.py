"""`python -m streaming.bench.peers.aiortc_server FILM PORT`: stock aiortc as a WHEP server, in the way of its examples.

One player of the file, a relay, and an encoder for each viewer.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.contrib.media import MediaPlayer, MediaRelay
from fastapi import FastAPI, Request, Response

from streaming.media.rtp_hooks import use_addresses


def create(film: str) -> FastAPI:
    """The server of one film."""
    relay, peers = MediaRelay(), set[Any]()
    players: list[MediaPlayer] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for peer in peers:
            await peer.close()
        for player in players:
            player.video.stop()

    app = FastAPI(lifespan=lifespan)

    @app.post("/whep")
    async def whep(request: Request) -> Response:
        if not players:
            # Not in a loop: from the second round on aiortc 1.16 waits for no frame's time, and sends twice as many.
            players.append(MediaPlayer(film))
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        peers.add(peer)
        transceiver = peer.addTransceiver(relay.subscribe(players[0].video), direction="sendonly")
        known = RTCRtpSender.getCapabilities("video").codecs
        transceiver.setCodecPreferences([one for one in known if one.mimeType.lower() in ("video/h264", "video/rtx")])
        await peer.setRemoteDescription(RTCSessionDescription((await request.body()).decode(), "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        return Response(peer.localDescription.sdp, 201, media_type="application/sdp")

    return app


if __name__ == "__main__":
    use_addresses(["127.0.0.1"])
    uvicorn.run(create(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
