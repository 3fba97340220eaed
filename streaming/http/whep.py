"""WHEP texts: offers and trickle fragments to checked values, refusals with a reason. No I/O.

aiortc takes many offers that must not be taken, or fails on them long after the answer; so everything that it relies on
is checked here first, and it is given the one video alone. `streaming.http.answer` puts the other sections back.
Candidates that would send checks to places a viewer cannot be at are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from streaming.http import sdp
from streaming.http.candidates import usable
from streaming.http.sdp import SdpSection
from streaming.media.offer import MOST_CANDIDATES, Fragment, IceSession, Offer, WhepError

MOST_MEDIA = 16
MOST_LINES = 1000
LONGEST_LINE = 1024  # characters
# Without what Python's `splitlines`, by which aiortc reads, takes for the end of a line.
LINE = re.compile(r"[a-z]=[^\x00-\x1f\x7f-\x9f\u2028\u2029]*")
LONGEST_MID = 64  # bytes: it stands in every packet
PROTOCOL = re.compile(r"[A-Z/]+")
# Identifier, direction, URI and what else (RFC 8285); what stands before a packet has no room for higher identifiers.
EXTMAP = re.compile(r"([0-9]{1,4})(?:/[a-z]+)? +(\S+)(?: .*)?")
HIGHEST_EXTENSION = 255
FEEDBACK = re.compile(r"\S+ [a-z]\S*( .*)?")
CLOCK = "90000"  # Hz, of all video
ENCODINGS = {"vp8": "VP8", "h264": "H264"}  # as aiortc writes them
RTCP_TYPES = range(72, 77)  # payload types that would be taken for RTCP beside RTP (RFC 5761)
HASH_BYTES = {"sha-256": 32, "sha-384": 48, "sha-512": 64}
ICE_CHARS = r"[A-Za-z0-9+/]"
NO_MEDIA = "video 9 UDP/TLS/RTP/SAVPF 0"  # of a fragment whose lines are those of the session
# H.264 profiles by the first byte of profile-level-id, best first. What is sent is Constrained Baseline, which decoders
# of all of them take.
PROFILES = ("42", "4d", "58", "64")
SENT_H264 = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"
CONSTRAINED_BASELINE = re.compile("42[4-7c-f]", re.IGNORECASE)  # with constraint_set1


@dataclass(frozen=True, slots=True)
class Policy:
    """Rule for the candidates that get connectivity checks."""

    loopback: bool  # only when the server itself offers a loopback address


@dataclass(frozen=True, slots=True)
class Negotiation:
    """An offer's sections, which of them is served and on whose transport."""

    session: SdpSection
    media: tuple[SdpSection, ...]
    video: SdpSection
    tag: SdpSection  # whose ICE and DTLS parameters count: the first section of the video's bundle that is accepted
    bundle: tuple[str, ...]  # mids of that bundle; empty where the video stands alone
    payloads: tuple[str, ...]  # of the codec that is served, and of its retransmissions
    offer: Offer


def check_offer(body: bytes, content_type: str, codec: str | None, policy: Policy) -> Negotiation:
    """Checks an offer for its first live video; `codec` None takes VP8 where it is offered, else H.264.

    Raises WhepError: 415 for another content type, 406 when no codec can be served, 400 for anything wrong.
    """
    lines = _lines(body, content_type, "application/sdp")
    if lines[0] != "v=0":
        raise WhepError(400, "The body is not SDP: its first line must be v=0.")
    session, media = _sections(lines)
    video = _video(session, media)
    bundle = sdp.bundle_of(session, video.mid)
    tag = next((one for one in _bundled(media, bundle) if one is video or is_accepted(one, session)), video)
    if not (tag.port or video.port):
        raise WhepError(400, "The offer's video has port 0 and no section of its bundle has another.")
    ufrag, transport = _transport(tag, session)
    chosen, payloads = _codec(video, codec)
    origin = next((line for line in lines if line.startswith("o=")), "o=- 0 0 IN IP4 0.0.0.0")
    text = "\r\n".join(
        ["v=0", origin, "s=-", "t=0 0", *_media(video, chosen, payloads), *transport, *_candidates(tag, policy)]
    )
    mids = frozenset(one.mid for one in (video, tag) if one.mid is not None)
    offer = Offer(text + "\r\n", chosen, video.mid or "0", mids, ufrag)
    return Negotiation(session, tuple(media), video, tag, bundle, payloads, offer)


def is_accepted(section: SdpSection, session: SdpSection) -> bool:
    """True if a section beside the video in its bundle is answered as inactive, false if it is refused.

    Audio is: the bundle's transport may be the audio's, and then refusing it would take the video's away.
    """
    if section.kind != "audio" or not section.port:
        return False
    try:
        _transport(section, session)
    except WhepError:
        return False
    return True


