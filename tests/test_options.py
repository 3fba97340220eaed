import argparse

import pytest

from streaming.http.app import AppConfig, create_app
from streaming.http.options import OWN_PATHS, add_access, origin, root_path, token
from streaming.http.whep import Policy


@pytest.mark.parametrize("text", ["", " ", "a b", "snöwman", "tab\t", "line\n", "\x7f"])
def test_a_token_fits_a_header(text: str) -> None:
    """What an Authorization header cannot carry is refused, and the refusal does not repeat it."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        token(text)
    assert len(text.strip()) < 2 or text not in str(caught.value)
    assert token("a+b/c=!~") == "a+b/c=!~"


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("*", "*"),
        ("https://page.example", "https://page.example"),
        ("HTTPS://Page.Example", "https://page.example"),
        ("https://page.example:443", "https://page.example"),
        ("http://page.example:80", "http://page.example"),
        ("https://page.example:80", "https://page.example:80"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_an_origin_is_what_browsers_send(text: str, sent: str) -> None:
    """In lower case, without the scheme's own port."""
    assert origin(text) == sent


@pytest.mark.parametrize(
    "text",
    [
        "",
        "page.example",
        "https://page.example/",
        "https://p/x",
        "null",
        "ftp://p",
        "**",
        "http://p:65536",
        "http://p:0",
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    """With the value and the cure."""
    with pytest.raises(argparse.ArgumentTypeError, match="https://example.org") as caught:
        origin(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "path"), [("", ""), ("/", ""), ("/live", "/live"), ("/live/", "/live"), ("/a/b-c_d.e", "/a/b-c_d.e")]
)
def test_a_root_path_has_no_slash_at_its_end(text: str, path: str) -> None:
    """So that it stands before any path."""
    assert root_path(text) == path


@pytest.mark.parametrize(
    "text", ["live", "//x", "/a//b", "/a?b", "/a#b", "/..", "/a/../b", '/"><', "/a b", "http://x/live", "/whep/x"]
)
def test_what_is_no_root_path_is_refused(text: str) -> None:
    """Also one that could not be told from a path of the server, where the proxy strips it."""
    with pytest.raises(argparse.ArgumentTypeError, match="/live"):
        root_path(text)


def test_no_root_path_begins_like_a_route() -> None:
    """The list of the server's own paths is that of its routes."""
    app = create_app(None, AppConfig(Policy(loopback=False)))  # type: ignore[arg-type]
    assert {route.path.split("/")[1] for route in app.routes} - {""} == OWN_PATHS  # type: ignore[attr-defined]


def test_options_of_access() -> None:
    """Origins add up; tokens stand apart."""
    parser = argparse.ArgumentParser()
    add_access(parser)
    found = parser.parse_args(["--allow-origin", "*", "--allow-origin", "http://a", "--view-token", "v"])
    assert (found.allow_origin, found.view_token, found.control_token, found.token) == (
        ["*", "http://a"],
        "v",
        None,
        None,
    )
