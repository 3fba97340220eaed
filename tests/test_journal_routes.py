"""`GET /channels/{id}/journal` as a client of the real server sees it; the fake engine writes none itself."""

from pathlib import Path

import pytest
from fakes import serving
from test_app import refused

from engine.wire.state_folder import JOURNAL, channel_folder

pytestmark = pytest.mark.usefixtures("loopback")
PATH = "/channels/main/journal"


async def test_a_journal_is_given_up_to_its_last_whole_line(tmp_path: Path) -> None:
    """Also where the line that is being written is long."""
    path = channel_folder(tmp_path, "main") / JOURNAL
    async with serving("--state", str(tmp_path)) as running:
        refused(await running.http.get(PATH), 503)
        path.parent.mkdir()
        path.write_bytes(b"{")
        refused(await running.http.get(PATH), 503)
        lines = b'{"kind":"begin"}\n{"kind":"chunk"}\n'
        for rest in (b"", b"{", b"x" * 200_000):
            path.write_bytes(lines + rest)
            reply = await running.http.get(PATH)
            assert (reply.status_code, reply.content) == (200, lines)
            assert reply.headers["content-type"].startswith("application/jsonl")
            assert "journal.jsonl" in reply.headers["content-disposition"]
        refused(await running.http.get("/channels/other/journal"), 404)


async def test_it_needs_the_view_token(tmp_path: Path) -> None:
    """A journal holds the prompts."""
    async with serving("--state", str(tmp_path), "--view-token", "secret") as running:
        refused(await running.http.get(PATH, headers={"authorization": "Bearer wrong"}), 401)
