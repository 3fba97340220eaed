import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.http.answer import compose
from streaming.http.whep import SENT_H264, Policy, WhepError, check_fragment, check_offer, fragment_of, matches
from streaming.media.offer import MOST_CANDIDATES

PUBLIC, LOCAL = Policy(loopback=False), Policy(loopback=True)
FINGERPRINT = "sha-256 " + ":".join(["AB"] * 32)
OFFER = [
    "v=0",
    "o=- 1 1 IN IP4 0.0.0.0",
    "s=-",
    "t=0 0",
    "a=group:BUNDLE 0",
    "m=video 9 UDP/TLS/RTP/SAVPF 96 97 102",
    "c=IN IP4 0.0.0.0",
    "a=mid:0",
    "a=recvonly",
    "a=ice-ufrag:abcd",
    "a=ice-pwd:0123456789abcdefghijkl",
    f"a=fingerprint:{FINGERPRINT}",
    "a=setup:actpass",
    "a=rtcp-mux",
    "a=rtpmap:96 VP8/90000",
    "a=rtpmap:97 rtx/90000",
    "a=fmtp:97 apt=96",
    "a=rtpmap:102 H264/90000",
]
FRAGMENT_TYPE = "application/trickle-ice-sdpfrag"
ANSWER = (
    "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic:WMS *\r\n"
    "m=video 5004 UDP/TLS/RTP/SAVPF 96 97\r\nc=IN IP4 192.0.2.1\r\na=sendonly\r\na=mid:0\r\na=rtcp-mux\r\n"
    "a=rtpmap:96 VP8/90000\r\na=fmtp:96 x=y\r\na=candidate:1 1 udp 1 192.0.2.1 5004 typ host\r\n"
    "a=end-of-candidates\r\na=ice-ufrag:efgh\r\na=ice-pwd:abc\r\na=fingerprint:sha-256 00\r\na=setup:passive\r\n"
)
HOST = "a=candidate:1 1 udp 2130706431 192.0.2.7 5000 typ host"


def text(lines: list[str]) -> bytes:
    return ("\r\n".join(lines) + "\r\n").encode()


def change(old: str, *new: str) -> bytes:
    assert old in OFFER
    place = OFFER.index(old)
    return text([*OFFER[:place], *new, *OFFER[place + 1 :]])


def refusal(body: bytes, content_type: str = "application/sdp", codec: str | None = None) -> int:
    with pytest.raises(WhepError) as caught:
        check_offer(body, content_type, codec, PUBLIC)
    assert caught.value.detail.endswith(".")
    return caught.value.status


def test_good_offer_is_made_passive_for_us() -> None:
    """The offer passes; the peer is told to be the DTLS client, as every stack can be."""
    offer = check_offer(text(OFFER), "application/sdp; charset=utf-8", None, PUBLIC).offer
    assert (offer.codec, offer.mid, offer.ufrag) == ("vp8", "0", "abcd")
    assert "a=setup:active\r\n" in offer.sdp
    assert "actpass" not in offer.sdp


@pytest.mark.parametrize(("wanted", "got"), [("vp8", "vp8"), ("h264", "h264"), (None, "vp8")])
def test_codec_is_the_one_asked_for(wanted: str | None, got: str) -> None:
    """A codec can be chosen; without a choice VP8 is taken."""
    assert check_offer(text(OFFER), "application/sdp", wanted, PUBLIC).offer.codec == got


