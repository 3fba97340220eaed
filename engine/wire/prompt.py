"""The rules for prompts. Imports no torch, so that the server process can use it."""

from __future__ import annotations

import unicodedata

LONGEST_PROMPT = 2000  # characters
_BREAKS = "\t\n\v\f\r\x85"
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # Hangul fillers and the empty Braille cell draw nothing
_INVISIBLE = ("Cf", "Mn", "Me", "Zs", "Zl", "Zp")  # categories: formats, marks that need a letter, spaces


def check_prompt(text: str) -> str:
    """The prompt, any white space in it one space. Raises ValueError when it is empty, too long or not text."""
    if not isinstance(text, str):
        raise ValueError(f"the prompt is {text!r}, and no text")
    prompt = " ".join(text.split())
    if not any(map(_is_visible, prompt)):
        raise ValueError("the prompt is empty")
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"the prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} are taken")
    # Cc are control characters, some of which `split` takes for spaces; Cs are halves of surrogate pairs, which no
    # encoding can carry.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text if character not in _BREAKS):
        raise ValueError("the prompt has control characters")
    return prompt


def _is_visible(character: str) -> bool:
    return character not in _BLANK and unicodedata.category(character) not in _INVISIBLE
