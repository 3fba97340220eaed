"""Answers to whole offers: every section has its place, one video is served, all else is inactive or refused."""

from pathlib import Path

import pytest
from test_whep import ANSWER, OFFER, PUBLIC, text

from streaming.http.answer import compose
from streaming.http.whep import Negotiation, check_offer

OFFERS = Path(__file__).parent / "data" / "offers"
HEAD, VIDEO = OFFER[:4], OFFER[5:]
AUDIO = ["m=audio 9 UDP/TLS/RTP/SAVPF 111", "a=mid:a", "a=sendrecv", "a=rtpmap:111 opus/48000/2", *VIDEO[4:8]]
DEAD_AUDIO = ["m=audio 0 UDP/TLS/RTP/SAVPF 0", "a=mid:a", "a=inactive"]
DEAD_VIDEO = ["m=video 0 UDP/TLS/RTP/SAVPF 96", "a=mid:d"]
DATA = ["m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "a=mid:c", *VIDEO[4:8]]
SECOND = [line.replace("a=mid:0", "a=mid:2") for line in VIDEO]
BUNDLE_ONLY = [VIDEO[0].replace(" 9 ", " 0 "), "a=bundle-only", *VIDEO[1:4], *VIDEO[8:]]


def answered(*lines: str) -> tuple[str, list[tuple[str, str, str]]]:
    """The answer's group line, and kind, port (served, joined or refused) and direction of each section."""
    negotiation = check_offer(text([*HEAD, *lines]), "application/sdp", None, PUBLIC)
    return read(compose(negotiation, ANSWER))


def read(answer: str) -> tuple[str, list[tuple[str, str, str]]]:
    lines = answer.split("\r\n")
    groups = [line for line in lines if line.startswith("a=group:")]
    sections: list[tuple[str, str, str]] = []
    for line in lines:
        if line.startswith("m="):
            kind, port = line[2:].split()[:2]
            sections.append((kind, {"0": "refused", "9": "joined"}.get(port, "served"), ""))
        elif line in ("a=sendonly", "a=inactive", "a=recvonly", "a=sendrecv"):
            sections[-1] = (*sections[-1][:2], line[2:])
    return groups[0] if groups else "", sections


SERVED = ("video", "served", "sendonly")
JOINED, REFUSED = ("audio", "joined", "inactive"), ("audio", "refused", "inactive")
NO_DATA, NO_VIDEO = ("application", "refused", ""), ("video", "refused", "inactive")


@pytest.mark.parametrize(
    ("lines", "group", "sections"),
    [
        (["a=group:BUNDLE 0", *VIDEO], "a=group:BUNDLE 0", [SERVED]),
        (VIDEO, "", [SERVED]),
        ([*AUDIO, *VIDEO], "", [REFUSED, SERVED]),
        ([*VIDEO, *AUDIO], "", [SERVED, REFUSED]),
        (["a=group:BUNDLE a 0", *AUDIO, *VIDEO], "a=group:BUNDLE a 0", [JOINED, SERVED]),
        (["a=group:BUNDLE 0 a", *VIDEO, *AUDIO], "a=group:BUNDLE 0 a", [SERVED, JOINED]),
        (["a=group:BUNDLE a 0", *AUDIO, *BUNDLE_ONLY], "a=group:BUNDLE a 0", [JOINED, SERVED]),
        (["a=group:BUNDLE a 0", *DEAD_AUDIO, *VIDEO], "a=group:BUNDLE 0", [REFUSED, SERVED]),
        (["a=group:BUNDLE 0", *VIDEO, *DEAD_AUDIO], "a=group:BUNDLE 0", [SERVED, REFUSED]),
        (["a=group:BUNDLE c 0", *DATA, *VIDEO], "a=group:BUNDLE 0", [NO_DATA, SERVED]),
        (["a=group:BUNDLE 0 c", *VIDEO, *DATA], "a=group:BUNDLE 0", [SERVED, NO_DATA]),
        (["a=group:BUNDLE 0 2", *VIDEO, *SECOND], "a=group:BUNDLE 0", [SERVED, NO_VIDEO]),
        (["a=group:BUNDLE 0", *DEAD_VIDEO, *VIDEO], "a=group:BUNDLE 0", [NO_VIDEO, SERVED]),
    ],
)
def test_every_section_has_its_place(lines: list[str], group: str, sections: list[tuple[str, str, str]]) -> None:
    """What cannot be served is refused where it stands; the group, if one was offered, holds the rest."""
    assert answered(*lines) == (group, sections)


def test_audio_in_the_bundle_lends_its_transport() -> None:
    """Where the bundle's first section is the audio, its ICE session is the video's, and gets our candidates."""
    own = [line.replace("abcd", "wxyz") for line in AUDIO]
    lines = [*HEAD, "a=group:BUNDLE a 0", *own, "a=candidate:1 1 udp 1 192.0.2.9 5000 typ host", *VIDEO]
    negotiation = check_offer(text(lines), "application/sdp", None, PUBLIC)
    assert negotiation.offer.ufrag == "wxyz" and "192.0.2.9" in negotiation.offer.sdp
    assert negotiation.offer.transport_mids == {"a", "0"}
    audio, video = compose(negotiation, ANSWER).split("m=video")
    assert audio.count("a=ice-ufrag:efgh") == audio.count("a=candidate:") == video.count("a=candidate:") == 1


def test_refused_sections_have_transport_lines_too() -> None:
    """GStreamer's webrtcbin refuses an answer with a section that has none."""
    negotiation = check_offer(text([*HEAD, *AUDIO, *VIDEO, *DATA]), "application/sdp", None, PUBLIC)
    for section in compose(negotiation, ANSWER).split("m=")[1:]:
        for name in ("ice-ufrag", "ice-pwd", "fingerprint", "setup"):
            assert section.count(f"a={name}:") == 1


def test_a_video_without_a_mid_is_answered_without_one() -> None:
    """Old peers know no mid."""
    negotiation = check_offer(
        text([line for line in (*HEAD, *VIDEO) if line != "a=mid:0"]), "application/sdp", None, PUBLIC
    )
    assert "a=mid" not in compose(negotiation, ANSWER)


@pytest.mark.parametrize("path", sorted(OFFERS.glob("*.sdp")), ids=lambda path: path.stem)
def test_offers_of_real_clients_are_taken(path: Path) -> None:
    """One video of each is served, in the place where it was offered."""
    negotiation: Negotiation = check_offer(path.read_bytes(), "application/sdp", None, PUBLIC)
    _, sections = read(compose(negotiation, ANSWER))
    assert [kind for kind, _, _ in sections] == [section.kind for section in negotiation.media]
    assert sections.count(SERVED) == 1