def test_codec_that_is_not_offered_is_refused() -> None:
    """Without a common codec the answer is 406; H264 is taken when it is the only one."""
    without = change("a=rtpmap:96 VP8/90000", "a=rtpmap:96 VP9/90000")
    assert check_offer(without, "application/sdp", None, PUBLIC).offer.codec == "h264"
    assert refusal(without, codec="vp8") == 406


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/json", "application/sdpx"])
def test_other_content_types_are_refused(content_type: str) -> None:
    """Anything but application/sdp is 415."""
    assert refusal(text(OFFER), content_type) == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\r\n\r\n",
        b"\xff\xfe\x00",
        b"hello",
        b"<html></html>",
        b"v=0",
        b"v=0\r\n" * 2000,
        text([*OFFER, "a=x:" + "y" * 5000]),
        text(OFFER[:5]),
        text(OFFER[:6]),
        text(OFFER[:9]),
        text([*OFFER, *["m=audio 9 UDP/TLS/RTP/SAVPF 0"] * 16]),
        change("m=video 9 UDP/TLS/RTP/SAVPF 96 97 102", "m=video 0 UDP/TLS/RTP/SAVPF 96"),
        change("m=video 9 UDP/TLS/RTP/SAVPF 96 97 102", "m=video 99999999 UDP/TLS/RTP/SAVPF 96"),
        change("m=video 9 UDP/TLS/RTP/SAVPF 96 97 102", "m=video"),
        change("m=video 9 UDP/TLS/RTP/SAVPF 96 97 102", "m=audio 9 UDP/TLS/RTP/SAVPF 96"),
        change("a=recvonly", "a=sendonly"),
        change("a=recvonly", "a=inactive"),
        change(f"a=fingerprint:{FINGERPRINT}"),
        change(f"a=fingerprint:{FINGERPRINT}", "a=fingerprint:md5 AB:CD"),
        change(f"a=fingerprint:{FINGERPRINT}", "a=fingerprint:sha-256 AB:CD"),
        change(f"a=fingerprint:{FINGERPRINT}", f"a=fingerprint:{FINGERPRINT.replace('AB', 'ZZ')}"),
        change("a=ice-ufrag:abcd"),
        change("a=ice-ufrag:abcd", "a=ice-ufrag:a"),
        change("a=ice-ufrag:abcd", "a=ice-ufrag:" + "a" * 900),
        change("a=ice-pwd:0123456789abcdefghijkl", "a=ice-pwd:short"),
        change("a=setup:actpass"),
        change("a=setup:actpass", "a=setup:passive"),
        change("m=video 9 UDP/TLS/RTP/SAVPF 96 97 102", "m=video 0 UDP/TLS/RTP/SAVPF 96", "a=bundle-only"),
        *(text([*OFFER, f"a=extmap:3 urn:x{end}a=setup:passive"]) for end in "\x7f\x85\u2028\u2029"),
        text([*OFFER, "a=extmap:x urn:y"]),
        text([*OFFER, "a=extmap:3"]),
        change("a=mid:0", "a=mid:" + "m" * 65),
        change("m=video 9 UDP/TLS/RTP/SAVPF 96 97 102", "m=video 9 udp 96 97 102"),
        text([*OFFER, "a=candidate:1"]),
        text([*OFFER, HOST.replace("5000", "70000")]),
        text([*OFFER, HOST.replace("2130706431", str(1 << 32))]),
        text([*OFFER, HOST.replace("5000", "five")]),
    ],
)
def test_bad_offers_are_refused(body: bytes) -> None:
    """Everything that would not lead to a watched video is 400, with a sentence."""
    assert refusal(body) == 400


@pytest.mark.parametrize(
    ("address", "public", "local"),
    [
        ("192.0.2.7", True, True),
        ("2001:db8::1", True, True),
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("224.0.0.1", False, False),
        ("255.255.255.255", False, False),
        ("0.0.0.0", False, False),
        ("::ffff:127.0.0.1", False, True),
        ("::ffff:224.0.0.1", False, False),
        ("::ffff:255.255.255.255", False, False),
        ("::ffff:192.0.2.7", True, True),
        ("3f9e.local", False, False),
        ("example.org", False, False),
    ],
)
def test_candidates_that_lead_nowhere_are_dropped(address: str, public: bool, local: bool) -> None:
    """Names, multicast, broadcast and (unless we offer it ourselves) loopback addresses get no checks."""
    line = HOST.replace("192.0.2.7", address)
    for policy, kept in ((PUBLIC, public), (LOCAL, local)):
        assert (line in check_offer(text([*OFFER, line]), "application/sdp", None, policy).offer.sdp) == kept


