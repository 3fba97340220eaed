"""The command `python -m streaming.doctor`, and the report of a server that runs."""

import asyncio
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from certificate import make_certificate
from fakes import serving
from test_server import started

from streaming.doctor import __main__ as doctor
from streaming.doctor.remote import check_url

pytestmark = pytest.mark.usefixtures("loopback")

NO_ENGINE = ("--ice-address", "127.0.0.1", "--ray", "127.0.0.1:1")  # its weights take seconds


class Other(BaseHTTPRequestHandler):
    """A server of another kind: the first part of a path is the status that it answers, with a page."""

    tokens: list[str | None] = []

    def do_GET(self) -> None:
        status, page = int(self.path.split("/")[1]), b"<html>"
        self.tokens.append(self.headers["authorization"])
        self.send_response(status)
        if status == 302:
            self.send_header("location", "/401/doctor")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def other() -> Iterator[str]:
    """URL of one."""
    with HTTPServer(("127.0.0.1", 0), Other) as running:
        thread = Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_command_examines_this_machine(capsys: pytest.CaptureFixture[str], free_port: int) -> None:
    """The weights are loaded in a process of their own; a problem makes status 1 and has its cure on the next line."""
    options = ("--ice-address", "127.0.0.1", "--port", str(free_port), "--device", "cpu", "--weights", "missing")
    assert doctor.main(options) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("problem engine: ") and "missing" in said[-2]
    assert said[-1].strip().startswith("-> ")


def test_shipped_weights_load() -> None:
    """The engine's own loading is what is tried."""
    found = doctor.examine_engine("mini", None, "cpu")
    assert found.state == "ok" and "preset mini loads in" in found.words


def test_command_takes_the_options_of_the_server(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, free_port: int
) -> None:
    """Also those of HTTP: whether the port is free and the certificate can be used, before the server starts."""
    certificate, key = map(str, make_certificate(tmp_path))
    options = (*NO_ENGINE, "--host", "0.0.0.0", "--port", str(free_port), "--view-token", "s3cret")
    assert doctor.main((*options, "--tls-cert", certificate, "--tls-key", key)) == 0
    said = capsys.readouterr().out
    assert f"ok      http: 0.0.0.0 port {free_port} is free\n" in said
    assert f"ok      https: the certificate {certificate} and its key can be used\n" in said
    assert "note    engine: engines run on the nodes of --ray" in said
    assert doctor.main(options) == 0
    assert "note    https: HTTP without TLS" in capsys.readouterr().out
    assert doctor.main((*options, "--tls-cert", key, "--tls-key", certificate)) == 1
    assert "problem https: the certificate" in capsys.readouterr().out


def test_command_finds_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """With the cure; so of an address that this machine lacks."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert doctor.main((*NO_ENGINE, "--port", port)) == 1
    said = capsys.readouterr().out
    assert f"problem http: cannot listen on 127.0.0.1 port {port}: Address already in use\n" in said
    assert "-> end what uses it" in said
    lacks = doctor.examine_http("192.0.2.77", 0)
    assert lacks.state == "problem" and str(lacks.cure).startswith("--host with an address")


def test_command_refuses_what_the_server_does(capsys: pytest.CaptureFixture[str]) -> None:
    """With status 2 and one line."""
    for argv, words in (
        (("--turn-secret", "x"), "argument --turn-secret"),
        (("--tls-cert", "x"), "--tls-cert and --tls-key belong together"),
        (("--preset", "foo"), "invalid choice: 'foo'"),
        (("--url", "foo"), "'foo' is not the URL of a server"),
    ):
        with pytest.raises(SystemExit) as caught:
            doctor.main(argv)
        said = capsys.readouterr().err.splitlines()[-1]
        assert caught.value.code == 2 and said.startswith("python -m streaming.doctor: error: ") and words in said


async def test_command_asks_a_server(capsys: pytest.CaptureFixture[str], free_port: int) -> None:
    """With --url the report is the server's; nobody there is a problem."""
    async with serving() as running:
        assert await asyncio.to_thread(doctor.main, ["--url", running.url]) == 0
        assert "ok      channel main: " in capsys.readouterr().out
        url = running.url.replace("http", "https")
        assert await asyncio.to_thread(doctor.main, ["--url", url]) == 1
        said = capsys.readouterr().out
        assert f"http: {url} does not speak HTTPS" in said and "-> http:// where" in said
    url = f"http://127.0.0.1:{free_port}"
    assert await asyncio.to_thread(doctor.main, ["--url", url]) == 1
    assert f"http: {url} does not answer" in capsys.readouterr().out


async def test_command_brings_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    """By an option or in the address; without it, or with another one, the finding says so and has no token."""
    async with serving("--view-token", "s3cret") as running:
        for argv, words in (
            (("--url", running.url), "asks for a token"),
            (("--url", running.url, "--view-token", "0ther"), "does not take this token"),
            (("--url", f"{running.url}/?token=0ther"), "does not take this token"),
        ):
            assert await asyncio.to_thread(doctor.main, argv) == 1
            said = capsys.readouterr().out
            assert f"http: {running.url}" in said and words in said and "-> its --view-token" in said
            assert "0ther" not in said
        for argv in (("--url", running.url, "--token", "s3cret"), ("--url", f"{running.url}/?token=s3cret")):
            assert await asyncio.to_thread(doctor.main, argv) == 0
            assert "ok      channel main: " in capsys.readouterr().out


def test_command_asks_over_https(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that is not trusted has a cure of its own, which works; so has the wrong scheme."""
    certificate, key = map(str, make_certificate(tmp_path))
    with started("--tls-cert", certificate, "--tls-key", key) as (_, url):
        assert doctor.main(["--url", url]) == 1
        said = capsys.readouterr().out
        assert "a certificate that is not trusted here: self-signed certificate" in said and "SSL_CERT_FILE" in said
        assert doctor.main(["--url", url.replace("https", "http")]) == 1
        said = capsys.readouterr().out
        assert "does not speak HTTP\n" in said and "-> https:// where" in said
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert doctor.main(["--url", url]) == 0
        assert "ok      https: this report came over HTTPS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "words", "cure"),
    [
        ("/404", "answers 404 Not Found", "the URL of its page"),
        ("/502", "answers 502 Bad Gateway", "behind the proxy running"),
        ("/200", "answers, but with no report", "the URL of its page"),
    ],
)
def test_other_servers_are_told_apart(
    capsys: pytest.CaptureFixture[str], other: str, path: str, words: str, cure: str
) -> None:
    """What answers is there, and is not this server or not at this path."""
    assert doctor.main(["--url", other + path]) == 1
    said = capsys.readouterr().out
    assert f"problem http: {other}{path} {words}\n" in said and cure in said


def test_a_redirect_gets_no_token(capsys: pytest.CaptureFixture[str], other: str) -> None:
    """It may lead to somebody else; where it leads is said."""
    Other.tokens.clear()
    doctor.main(["--url", f"{other}/302", "--view-token", "s3cret"])
    assert Other.tokens == ["Bearer s3cret", None]
    said = capsys.readouterr().out
    assert f"leads to {other}/401, which asks for a token" in said and f"-> --url {other}/401\n" in said


@pytest.mark.parametrize(
    "text", ["", "foo", "ftp://h", "http://", "http://a:b@h", "http://h:x", "http://h:0", "http://[h", "http://h/ü"]
)
def test_what_is_no_url_is_refused(text: str) -> None:
    """Its query, which may hold a token, is not repeated."""
    with pytest.raises(ValueError, match="is not the URL of a server") as caught:
        check_url(text + "?token=s3cret")
    assert "s3cret" not in str(caught.value)
