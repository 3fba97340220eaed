"""A viewer's connection before it is made: values that `streaming.http.whep` has checked."""

from __future__ import annotations

from dataclasses import dataclass

MOST_CANDIDATES = 20  # of one session


class WhepError(Exception):
    """A text that is refused: HTTP status and one sentence for the person who sent it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Offer:
    """The one video of an offer, as an offer of its own."""

    sdp: str  # one media section with one codec, for aiortc
    codec: str  # "vp8" or "h264"
    mid: str  # of the video
    transport_mids: frozenset[str]  # of the sections whose trickled candidates are the video's
    ufrag: str  # of the peer's ICE session


@dataclass(frozen=True, slots=True)
class IceSession:
    """A new ICE session of the peer."""

    ufrag: str
    password: str
    media: str  # the m= line of the section that it came with, without "m="
    mid: str


@dataclass(frozen=True, slots=True)
class Fragment:
    """What one PATCH says. That no candidate follows is no news: the peer's own checks may come yet (RFC 8863)."""

    candidates: tuple[str, ...]  # without the leading "a=candidate:"
    restart: IceSession | None = None  # the candidates are of this session, which begins