@pytest.mark.parametrize(
    "line",
    [
        HOST.replace("udp", "tcp") + " tcptype active",
        HOST.replace("udp", "ssltcp"),
        HOST.replace("1 1 udp", "1 2 udp"),
        HOST.replace("5000", "0"),
        HOST.replace("host", "unheard-of"),
        HOST.replace("192.0.2.7", "fe80::1%eth0"),
        "a=candidate:",
    ],
)
def test_a_candidate_that_cannot_be_used_refuses_nothing(line: str) -> None:
    """It is passed over, however many there are, in an offer and in a fragment."""
    offer = check_offer(text([*OFFER, *[line] * 30, HOST]), "application/sdp", None, PUBLIC).offer
    assert [one for one in offer.sdp.split("\r\n") if one.startswith("a=candidate")] == [HOST]
    fragment = check_fragment(text([*[line] * 30, HOST]), FRAGMENT_TYPE, offer, PUBLIC)
    assert fragment.candidates == (HOST.removeprefix("a=candidate:"),)


def test_a_candidate_is_kept_up_to_its_type() -> None:
    """In small letters, as aioice wants it; what follows may be malformed, and is of no use."""
    line = HOST.replace("udp", "UDP").replace("host", "SrFlx") + " raddr 10.0.0.1 rport five generation"
    offer = check_offer(text([*OFFER, line]), "application/sdp", None, PUBLIC).offer
    assert HOST.replace("host", "srflx") in offer.sdp and "rport" not in offer.sdp


def test_what_has_no_room_in_a_packet_is_left_out() -> None:
    """Header extensions of high numbers, and attributes behind their URIs; the mid of other sections may be long."""
    lines = ["a=extmap:3/recvonly urn:x and more", "a=extmap:256 urn:y", "a=extmap:0 urn:z", "a=extmap:255 urn:w"]
    audio = ["m=audio 9 UDP/TLS/RTP/SAVPF 0", "a=mid:" + "m" * 900]
    offer = check_offer(text([*OFFER, *lines, *audio]), "application/sdp", None, PUBLIC).offer
    assert [one for one in offer.sdp.split("\r\n") if "extmap" in one] == ["a=extmap:3 urn:x", "a=extmap:255 urn:w"]


@pytest.mark.parametrize("payload", ["72", "76", "128", "1234", "-1", "9x"])
def test_a_codec_needs_a_payload_type(payload: str) -> None:
    """One of RTP's, which is not taken for RTCP; and the clock of video."""
    media, rtpmap = "m=video 9 UDP/TLS/RTP/SAVPF 96 97 102", "a=rtpmap:102 H264/90000"
    lines = [line.replace("96", payload) if line != media else media.replace("96", payload) for line in OFFER]
    assert refusal(text(lines), codec="vp8") == 406
    assert refusal(change(rtpmap, rtpmap.replace("90000", "8000")), codec="h264") == 406
    assert refusal(change(rtpmap, rtpmap.partition("/")[0]), codec="h264") == 406


def test_more_candidates_than_are_kept_refuse_nothing() -> None:
    """The first ones count."""
    many = [HOST.replace("5000", str(5000 + number)) for number in range(200)]
    offer = check_offer(text([*OFFER, *many]), "application/sdp", None, PUBLIC).offer
    assert [one for one in offer.sdp.split("\r\n") if one.startswith("a=candidate")] == many[:MOST_CANDIDATES]
    fragment = check_fragment(text(many), FRAGMENT_TYPE, offer, PUBLIC)
    assert fragment.candidates == tuple(line.removeprefix("a=candidate:") for line in many[:MOST_CANDIDATES])


@pytest.mark.parametrize("others", [["sha-1 AB", "md5 CD"], ["sha-512 " + ":".join(["EF"] * 64)]])
@pytest.mark.parametrize("first", [False, True])
def test_one_known_fingerprint_is_enough(others: list[str], first: bool) -> None:
    """Several lines in any order: one that can be checked counts, and is the only one that aiortc sees."""
    lines = [f"a=fingerprint:{value}" for value in (FINGERPRINT, *others)]
    offer = check_offer(change(lines[0], *(lines if first else lines[::-1])), "application/sdp", None, PUBLIC).offer
    assert offer.sdp.count("a=fingerprint:sha-") == 1 and "md5" not in offer.sdp


