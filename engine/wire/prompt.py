"""The rules for prompts. Imports no torch, so that the server process can use it."""

from __future__ import annotations

import unicodedata

LONGEST_PROMPT = 2000  # characters


def check_prompt(text: str) -> str:
    """The prompt without white space around it. Raises ValueError when it is empty, too long or not text."""
    prompt = text.strip()
    if not prompt:
        raise ValueError("the prompt is empty")
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"the prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} are taken")
    # Cc are control characters; Cs are halves of surrogate pairs, which no encoding can carry.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in prompt):
        raise ValueError("the prompt has control characters")
    return prompt
