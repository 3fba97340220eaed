from pathlib import Path

import httpx
import pytest
from certificate import make_certificate, trusting
from test_server import run, started

from streaming.http.tls import context


def test_good_files_make_a_context(tmp_path: Path) -> None:
    """A certificate and its own key."""
    context(*map(str, make_certificate(tmp_path)))


@pytest.mark.parametrize(
    "damage", ["no key", "no certificate", "folder", "passphrase", "other key", "no PEM", "swapped"]
)
def test_bad_files_end_the_server_at_its_start(tmp_path: Path, damage: str) -> None:
    """With status 2 and one line that names the file, before an engine starts; nobody is asked for a passphrase."""
    certificate, key = make_certificate(tmp_path, b"secret" if damage == "passphrase" else None)
    named = key
    if damage == "no key":
        key.unlink()
    elif damage == "no certificate":
        certificate.unlink()
        named = certificate
    elif damage == "folder":
        named = certificate = tmp_path
    elif damage == "other key":
        (tmp_path / "other").mkdir()
        named = key = make_certificate(tmp_path / "other")[1]
    elif damage == "no PEM":
        key.write_text("hello")
    elif damage == "swapped":
        certificate, key = key, certificate
    with pytest.raises(ValueError, match=str(named)) as caught:
        context(str(certificate), str(key))
    assert "\n" not in str(caught.value)
    if damage in ("passphrase", "no key"):
        result = run("--port", "0", "--tls-cert", str(certificate), "--tls-key", str(key))
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1 and str(named) in result.stderr


def test_one_file_alone_is_refused(tmp_path: Path) -> None:
    """Certificate and key belong together."""
    for alone in ("--tls-cert", "--tls-key"):
        result = run("--port", "0", alone, str(make_certificate(tmp_path)[0]))
        assert result.returncode == 2 and "--tls-cert and --tls-key" in result.stderr


def test_https_is_served(tmp_path: Path) -> None:
    """Page, report and events arrive over TLS; plain HTTP on that port does not."""
    certificate, key = make_certificate(tmp_path)
    with started("--tls-cert", str(certificate), "--tls-key", str(key)) as (_, url):
        assert url.startswith("https://")
        with httpx.Client(base_url=url, verify=trusting(certificate)) as http:
            assert http.get("/").status_code == 200
            assert http.get("/channels/main").json()["id"] == "main"
            with http.stream("GET", "/channels/main/events") as stream:
                assert next(stream.iter_lines()) == "event: state"
            assert http.post("/whep/main", content=b"x" * 50_000).status_code == 413
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"))
