import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_server import started

from streaming.http.access import Tokens
from streaming.http.app import AppConfig, create_app
from streaming.http.openapi import EVERYWHERE, PROBLEM, WITH_BODY
from streaming.http.whep import Policy

ROOT = Path(__file__).parents[1]
HTTP_MD = ROOT / "docs/HTTP.md"
CHECK_LIMIT_S = 170
BOUNDS = ("--max-examples", "10", "--seed", "1", "--request-timeout", "10", "--no-shrink")


def document(tokens: Tokens | None = None) -> dict[str, Any]:
    config = AppConfig(Policy(loopback=False), tokens or Tokens())
    return create_app(None, config).openapi()  # type: ignore[arg-type]


def operations(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, item in schema["paths"].items()
        for method, operation in item.items()
    }


def errors(operation: dict[str, Any]) -> set[int]:
    return {int(status) for status in operation["responses"] if int(status) >= 400}


def test_every_error_is_documented_as_the_problem_that_it_is() -> None:
    """In problem+json alone, with the fields that answers have; FastAPI's own shape of 422 is nowhere."""
    schema = document()
    for name, operation in operations(schema).items():
        assert set(EVERYWHERE) <= errors(operation), name
        assert ("requestBody" not in operation) or set(WITH_BODY) <= errors(operation), name
        for status in errors(operation):
            assert set(operation["responses"][str(status)]["content"]) == {PROBLEM}, f"{name} {status}"
    assert schema["components"]["schemas"]["Problem"]["required"] == ["type", "title", "status", "detail"]
    assert "HTTPValidationError" not in json.dumps(schema)


def test_the_page_on_http_lists_what_the_document_does() -> None:
    """Each route of docs/HTTP.md has the document's own errors, beside those that every route has."""
    rows = re.findall(r"^\| `([A-Z]+) (/[^`]*)` \|.*\| ([0-9, ]*) ?\|$", HTTP_MD.read_text(), re.MULTILINE)
    told = {f"{method} {path}": {int(one) for one in re.findall("[0-9]+", listed)} for method, path, listed in rows}
    for name, operation in operations(document()).items():
        path = name.replace("{channel_id}", "{id}").replace("{recording_id}", "{recording}")
        path = path.replace("{push_id}", "{push}")
        common = {*EVERYWHERE, *(WITH_BODY if name.split()[0] in ("POST", "PATCH", "DELETE") else ())}
        assert told[path] | common == errors(operation) | common, name


def test_each_operation_has_an_id_of_its_own() -> None:
    """A word or two, by which generated clients name their calls."""
    ids = [operation["operationId"] for operation in operations(document()).values()]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[a-z_]+", one) for one in ids), sorted(ids)


def test_tokens_are_in_the_document() -> None:
    """Routes that ask for one say so, where it may stand and how they refuse; without tokens none does."""
    with_tokens = operations(document(Tokens(control="c", view="v")))
    assert with_tokens["PATCH /channels/{channel_id}"]["security"] == [{"bearer": []}]
    assert {401, 403} <= errors(with_tokens["PATCH /channels/{channel_id}"])
    assert with_tokens["POST /whep/{channel_id}"]["security"] == [{"bearer": []}, {"query": []}]
    assert 401 in errors(with_tokens["GET /channels"]) and 403 not in errors(with_tokens["GET /channels"])
    assert 401 not in errors(with_tokens["GET /healthz"])
    assert "security" not in json.dumps(document()["paths"])


@pytest.mark.timeout(CHECK_LIMIT_S + 10)
def test_schemathesis_finds_nothing() -> None:
    """All its checks pass on a running server, with requests that fit the document and such that do not."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    with started() as (_, url):
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *BOUNDS]
        # Its settings are in the root's schemathesis.toml.
        result = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_LIMIT_S, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
