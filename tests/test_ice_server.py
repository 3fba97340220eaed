import base64
import hashlib
import hmac

import pytest

from streaming.media.ice_server import CREDENTIALS_S, IceServer, from_link, parse, rest_credentials, with_credentials


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("stun:stun.example.org", IceServer("stun:stun.example.org", "stun.example.org", 3478, "udp")),
        ("STUN:192.0.2.1:19302", IceServer("stun:192.0.2.1:19302", "192.0.2.1", 19302, "udp")),
        ("stuns:stun.example.org", IceServer("stuns:stun.example.org", "stun.example.org", 5349, "tcp")),
        ("turn:a:b@turn.example.org", IceServer("turn:turn.example.org", "turn.example.org", 3478, "udp", "a", "b")),
        (
            "turn:a:b@[2001:DB8::1]:443?transport=tcp",
            IceServer("turn:[2001:DB8::1]:443?transport=tcp", "2001:db8::1", 443, "tcp", "a", "b"),
        ),
        ("turns:a%3Ab:p%40q%25@t-1.example", IceServer("turns:t-1.example", "t-1.example", 5349, "tcp", "a:b", "p@q%")),
        ("turn:1700000000:b=@h", IceServer("turn:h", "h", 3478, "udp", "1700000000", "b=")),
        ("turns:h?transport=udp", IceServer("turns:h?transport=udp", "h", 5349, "udp")),
        ("TURN:H:99?TRANSPORT=TCP", IceServer("turn:H:99?transport=tcp", "h", 99, "tcp")),
    ],
)
def test_urls_are_read(text: str, server: IceServer) -> None:
    """Host, port and transport have the standards' defaults; the URL stays as given, without what is before an @.

    Its keywords are in lower case: Chromium takes no other.
    """
    assert parse(text) == server
    assert parse(server.url) == IceServer(server.url, server.host, server.port, server.transport)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stun",
        "stun:",
        "stun.example.org",
        "http://stun.example.org",
        "stun://stun.example.org",
        "stun:host:0",
        "stun:host:65536",
        "stun:host:x",
        "stun:host?transport=udp",
        "stun:a:b@host",
        "stun:256.1.1.1",
        "stun:1.2.3",
        "stun:[::g]",
        "stun:::1",
        "stun:a..b",
        "stun:-a",
        "stun:a b",
        "turn:a@host",
        "turn::b@host",
        "turn:a:@host",
        "turn:a:b@host?transport=sctp",
        "turn:a:b@host?x=1",
        "turn:a:b%0a@host",
        "turn:a:b@",
        "turn:snöw:man@host",
    ],
)
def test_other_urls_are_refused(text: str) -> None:
    """Each is named with what to write, on one line."""
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "turn:ann:hunter2@host:0",
        "turn:ann:p@hunter2@host",
        "turn:ann:hunter2@p@host",
        "turn:ann@hunter2:p@host",
        "ann@hunter2@host",
    ],
)
def test_a_refusal_keeps_the_password(text: str) -> None:
    """The log of a server that does not start has no part of it, and says how an @ in it is written."""
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert "hunter2" not in str(caught.value) and "ann" not in str(caught.value)
    assert "%40" in str(caught.value) or text.count("@") == 1


def test_a_record_keeps_the_password() -> None:
    """Its text has none."""
    assert "hunter2" not in repr(parse("turn:ann:hunter2@host"))


def test_link_gives_credentials_as_quoted_strings() -> None:
    """The header is that of WHIP and WHEP; a STUN server has no credentials in it."""
    assert parse("stun:h").link == '<stun:h>; rel="ice-server"'
    assert parse('turn:a"b:c\\d@h').link == (
        '<turn:h>; rel="ice-server"; username="a\\"b"; credential="c\\\\d"; credential-type="password"'
    )


def test_links_of_others_are_read() -> None:
    """Each ICE server counts that can be used, with credentials between quotes or bare; the rest is passed over."""
    own = [parse("stun:h"), parse('turn:a"b:c\\d@h'), parse("turns:a:b@[2001:db8::1]:99?transport=tcp")]
    assert from_link([", ".join(server.link for server in own[:2]), own[2].link]) == own
    bare = "<turn:h>;rel=ice-server;username=ann;credential=x"
    assert from_link([bare]) == [parse("turn:ann:x@h")]
    for other in ("", "nonsense", '<turn:h>; rel="ice-server"', "<http://h>; rel=ice-server", "<stun:h>; rel=next"):
        assert from_link([other]) == []


def test_time_limited_credentials_are_coturns() -> None:
    """User is the expiry, with a name; the password is the base64 of its HMAC-SHA1."""
    assert rest_credentials("north", 1700000000) == ("1700000000", "CWyHi3zCeWqXBir9thl4m+iZPRY=")
    user, password = rest_credentials("north", 1700000000, "ann")
    assert user == "1700000000:ann"
    assert base64.b64decode(password) == hmac.digest(b"north", b"1700000000:ann", hashlib.sha1)


def test_each_session_gets_its_own_credentials() -> None:
    """The secret makes new ones each time, a day long, and leaves STUN and given credentials alone."""
    bare, own, stun = parse("turn:h"), parse("turn:a:b@h"), parse("stun:h")
    first, second = (with_credentials(bare, "north", 1000.5) for _ in range(2))
    assert first.username is not None and first.username.startswith(f"{1000 + CREDENTIALS_S}:")
    assert first.username != second.username and first.credential != second.credential
    assert with_credentials(own, "north", 0) is own
    assert with_credentials(stun, "north", 0) is stun
    assert with_credentials(bare, None, 0) is bare


@pytest.mark.parametrize(
    ("text", "usable"),
    [("stun:h", True), ("stuns:h", False), ("turn:h", True), ("turns:h", True), ("turns:h?transport=udp", False)],
)
def test_what_only_players_can_use_is_known(text: str, usable: bool) -> None:
    """The server gathers over UDP, TCP and TLS; STUN over TLS and TURN over DTLS are for players."""
    assert parse(text).usable_here is usable