@pytest.mark.parametrize(
    "fmtp",
    [
        "",
        "packetization-mode=1",
        "profile-level-id=42e01f; level-asymmetry-allowed=1; packetization-mode=1",
        "Profile-Level-ID=42001F;Packetization-Mode=1",
        "packetization-mode=1;profile-level-id=640c1f",
        "packetization-mode=1;profile-level-id=4d001f;",
        "profile-level-id=42c00b",
    ],
)
def test_h264_is_served_whatever_its_profile(fmtp: str) -> None:
    """What is sent is Constrained Baseline, which decoders of every profile take; the peer gets its own words back."""
    body = text([*OFFER, *([f"a=fmtp:102 {fmtp}"] if fmtp else [])])
    negotiation = check_offer(body, "application/sdp", "h264", PUBLIC)
    assert f"a=fmtp:102 {SENT_H264}" in negotiation.offer.sdp
    answer = compose(negotiation, ANSWER.replace("96 97", "102").replace("96", "102"))
    assert [line for line in answer.split("\r\n") if line.startswith("a=fmtp:")] == (
        [f"a=fmtp:102 {fmtp}"] if fmtp else []
    )


def test_the_nearest_h264_is_taken() -> None:
    """Of several formats the one whose profile is sent comes first, mode 0 is no choice, and alone it is 406."""
    formats = {104: "packetization-mode=0;profile-level-id=42e01f", 105: "packetization-mode=1;profile-level-id=64001f"}
    formats |= {
        106: "packetization-mode=1;profile-level-id=42001f",
        107: "profile-level-id=42e01f;packetization-mode=1",
    }
    lines = [f"a={name}" for pt, fmtp in formats.items() for name in (f"rtpmap:{pt} H264/90000", f"fmtp:{pt} {fmtp}")]
    media = "m=video 9 UDP/TLS/RTP/SAVPF"
    body = text([line.replace(f"{media} 96 97 102", f"{media} 104 105 106 107") for line in OFFER] + lines)
    assert check_offer(body, "application/sdp", None, PUBLIC).payloads == ("107",)
    alone = text([line.replace(f"{media} 96 97 102", f"{media} 104") for line in OFFER] + lines)
    with pytest.raises(WhepError, match="packetization-mode 0") as caught:
        check_offer(alone, "application/sdp", None, PUBLIC)
    assert caught.value.status == 406


def test_fragment_gives_its_candidates() -> None:
    """Usable candidates are read; the end mark changes nothing."""
    lines = ["a=ice-ufrag:abcd", "m=video 9 RTP/AVP 0", "a=mid:0", HOST, HOST.replace("192.0.2.7", "x.local")]
    offer = check_offer(text(OFFER), "application/sdp", None, PUBLIC).offer
    fragment = check_fragment(text([*lines, "a=end-of-candidates"]), FRAGMENT_TYPE, offer, PUBLIC)
    assert fragment.candidates == (HOST.removeprefix("a=candidate:"),)
    assert fragment == check_fragment(text(lines), FRAGMENT_TYPE, offer, PUBLIC)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (text([HOST]), "application/sdp", 415),
        (b"", FRAGMENT_TYPE, 400),
        (b"garbage", FRAGMENT_TYPE, 400),
        (text(["a=mid:0"]), FRAGMENT_TYPE, 400),
        (text(["a=candidate:1"]), FRAGMENT_TYPE, 400),
        (text([HOST.replace("5000", "x")]), FRAGMENT_TYPE, 400),
        (text(["a=ice-ufrag:other", HOST]), FRAGMENT_TYPE, 400),
        (text(["a=ice-ufrag:x", "a=ice-pwd:" + "p" * 22, HOST]), FRAGMENT_TYPE, 400),
        (text(["a=ice-ufrag:other", "a=ice-pwd:" + "p" * 21, HOST]), FRAGMENT_TYPE, 400),
        (text(["a=ice-ufrag:other", "a=ice-pwd:" + "p" * 257, HOST]), FRAGMENT_TYPE, 400),
    ],
)
def test_bad_fragments_are_refused(body: bytes, content_type: str, status: int) -> None:
    """Wrong type, garbage, malformed candidates and half an ICE restart each have their status."""
    with pytest.raises(WhepError) as caught:
        check_fragment(body, content_type, check_offer(text(OFFER), "application/sdp", None, PUBLIC).offer, PUBLIC)
    assert caught.value.status == status


