"""WHEP texts: offers and trickle fragments to checked values, refusals with a reason. No I/O.

aiortc takes many offers that must not be taken, or fails on them long after the answer; so everything that it relies on
is checked here first. Candidates that would send checks to places a viewer cannot be at are dropped.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from streaming.media.offer import MOST_CANDIDATES, Fragment, Offer, WhepError

MOST_MEDIA = 8
MOST_LINES = 1000
LONGEST_LINE = 1024  # characters
DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
HASH_BYTES = {"sha-256": 32, "sha-384": 48, "sha-512": 64}
CANDIDATE = re.compile(
    r"candidate:(\S{1,32}) ([0-9]{1,3}) ([A-Za-z]{1,8}) ([0-9]{1,10}) (\S{1,255}) ([0-9]{1,5})"
    r" typ (host|srflx|prflx|relay)( .*)?"
)
ICE_CHARS = r"[A-Za-z0-9+/]"


@dataclass(frozen=True, slots=True)
class Policy:
    """Which candidates are worth a connectivity check."""

    loopback: bool  # only when the server itself offers a loopback address


@dataclass(slots=True)
class _Section:
    """Lines of one media section, or of the session."""

    kind: str = ""
    port: int = 0
    attributes: list[tuple[str, str]] = field(default_factory=list)

    def first(self, name: str, session: _Section) -> str | None:
        return next((value for key, value in self.attributes + session.attributes if key == name), None)

    @property
    def direction(self) -> str | None:
        return next((key for key, _ in self.attributes if key in DIRECTIONS), None)


def check_offer(body: bytes, content_type: str, codec: str | None, policy: Policy) -> Offer:
    """Checks an offer for exactly one video to receive and rewrites it for aiortc; `codec` None takes the first known.

    Raises WhepError: 415 for another content type, 406 when the codec is not offered, 400 for anything wrong.
    """
    lines = _lines(body, content_type, "application/sdp")
    if lines[0] != "v=0":
        raise WhepError(400, "The body is not SDP: its first line must be v=0.")
    session, media = _sections(lines)
    video = _video(session, media)
    ufrag = _check_transport(video, session)
    chosen = _codec(video, codec)
    kept = [_as_passive(line) for line in lines if not line.startswith("a=ssrc") and _keep(line, policy)]
    if sum(line.startswith("a=candidate:") for line in lines) > MOST_CANDIDATES:
        raise WhepError(400, f"The offer has more than {MOST_CANDIDATES} candidates.")
    return Offer("\r\n".join(kept) + "\r\n", chosen, video.first("mid", session) or "0", ufrag)


def check_fragment(body: bytes, content_type: str, ufrag: str, policy: Policy) -> Fragment:
    """Checks a trickle fragment of the session whose offer had `ufrag`.

    Raises WhepError: 415 for another content type, 422 for an ICE restart, 400 for anything wrong.
    """
    lines = _lines(body, content_type, "application/trickle-ice-sdpfrag")
    for line in lines:
        if line.startswith("a=ice-ufrag:") and line.removeprefix("a=ice-ufrag:") != ufrag:
            raise WhepError(422, "ICE restarts are not supported: delete the session and post a new offer.")
    found = [line for line in lines if line.startswith("a=candidate:")]
    complete = "a=end-of-candidates" in lines
    if not found and not complete and not any(line.startswith("a=ice-ufrag:") for line in lines):
        raise WhepError(400, "The fragment has neither a candidate nor a=end-of-candidates.")
    if len(found) > MOST_CANDIDATES:
        raise WhepError(400, f"The fragment has more than {MOST_CANDIDATES} candidates.")
    kept = tuple(line.removeprefix("a=candidate:") for line in found if _keep(line, policy))
    return Fragment(kept, complete)


def _lines(body: bytes, content_type: str, wanted: str) -> list[str]:
    if content_type.split(";")[0].strip().lower() != wanted:
        raise WhepError(415, f"The content type must be {wanted}.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WhepError(400, "The body is not UTF-8 text.") from error
    lines = [line for line in re.split(r"\r?\n", text) if line]
    if not lines or len(lines) > MOST_LINES:
        raise WhepError(400, f"The body must have 1 to {MOST_LINES} lines; it has {len(lines)}.")
    for line in lines:
        if len(line) > LONGEST_LINE or not re.fullmatch(r"[a-z]=[^\x00-\x1f]*", line):
            raise WhepError(400, "The body is not SDP: a line is malformed or too long.")
    return lines


def _sections(lines: Sequence[str]) -> tuple[_Section, list[_Section]]:
    sections = [_Section()]
    for line in lines:
        if line.startswith("m="):
            words = line[2:].split()
            if len(words) < 4 or not re.fullmatch("[0-9]{1,5}", words[1]):
                raise WhepError(400, "An m= line of the offer is malformed.")
            sections.append(_Section(words[0], int(words[1])))
        elif line.startswith("a="):
            name, _, value = line[2:].partition(":")
            sections[-1].attributes.append((name, value))
    return sections[0], sections[1:]


def _video(session: _Section, media: Sequence[_Section]) -> _Section:
    if len(media) > MOST_MEDIA:
        raise WhepError(400, f"The offer has {len(media)} media sections; at most {MOST_MEDIA} are taken.")
    if any(section.kind not in ("audio", "video") for section in media):
        raise WhepError(400, "The offer has a media section that is neither audio nor video.")
    videos = [section for section in media if section.kind == "video"]
    if len(videos) != 1 or not videos[0].port:
        raise WhepError(400, f"The offer must have exactly one live video section; it has {len(videos)} sections.")
    direction = videos[0].direction or session.direction or "sendrecv"
    if direction not in ("recvonly", "sendrecv"):
        raise WhepError(400, f"The offer's video is {direction}; a viewer must offer recvonly.")
    return videos[0]


def _check_transport(video: _Section, session: _Section) -> str:
    ufrag, password = video.first("ice-ufrag", session) or "", video.first("ice-pwd", session) or ""
    if not re.fullmatch(ICE_CHARS + "{4,256}", ufrag) or not re.fullmatch(ICE_CHARS + "{22,256}", password):
        raise WhepError(400, "The offer has no valid a=ice-ufrag and a=ice-pwd.")
    words = (video.first("fingerprint", session) or "").split()
    size = HASH_BYTES.get(words[0].lower(), 0) if len(words) == 2 else 0
    digits = words[1].split(":") if size else []
    if not size or len(digits) != size or not all(re.fullmatch(r"[0-9A-Fa-f]{2}", pair) for pair in digits):
        raise WhepError(400, "The offer has no valid a=fingerprint of sha-256, sha-384 or sha-512.")
    if video.first("setup", session) not in ("actpass", "active"):
        raise WhepError(400, "The offer's a=setup must be actpass or active.")
    return ufrag


def _codec(video: _Section, wanted: str | None) -> str:
    maps = [value.split() for key, value in video.attributes if key == "rtpmap"]
    offered = {words[1].partition("/")[0].lower() for words in maps if len(words) == 2}
    for codec in (wanted,) if wanted else ("vp8", "h264"):
        if codec in offered:
            return codec
    raise WhepError(406, f"The offer has no {wanted or 'VP8 or H264'}; it has {', '.join(sorted(offered)) or 'none'}.")


def _as_passive(line: str) -> str:
    # aiortc as DTLS client fails with RSA certificates; as server it works with everyone.
    return "a=setup:active" if line == "a=setup:actpass" else line


def _keep(line: str, policy: Policy) -> bool:
    """Whether a line stays; only candidates can go. Raises WhepError 400 for a malformed candidate."""
    if not line.startswith("a=candidate:"):
        return True
    match = CANDIDATE.fullmatch(line[2:])
    if match is None or not 0 < int(match[6]) < 65536:
        raise WhepError(400, "A candidate is malformed.")
    if match[3].lower() != "udp" or match[2] != "1":
        return False
    try:
        ip = ipaddress.ip_address(match[5])
    except ValueError:
        # A name, such as mDNS .local: looking it up would hold the answer, and the peer finds us without it.
        return False
    broadcast = str(ip) == "255.255.255.255"
    return not (ip.is_multicast or ip.is_unspecified or broadcast or (ip.is_loopback and not policy.loopback))
