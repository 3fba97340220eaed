"""The lines of a journal: written, read, and what is no journal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_model

from engine.config import PRESETS
from engine.live.channel_state import Place
from engine.live.journal import Beginning, ChunkRecord, Environment, Journal, JournalEncoder, Record, SnapshotRecord
from engine.live.plan_writer import PlanPart
from engine.wire.state_folder import JOURNAL

CONFIG = tiny_config()
OFFSETS = CONFIG.tokenizer.offsets
ENVIRONMENT = Environment.of(tiny_model())


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)


def part(start: int, frames: int, salt: int = 0) -> PlanPart:
    """The beginning of a GOP whose tokens depend on their place."""
    tokens = (torch.arange(OFFSETS[frames]) * 7 + start + salt) % CONFIG.tokenizer.quantizer.codebook_size
    return PlanPart(start, tokens[None])


RECORDS: list[Record] = [
    Beginning("main", Place(), 7, "ein Fuß", None, ENVIRONMENT),
    ChunkRecord(Place(), 25, 0, 7, "ein Fuß", 3, ((0, 2),), (part(0, 7),)),
    ChunkRecord(Place(1, 25, 7), 24, 25, 7, "ein Fuß", 3, ((0, 2), (5, 1)), (part(0, 13),)),
    SnapshotRecord("000001.snapshot"),
    ChunkRecord(Place(2, 49, 13), 24, 49, 8, "a boat", 4, ((0, 1),), (part(13, 6),)),
    ChunkRecord(Place(3, 73, 19), 24, 73, 8, "a boat", 4, ((0, 1),), (part(13, 9), part(22, 3))),
    # Back in the video, and then again to the same place: there is another GOP there.
    ChunkRecord(Place(4, 89, 23), 24, 89, 8, "a boat", 4, ((0, 1),), (part(23, 6),)),
    ChunkRecord(Place(4, 89, 23), 24, 91, 9, "a boat", 4, ((0, 1),), (part(23, 6, 3),)),
    # Another process goes on within a GOP.
    Beginning("main", Place(5, 113, 29), 9, "a boat", "000002.snapshot", ENVIRONMENT),
    ChunkRecord(Place(5, 113, 29), 24, 113, 9, "a boat", 4, ((0, 1),), (part(23, 12, 3),)),
]


def lines(records: list[Record] = RECORDS) -> list[bytes]:
    encoder = JournalEncoder(CONFIG)
    return [encoder.line(record) for record in records]


def journal(folder: Path, content: bytes) -> Journal:
    path = folder / JOURNAL
    path.write_bytes(content)
    return Journal(path)


def test_records_come_back(tmp_path: Path) -> None:
    """All that was written, GOPs over several chunks and prompts in any script among it."""
    read = journal(tmp_path, b"".join(lines()))
    assert read.damage is None
    assert str(read.records) == str(RECORDS)
    assert (read.beginning, read.config, read.folder) == (RECORDS[0], CONFIG, tmp_path)


def test_each_record_is_a_line_and_new_tokens_are_written_once() -> None:
    """Seed and prompt stand where they change, tokens where they are first read."""
    facts = [json.loads(line) for line in lines(RECORDS[:6])]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines())
    assert ["prompt" in one for one in facts[1:]] == ["seed" in one for one in facts[1:]] == [False] * 3 + [True, False]
    new = [OFFSETS[7], OFFSETS[13] - OFFSETS[7], OFFSETS[6], OFFSETS[9] - OFFSETS[6] + OFFSETS[3]]
    tokens = [len(one["tokens"]) // 4 * 3 - one["tokens"].count("=") for one in facts if one["kind"] == "chunk"]
    assert tokens == [2 * count for count in new]


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_last_line_that_was_cut_short_is_not_there(tmp_path: Path, cut: int) -> None:
    """A process that was killed in the middle of a line costs that line."""
    read = journal(tmp_path, b"".join(lines())[:-cut])
    assert read.damage is None
    assert str(read.records) == str(RECORDS[:-1])


def _edit(number: int, **changes: Any) -> Callable[[list[bytes]], None]:
    def edit(found: list[bytes]) -> None:
        found[number] = json.dumps(json.loads(found[number]) | changes).encode() + b"\n"

    return edit


DAMAGE: dict[str, tuple[int, Callable[[list[bytes]], Any]]] = {
    "half a line": (2, lambda found: found.__setitem__(2, found[2][:40] + b"\n")),
    "no JSON": (2, lambda found: found.__setitem__(2, b"\xff\xfe\n")),
    "another JSON": (2, lambda found: found.__setitem__(2, b"[1, 2]\n")),
    "deep JSON": (2, lambda found: found.__setitem__(2, b"[" * 100_000 + b"\n")),
    "a line is lost": (4, lambda found: found.pop(4)),
    "two lines are one another": (2, lambda found: found.insert(2, found.pop(4))),
    "kind": (3, _edit(3, kind="song")),
    "a number is text": (2, _edit(2, frame="25")),
    "a number is huge": (2, _edit(2, steps=10**30)),
    "no threads": (2, _edit(2, threads=[])),
    "zero threads": (2, _edit(2, threads=[[0, 0]])),
    "shown before it begins": (2, _edit(2, shown=24)),
    "no base64": (2, _edit(2, tokens="!!!!")),
    "odd bytes": (2, _edit(2, tokens="AAAA")),
    "too few tokens": (2, _edit(2, tokens="")),
    "token without a code": (2, _edit(2, tokens="/" * 48)),
    "GOP of the future": (2, _edit(2, gops=[[8, 6]])),
    "too long a GOP": (2, _edit(2, gops=[[0, 14]])),
    "no GOP": (2, _edit(2, gops=[])),
    "a name that leads elsewhere": (3, _edit(3, snapshot="../000001.snapshot")),
    "another preset": (2, lambda found: found.insert(2, found[0].replace(b'"tiny"', b'"mini"'))),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_line_is_named_and_what_is_before_it_is_good(tmp_path: Path, kind: str) -> None:
    """Its number and what is wrong, in one line of text."""
    number, damage = DAMAGE[kind]
    found = lines()
    damage(found)
    read = journal(tmp_path, b"".join(found))
    assert read.damage is not None and f"line {number + 1} of" in read.damage and "\n" not in read.damage
    assert str(read.records) == str(RECORDS[:number])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no journal"),
        (b"\n", "is no journal"),
        (b"not a journal\n", "is no journal"),
        (b"\x00" * 1000 + b"\n", "is no journal"),
        (lines()[0][:-1], "is no journal"),
        (lines()[1], "is no journal"),
        (lines()[0].replace(b'"format":1', b'"format":2'), "format 2"),
        (lines()[0].replace(b'"preset":"tiny"', b'"preset":"huge"'), "no preset 'huge'"),
        (lines()[0].replace(b'"seed":7', b'"seed":-7'), "line 1 of"),
    ],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """Empty files, other files, and journals of other versions."""
    with pytest.raises(ValueError, match=reason):
        journal(tmp_path, content)


def test_a_missing_journal_is_refused(tmp_path: Path) -> None:
    """And so is a folder."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            Journal(path)
