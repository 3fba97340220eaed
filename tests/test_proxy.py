"""docs/PROXY.md's nginx configuration, run with Debian's nginx before a running server."""

import asyncio
import contextlib
import re
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from certificate import make_certificate, trusting
from fakes import Watcher, serving

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin")
PROXY_MD = Path(__file__).parents[1] / "docs/PROXY.md"
TEMPLATE = PROXY_MD.parents[1] / "deploy/nginx.conf.template"
FRAME = (
    "daemon off; master_process off; pid nginx.pid; error_log stderr; events {{}} "
    "http {{ access_log off; {paths}\n{server} }}"
)
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
LIMIT_S = 10

pytestmark = [
    pytest.mark.usefixtures("loopback"),
    pytest.mark.skipif(NGINX is None, reason="nginx is missing: apt-get install nginx-light"),
]


@contextlib.asynccontextmanager
async def proxied(folder: Path, upstream: str, strip: bool) -> AsyncIterator[httpx.AsyncClient]:
    """A client of nginx with the configuration of the document, before the server at `upstream`."""
    certificate, key = make_certificate(folder)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = PROXY_MD.read_text().split("```nginx\n")[1].split("```")[0]
    for told, tested in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/live/fullchain.pem", str(certificate)),
        ("/etc/ssl/live/privkey.pem", str(key)),
        ("http://127.0.0.1:8000;", f"{upstream}{'/' if strip else ''};"),
    ):
        assert told in server
        server = server.replace(told, tested)
    paths = "".join(f"{name}_temp_path {folder / name};" for name in TEMPORARY)
    (folder / "nginx.conf").write_text(FRAME.format(paths=paths, server=server))
    process = await asyncio.create_subprocess_exec(
        str(NGINX), "-p", str(folder), "-c", "nginx.conf", stderr=asyncio.subprocess.PIPE
    )
    try:
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trusting(certificate)) as http:
            async with asyncio.timeout(LIMIT_S):
                while process.returncode is None:
                    with contextlib.suppress(httpx.ConnectError):
                        await http.get("/live/healthz")
                        break
                    await asyncio.sleep(0.05)
            yield http
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        _, said = await process.communicate()
    assert b"[emerg]" not in said and b"[error]" not in said, said


def test_the_template_sends_the_same_headers() -> None:
    """What the server is told stands in deploy/nginx.conf.template as in the document."""
    texts = PROXY_MD.read_text(), TEMPLATE.read_text()
    told, sent = (re.findall(r"proxy_set_header [^;]+;", text) for text in texts)
    assert told == sent and len(told) == 3


@pytest.mark.parametrize("strip", [False, True])
async def test_everything_works_behind_nginx(tmp_path: Path, strip: bool) -> None:
    """Page, files, events at once, WHEP to its end and steering, under a prefix and TLS, with tokens."""
    async with (
        serving("--root-path", "/live", "--view-token", "v", "--control-token", "c") as running,
        proxied(tmp_path, running.url, strip) as http,
    ):
        page = await http.get("/live", follow_redirects=True)
        assert page.url.path == "/live/" and '<base href="/live/">' in page.text
        for file in ("style.css", "app.js", "icon.svg"):
            assert (await http.get(urljoin(str(page.url), f"page/{file}"))).status_code == 200
        assert (await http.get("/live/channels")).status_code == 401
        async with http.stream("GET", "/live/channels/main/events?token=v") as stream:
            async with asyncio.timeout(LIMIT_S):
                assert await anext(stream.aiter_lines()) == "event: state"
        watcher = Watcher(http)
        try:
            await watcher.join("?token=v", "/live/whep/main")
            await watcher.received(3)
            assert watcher.location.startswith("/live/whep/main/")
            assert (await http.get(watcher.location)).status_code == 204
            assert (await http.delete(watcher.location)).status_code == 200
        finally:
            await watcher.close()
        steered = await http.patch(
            "/live/channels/main", json={"prompt": "a red ball"}, headers={"authorization": "Bearer c"}
        )
        assert steered.status_code == 200
        # The proxy's word counts, not the client's.
        examined = await http.get("/live/doctor?token=v", headers={"x-forwarded-proto": "http"})
        assert "this report came over HTTPS" in [one["words"] for one in examined.json()["findings"]]
        missing = await http.get("/live/nowhere", headers={"authorization": "Bearer v"})
        assert missing.json()["detail"] == "There is nothing at /live/nowhere; /live/openapi.json lists the paths."
        too_much = await http.post("/live/whep/main?token=v", content=bytes(500_000))
        assert too_much.status_code == 413 and too_much.json()["detail"]
