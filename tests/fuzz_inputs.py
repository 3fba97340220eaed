"""Inputs that are nearly right: good ones, cut, doubled, spliced, and with other values in their JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

LONGEST = 30_000  # bytes of an input
# Numbers at the edges of what holds them, names that lead elsewhere, and text that no encoding can carry.
NUMBERS = (0, -1, 1, 255, 1 << 15, 1 << 31, 1 << 32, 1 << 53, 1 << 62, 1 << 63, 1 << 64, 10**40, 1e308, -0.0, 0.5)
TEXTS = ("", ".", "..", "/", "../x", "\x00", "\ud800", "\u2028", "\x85", "é", "0", "null", "x" * 3000)
WORDS = (
    b"\r\n",
    b"\n",
    b"\x00",
    b"\xff",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b" ",
    b":",
    b"=",
    b"/",
    b"9" * 400,
    b"-1",
    b"a=",
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from((*NUMBERS, *TEXTS)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@st.composite
def inputs(draw: Callable[[Any], Any], seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """A good input after a few changes.

    Args:
        seeds: good inputs.
        words: what the format is made of.
    """
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        change = draw(st.sampled_from((_cut, _repeat, _put, _flip, _splice, _value, _value, _value)))
        data = change(draw, data, seeds, (*words, *WORDS))[:LONGEST]
    return data


def _place(draw: Any, data: bytes, most: int = 40) -> tuple[int, int]:
    """A part of the data: most often a short one."""
    begin = draw(st.integers(0, len(data)))
    return begin, min(len(data), begin + draw(st.integers(0, most)))


def _cut(draw: Any, data: bytes, seeds: Any, words: Any) -> bytes:
    begin, end = _place(draw, data)
    return data[:begin] if draw(st.integers(0, 9)) == 0 else data[:begin] + data[end:]


def _repeat(draw: Any, data: bytes, seeds: Any, words: Any) -> bytes:
    begin, end = _place(draw, data, 200)
    return data[:end] + data[begin:end] * draw(st.sampled_from((1, 2, 20, 300))) + data[end:]


def _put(draw: Any, data: bytes, seeds: Any, words: Any) -> bytes:
    begin, end = _place(draw, data, 8)
    return data[:begin] + draw(st.sampled_from(words) | st.binary(max_size=8)) + data[end:]


def _flip(draw: Any, data: bytes, seeds: Any, words: Any) -> bytes:
    begin, _ = _place(draw, data)
    return (
        data[:begin]
        + bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[begin : begin + 1])
        + data[begin + 1 :]
    )


def _splice(draw: Any, data: bytes, seeds: Any, words: Any) -> bytes:
    other = draw(st.sampled_from(seeds))
    return data[: draw(st.integers(0, len(data)))] + other[draw(st.integers(0, len(other))) :]


def _value(draw: Any, data: bytes, seeds: Any, words: Any) -> bytes:
    """Another value at some place of a line that is JSON; another change where there is none."""
    lines = data.split(b"\n")
    found = [number for number, line in enumerate(lines) if line[:1] in (b"{", b"[")]
    if not found:
        return _put(draw, data, seeds, words)
    number = draw(st.sampled_from(found))
    try:
        value = json.loads(lines[number])
    except (ValueError, RecursionError):
        return _put(draw, data, seeds, words)
    lines[number] = json.dumps(_changed(draw, value)).encode()
    return b"\n".join(lines)


def _changed(draw: Any, value: Any) -> Any:
    """The value with another one somewhere in it, or without something, or with more."""
    if isinstance(value, dict) and value:
        name = draw(st.sampled_from(sorted(value)))
        match draw(st.integers(0, 9)):
            case 0:
                return {key: one for key, one in value.items() if key != name}
            case 1:
                return value | {draw(st.text(max_size=8)): value[name]}
            case _:
                return value | {name: _changed(draw, value[name])}
    if isinstance(value, list) and value and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], *draw(st.sampled_from(([], [_changed(draw, value[place])]))), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and draw(st.booleans()):
        return value + draw(st.integers(-3, 3))
    return draw(values)
