"""Words as they are mistyped."""

from __future__ import annotations

import random
import string

NEIGHBOURS = {
    key: near
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for key, near in zip(row, row[1:] + row[-2], strict=True)
}


def misspelled(word: str, rng: random.Random) -> str:
    """With one letter swapped, left out, doubled, put in or hit beside."""
    place, kind = rng.randrange(len(word) - 1), rng.randrange(5)
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 1:
        return word[: place + 1] + word[place + 2 :]
    if kind == 2:
        return word[: place + 1] + word[place] + word[place + 1 :]
    if kind == 3:
        return word[: place + 1] + rng.choice(string.ascii_lowercase) + word[place + 1 :]
    return word[: place + 1] + NEIGHBOURS[word[place + 1]] + word[place + 2 :]
