"""Mistyped words, taken for a known word that is one slip away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

SHORTEST = 3  # letters of a word that is corrected


class Speller:
    """Corrects words that are no English as far as the vocabulary goes."""

    def __init__(self, known: Sequence[str], vocabulary: Collection[str]) -> None:
        """`known` words, the most frequent first, are what others are corrected to; those of the vocabulary stay."""
        self._vocabulary = vocabulary
        self._known = {word for word in known if word.isalpha() and len(word) > SHORTEST}
        self._near: dict[str, list[str]] = defaultdict(list)
        for word in known:
            if word in self._known:
                for form in (word, *_shortened(word)):
                    self._near[form].append(word)
        self._longest = max(map(len, self._known), default=0) + 1  # letters of a word that one slip can mend
        self._rank = {word: place for place, word in enumerate(known)}

    def __call__(self, word: str) -> str:
        """The word in small letters, or the most frequent known one that differs from it in one slip: a letter that is
        missing, too many or another, or two that are swapped."""
        word = word.lower()
        if not SHORTEST <= len(word) <= self._longest or not word.isalpha():
            return word
        if word in self._known or word in self._vocabulary:
            return word
        forms = (word, *_shortened(word))
        near = {one for form in forms for one in self._near.get(form, ()) if _one_slip(word, one)}
        return min(near, key=self._rank.__getitem__) if near else word


def _shortened(word: str) -> Iterator[str]:
    """The word without each of its letters."""
    return (word[:place] + word[place + 1 :] for place in range(len(word)))


def _one_slip(word: str, known: str) -> bool:
    if len(word) != len(known):
        return word in _shortened(known) or known in _shortened(word)
    wrong = [place for place, (a, b) in enumerate(zip(word, known, strict=True)) if a != b]
    if len(wrong) == 2 and wrong[1] == wrong[0] + 1:
        return word[wrong[0]] == known[wrong[1]] and word[wrong[1]] == known[wrong[0]]
    return len(wrong) == 1
