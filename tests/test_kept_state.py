"""The record that a channel goes on from."""

import json
from dataclasses import replace
from typing import Any

import pytest

from engine.wire.kept_state import FORMAT, KeptState, Promise

KEPT = KeptState(
    "main", "mini", "ab", "a red ball", 3, 4, 4, 97, "last-1.snapshot", (4, 2), (0.3, 0.1, 0.05, 0.1), 1,
    (Promise(7, "the sea", None, "flow", 31, 121),),
)  # fmt: skip


def test_a_record_comes_back() -> None:
    """All of its fields, from JSON."""
    for kept in (KEPT, replace(KEPT, steps=None, running=None, costs=None, snapshot=None, promises=())):
        assert KeptState.from_json(kept.to_json()) == kept


@pytest.mark.parametrize(
    "field",
    [
        {"channel": 3}, {"prompt": None}, {"seed": -1}, {"chunk": "4"}, {"frame": True}, {"steps": -2},
        {"running": [1]}, {"running": [0, 1]}, {"running": 4},
        {"costs": [1]}, {"costs": [-1, 0, 0, 0]}, {"costs": "1"}, {"snapshot": "../x"}, {"snapshot": ".x"},
        {"promises": [{}]}, {"promises": 3}, {"tries": None}, {"unknown": 1},
    ],
)  # fmt: skip
def test_damaged_records_are_refused(field: dict[str, Any]) -> None:
    """A field that is missing, of another kind or out of range raises ValueError."""
    with pytest.raises(ValueError, match="it is damaged"):
        KeptState.from_json(json.dumps(json.loads(KEPT.to_json()) | field).encode())


def test_other_formats_are_named() -> None:
    """A record of another version says so; what is no record at all is damaged."""
    other = json.dumps(json.loads(KEPT.to_json()) | {"format": 99}).encode()
    with pytest.raises(ValueError, match=f"format 99, and this version reads {FORMAT}"):
        KeptState.from_json(other)
    for text in (b"", b"[]", b"3", b'{"format"', b"\xff", b"[" * 10**5):
        with pytest.raises(ValueError, match="it is damaged"):
            KeptState.from_json(text)
