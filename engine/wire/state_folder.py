"""Where a channel's journal and snapshots lie in the server's state folder, for both processes."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

JOURNAL = "journal.jsonl"


def channel_folder(state: Path, channel: str) -> Path:
    """The folder of a channel, whatever its id."""
    return state / quote(channel, safe="").replace(".", "%2E")
