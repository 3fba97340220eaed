"""A client that is generated from /openapi.json, at work on a real server."""

import base64
import importlib
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from fakes import FORKED, FORKED_SEED, PNG, UNREAD, serving
from test_openapi import document

from streaming.http.access import Tokens

pytestmark = pytest.mark.usefixtures("loopback")
pytest.importorskip("openapi_python_client", reason="openapi-python-client is not installed")

KNOWN = {"application/json", "text/plain", "text/html", "text/event-stream"}  # media types of the generator


def settings(schema: dict[str, Any]) -> dict[str, Any]:
    """The generator's settings, for which what it does not know is bytes."""
    kinds = set(re.findall(r'"content": \{"([^"]+)"', json.dumps(schema))) - KNOWN
    others = {kind for kind in kinds if not kind.endswith("+json")}
    return {"post_hooks": [], "content_type_overrides": dict.fromkeys(sorted(others), "application/octet-stream")}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The generated package; the generator has nothing to complain of."""
    folder = tmp_path_factory.mktemp("client")
    schema = document(Tokens(control="of any", view="server"))
    (folder / "openapi.json").write_text(json.dumps(schema))
    (folder / "settings.json").write_text(json.dumps(settings(schema)))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning", "--meta", "none"]
    files = ["--path", "openapi.json", "--config", "settings.json", "--output-path", "landiff_client"]
    result = subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"landiff_client{name}")
    sys.path.remove(str(folder))


async def test_a_generated_client_steers_a_channel(client: Any) -> None:
    """It lists channels, changes the prompt, reads the report and the picture, and gets refusals as records."""
    models = client(".models")
    async with serving("--token", "s3cret") as running:
        api = client("").AuthenticatedClient(running.url, token="s3cret")
        async with api:
            listed = await client(".api.default.channels").asyncio(client=api)
            assert [(one.id, one.preset) for one in listed] == [("main", "mini")]
            body = models.ChannelChange(prompt=f"a {UNREAD} boat")
            answer = await client(".api.default.change").asyncio("main", client=api, body=body)
            assert (answer.prompt, answer.unread) == (f"a {UNREAD} boat", [UNREAD])
            assert answer.frame > 0 and answer.replaced_by is None
            report = await client(".api.default.channel_report").asyncio("main", client=api)
            assert (report.prompt, report.width, report.prompts[-1].frame) == (answer.prompt, 192, answer.frame)
            body = models.NewChannel(prompt="a red ball", id="sea")
            made = await client(".api.default.create").asyncio(client=api, body=body)
            assert (made.id, made.state) == ("sea", "idle")
            body = models.NewChannel(prompt="a red ball", start=base64.b64encode(PNG).decode())
            made = await client(".api.default.create").asyncio(client=api, body=body)
            assert (made.prompt, made.state) == ("a red ball", "idle")
            body = models.NewChannel(from_=models.FromChannel(channel="main", chunk=2))
            made = await client(".api.default.create").asyncio(client=api, body=body)
            assert (made.prompt, made.seed) == (FORKED, FORKED_SEED)
            ended = await client(".api.default.end").asyncio_detailed("sea", client=api)
            assert ended.status_code == 204
            missing = await client(".api.default.channel_report").asyncio("none", client=api)
            assert isinstance(missing, models.Problem) and missing.status == 404 and "GET /channels" in missing.detail
            unreachable = models.PushRequest(url="http://127.0.0.1:9/whip")
            refused = await client(".api.default.push").asyncio("main", client=api, body=unreachable)
            assert isinstance(refused, models.Problem) and refused.status == 502
        async with client("").Client(running.url) as stranger:
            refused = await client(".api.default.channels").asyncio(client=stranger)
            assert isinstance(refused, models.Problem) and refused.status == 401