def check_fragment(body: bytes, content_type: str, offer: Offer, policy: Policy) -> Fragment:
    """Checks a fragment of the session of `offer`, which tells candidates or restarts ICE.

    What is not of the video's transport is passed over. Raises WhepError: 415 for another content type, 400 for
    anything wrong.
    """
    lines = _lines(body, content_type, "application/trickle-ice-sdpfrag")
    session, media = _sections(lines)
    ours = [session, *(one for one in media if one.mid is None or one.mid in offer.transport_mids)]
    restarts = [one for section in ours if (one := _ice_session(section, session, offer)) is not None]
    if not any(one.has(name) for one in (session, *media) for name in ("candidate", "end-of-candidates", "ice-ufrag")):
        raise WhepError(400, "The fragment has neither a candidate nor a=end-of-candidates.")
    kept = tuple(one for section in ours for one in usable(section.all("candidate"), policy.loopback))
    return Fragment(kept[:MOST_CANDIDATES], restarts[0] if restarts else None)


def fragment_of(session: IceSession, attributes: Iterable[str]) -> str:
    """The answer to an ICE restart, with this side's attributes."""
    lines = [f"m={session.media}", f"a=mid:{session.mid}", *(f"a={attribute}" for attribute in attributes)]
    return "".join(f"{line}\r\n" for line in lines)


def matches(if_match: Iterable[str], etag: str) -> bool:
    """True if `If-Match` headers fit the current entity-tag, by strong comparison (RFC 9110, 13.1.1); none fits all."""
    tags = [tag.strip() for value in if_match for tag in value.split(",")]
    return not tags or "*" in tags or etag in tags


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
        if len(line) > LONGEST_LINE or not LINE.fullmatch(line):
            raise WhepError(400, "The body is not SDP: a line is malformed or too long.")
    return lines


def _sections(lines: Sequence[str]) -> tuple[SdpSection, list[SdpSection]]:
    try:
        session, media = sdp.parse(lines)
    except ValueError as error:
        raise WhepError(400, str(error)) from error
    if len(media) > MOST_MEDIA:
        raise WhepError(400, f"The text has {len(media)} media sections; at most {MOST_MEDIA} are taken.")
    return session, media


def _video(session: SdpSection, media: Sequence[SdpSection]) -> SdpSection:
    """The first video that may be sent to."""
    directions = []
    for section in media:
        if section.kind != "video" or not (section.port or section.has("bundle-only")):
            continue
        directions.append(section.direction or session.direction or "sendrecv")
        if directions[-1] in ("recvonly", "sendrecv"):
            if not PROTOCOL.fullmatch(section.protocol):
                raise WhepError(400, "The protocol of the offer's video is malformed.")
            if len((section.mid or "").encode()) > LONGEST_MID:
                raise WhepError(400, f"The a=mid of the offer's video is longer than {LONGEST_MID} bytes.")
            return section
    if directions:
        raise WhepError(400, f"The offer's video is {directions[0]}; a viewer must offer recvonly.")
    raise WhepError(400, "The offer has no live video section.")


def _bundled(media: Sequence[SdpSection], bundle: Sequence[str]) -> list[SdpSection]:
    """The sections of a bundle in its order."""
    by_mid = {section.mid: section for section in reversed(media)}
    return [by_mid[mid] for mid in bundle if mid in by_mid]


def _transport(section: SdpSection, session: SdpSection) -> tuple[str, list[str]]:
    """The section's ICE user fragment, and its transport's lines for aiortc. Raises WhepError 400."""
    ufrag, password = _credentials(section, session)
    fingerprint = next(filter(_is_fingerprint, (*section.all("fingerprint"), *session.all("fingerprint"))), None)
    if fingerprint is None:
        raise WhepError(400, "The offer has no valid a=fingerprint of sha-256, sha-384 or sha-512.")
    if (section.first("setup") or session.first("setup")) not in ("actpass", "active"):
        raise WhepError(400, "The offer's a=setup must be actpass or active.")
    lines = [f"a=ice-ufrag:{ufrag}", f"a=ice-pwd:{password}", f"a=fingerprint:{fingerprint}"]
    # aiortc as DTLS client fails with RSA certificates; as server it works with everyone.
    return ufrag, [*lines, "a=setup:active"]


def _ice_session(section: SdpSection, session: SdpSection, offer: Offer) -> IceSession | None:
    """The ICE session that a section of a fragment begins, if it does. Raises WhepError 400 for half of one."""
    if all(ufrag == offer.ufrag for ufrag in section.all("ice-ufrag")):
        return None
    ufrag, password = _credentials(section, session)
    media = " ".join((section.kind, str(section.port), section.protocol, *section.formats))
    return IceSession(ufrag, password, media if section.kind else NO_MEDIA, section.mid or offer.mid)