@pytest.mark.parametrize("with_section", [True, False])
def test_new_credentials_restart_ice(with_section: bool) -> None:
    """They may stand for the session or for the video's section, which the answer repeats; old ones mean nothing."""
    offer = check_offer(text(OFFER), "application/sdp", None, PUBLIC).offer
    credentials = ["a=ice-ufrag:other", "a=ice-pwd:" + "p" * 22]
    section = ["m=video 9 UDP/TLS/RTP/SAVPF 96", "a=mid:0"] if with_section else []
    fragment = check_fragment(text([*section, *credentials, HOST]), FRAGMENT_TYPE, offer, PUBLIC)
    assert fragment.restart is not None
    assert (fragment.restart.ufrag, fragment.restart.password) == ("other", "p" * 22)
    assert fragment.candidates == (HOST.removeprefix("a=candidate:"),)
    answer = fragment_of(fragment.restart, ["ice-ufrag:mine"]).splitlines()
    assert answer[0].startswith("m=video 9 UDP/TLS/RTP/SAVPF ") and answer[1:] == ["a=mid:0", "a=ice-ufrag:mine"]
    same = check_fragment(text([f"a=ice-ufrag:{offer.ufrag}", HOST]), FRAGMENT_TYPE, offer, PUBLIC)
    assert same.restart is None


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda value: value.encode("utf-8", "replace")))
def test_random_bodies_are_refused_cleanly(body: bytes) -> None:
    """Whatever the bytes, the only exception is WhepError."""
    with pytest.raises(WhepError):
        check_offer(b"v=0\r\n" + body, "application/sdp", None, PUBLIC)


@given(st.data())
def test_mutilated_offers_are_taken_or_refused(data: st.DataObject) -> None:
    """An offer with a line removed, doubled or replaced never raises anything but WhepError."""
    place = data.draw(st.integers(0, len(OFFER) - 1))
    new = data.draw(st.lists(st.sampled_from(OFFER) | st.text(max_size=40), max_size=2))
    take_or_refuse(place, *new)


def test_cut_lines_are_taken_or_refused() -> None:
    """An offer with a line that ends too early, anywhere, never raises anything but WhepError."""
    for place, line in enumerate(OFFER):
        for length in range(len(line)):
            take_or_refuse(place, line[:length])


def take_or_refuse(place: int, *new: str) -> None:
    """Checks the offer with a line replaced."""
    body = "\r\n".join([*OFFER[:place], *new, *OFFER[place + 1 :]]).encode("utf-8", "replace")
    try:
        check_offer(body, "application/sdp", None, LOCAL)
    except WhepError as error:
        assert error.status in (400, 406)


def test_candidates_of_other_transports_are_passed_over() -> None:
    """A fragment may tell candidates of an audio that was refused, with an ICE session of its own."""
    offer = check_offer(text(OFFER), "application/sdp", None, PUBLIC).offer
    lines = ["m=audio 9 RTP/AVP 0", "a=mid:7", "a=ice-ufrag:other", HOST.replace("5000", "6000"), "a=end-of-candidates"]
    fragment = check_fragment(text([*lines, "m=video 9 RTP/AVP 0", "a=mid:0", HOST]), FRAGMENT_TYPE, offer, PUBLIC)
    assert fragment.candidates == (HOST.removeprefix("a=candidate:"),)


def test_if_match_compares_strongly() -> None:
    """Lists and `*` count over one or several headers; weak tags and tags without quotes never fit."""
    for fits in ([], ["*"], ['"a"'], ['"b", "a"'], ['"b"', '"a"'], ['"b","a"']):
        assert matches(fits, '"a"'), fits
    for other in (['"b"'], ['W/"a"'], ["a"], [""], ['"A"'], ['"a b"']):
        assert not matches(other, '"a"'), other
