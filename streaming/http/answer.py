"""The answer to a whole offer, made of aiortc's answer to its video alone.

Every section of the offer gets one of the answer, in its order: the video as aiortc answers it, audio in its bundle as
inactive, anything else refused with port 0 (RFC 3264, RFC 9143). No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator

from streaming.http.sdp import SdpSection
from streaming.http.whep import Negotiation, is_accepted

TRANSPORT = ("ice-ufrag", "ice-pwd", "fingerprint", "setup")
CANDIDATES = ("candidate", "end-of-candidates")


def compose(negotiation: Negotiation, video_answer: str) -> str:
    """The answer's SDP.

    Args:
        video_answer: of aiortc, with one media section.
    """
    lines = video_answer.split("\r\n")
    place = next(number for number, line in enumerate(lines) if line.startswith("m="))
    session = [line for line in lines[:place] if not line.startswith("a=group:")]
    answered = {id(section): list(_section(section, negotiation, lines[place:])) for section in negotiation.media}
    accepted = [section.mid for section in negotiation.media if answered[id(section)][0].split()[1] != "0"]
    # In the offer's order, which says whose transport it is.
    bundle = [mid for mid in negotiation.bundle if mid in accepted]
    if bundle:
        session.append(f"a=group:BUNDLE {' '.join(bundle)}")
    body = [line for section in negotiation.media for line in answered[id(section)]]
    return "\r\n".join([*session, *body]) + "\r\n"


def _section(section: SdpSection, negotiation: Negotiation, video_lines: list[str]) -> Iterator[str]:
    if section is negotiation.video:
        yield from _video(section, negotiation, video_lines)
        return
    accepted = section.mid in negotiation.bundle and is_accepted(section, negotiation.session)
    yield f"m={section.kind} {9 if accepted else 0} {section.protocol} {' '.join(section.formats)}"
    yield "c=IN IP4 0.0.0.0"
    if section.mid is not None:
        yield f"a=mid:{section.mid}"
    if section.kind in ("audio", "video"):
        yield "a=inactive"
    # GStreamer 1.22 takes no answer with a section that lacks them, be it refused.
    yield from _picked(video_lines, TRANSPORT)
    if accepted:
        yield "a=rtcp-mux"
        yield from (f"a=rtpmap:{value}" for value in section.all("rtpmap"))
        yield from _picked(video_lines, CANDIDATES)


def _video(section: SdpSection, negotiation: Negotiation, lines: list[str]) -> Iterator[str]:
    """aiortc's section, with the peer's own format parameters, and without a mid where the offer had none."""
    payload = negotiation.payloads[0]
    formats = [value for value in section.all("fmtp") if value.partition(" ")[0] == payload]
    for line in lines:
        if not line or (line.startswith("a=mid:") and section.mid is None):
            continue
        if line.startswith(f"a=fmtp:{payload} "):
            yield from (f"a=fmtp:{value}" for value in formats)
            continue
        yield line


def _picked(lines: list[str], names: tuple[str, ...]) -> Iterator[str]:
    """The attributes with these names."""
    return (line for line in lines if line[2:].partition(":")[0] in names)