def _credentials(section: SdpSection, session: SdpSection) -> tuple[str, str]:
    """ICE user fragment and password. Raises WhepError 400."""
    ufrag, password = (section.first(name) or session.first(name) or "" for name in ("ice-ufrag", "ice-pwd"))
    if not re.fullmatch(ICE_CHARS + "{4,256}", ufrag) or not re.fullmatch(ICE_CHARS + "{22,256}", password):
        raise WhepError(400, "There is no valid a=ice-ufrag and a=ice-pwd.")
    return ufrag, password


def _is_fingerprint(value: str) -> bool:
    words = value.split()
    size = HASH_BYTES.get(words[0].lower(), 0) if len(words) == 2 else 0
    digits = words[1].split(":") if size else []
    return bool(size) and len(digits) == size and all(re.fullmatch(r"[0-9A-Fa-f]{2}", pair) for pair in digits)


def _codec(video: SdpSection, wanted: str | None) -> tuple[str, tuple[str, ...]]:
    """The codec to serve, and payload types of it and its retransmissions. Raises WhepError 406."""
    offered: dict[str, list[str]] = {}  # payload types by codec
    for value in video.all("rtpmap"):
        payload, _, encoding = value.partition(" ")
        name, _, clock = encoding.strip().partition("/")
        if payload in video.formats and _is_payload_type(payload) and clock.partition("/")[0] == CLOCK:
            offered.setdefault(name.lower(), []).append(payload)
    formats = {value.partition(" ")[0]: sdp.parameters(value.partition(" ")[2]) for value in video.all("fmtp")}
    h264 = [payload for payload in offered.get("h264", []) if _mode(formats.get(payload, {})) != "0"]
    served = {"vp8": offered.get("vp8", []), "h264": sorted(h264, key=lambda one: _rank(formats.get(one, {})))}
    for codec in (wanted,) if wanted else ("vp8", "h264"):
        if served[codec]:
            payload = served[codec][0]
            again = [one for one in offered.get("rtx", []) if formats.get(one, {}).get("apt") == payload != one]
            return codec, (payload, *again[:1])
    if "h264" in offered and wanted != "vp8":
        raise WhepError(406, "The offer's H264 has packetization-mode 0 only; this server sends mode 1.")
    names = ", ".join(sorted(offered)) or "none"
    raise WhepError(406, f"The offer has no {wanted or 'VP8 or H264'}; it has {names}.")


def _is_payload_type(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,3}", text) is not None and int(text) < 128 and int(text) not in RTCP_TYPES


def _mode(parameters: dict[str, str]) -> str | None:
    return parameters.get("packetization-mode")


def _rank(parameters: dict[str, str]) -> tuple[bool, int]:
    """Formats whose profile is nearest to what is sent come first."""
    profile = parameters.get("profile-level-id", "42e01f").lower()
    number = PROFILES.index(profile[:2]) if profile[:2] in PROFILES else len(PROFILES)
    return CONSTRAINED_BASELINE.match(profile) is None, number


def _media(video: SdpSection, codec: str, payloads: Sequence[str]) -> list[str]:
    """The video's section with one codec, for aiortc."""
    lines = [f"m=video 9 {video.protocol} {' '.join(payloads)}", "c=IN IP4 0.0.0.0", f"a=mid:{video.mid or '0'}"]
    lines += ["a=recvonly", "a=rtcp-mux", *_extensions(video)]
    names = (ENCODINGS[codec], "rtx")
    lines += [f"a=rtpmap:{payload} {name}/{CLOCK}" for payload, name in zip(payloads, names, strict=False)]
    for value in filter(FEEDBACK.fullmatch, video.all("rtcp-fb")):
        if value.partition(" ")[0] in (*payloads, "*"):
            lines.append(f"a=rtcp-fb:{value}")
    if codec == "h264":
        # aiortc knows H.264 by these alone; the answer gives the peer its own back.
        lines.append(f"a=fmtp:{payloads[0]} {SENT_H264}")
    return lines + [f"a=fmtp:{again} apt={payloads[0]}" for again in payloads[1:]]


def _extensions(video: SdpSection) -> Iterator[str]:
    """Header extensions that have room in a packet. Raises WhepError 400 for a malformed one."""
    for value in video.all("extmap"):
        match = EXTMAP.fullmatch(value)
        if match is None:
            raise WhepError(400, "An a=extmap is malformed.")
        if 0 < int(match[1]) <= HIGHEST_EXTENSION:
            yield f"a=extmap:{match[1]} {match[2]}"


def _candidates(tag: SdpSection, policy: Policy) -> list[str]:
    # Without their end: where none leads to the peer ICE would fail at once, before the peer's own checks come.
    return [f"a=candidate:{value}" for value in usable(tag.all("candidate"), policy.loopback)][:MOST_CANDIDATES]
