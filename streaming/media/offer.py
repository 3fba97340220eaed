"""What a viewer's connection is made from: values that `streaming.http.whep` has checked."""

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
    """A checked offer, ready for aiortc."""

    sdp: str
    codec: str
    mid: str  # of the video, which carries the bundle's transport when it comes first
    ufrag: str


@dataclass(frozen=True, slots=True)
class Fragment:
    """A checked trickle fragment: candidates in the form that `aiortc.sdp.candidate_from_sdp` takes."""

    candidates: tuple[str, ...]
    complete: bool  # end of candidates
