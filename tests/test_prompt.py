import subprocess
import sys

import pytest

from engine.wire.prompt import LONGEST_PROMPT, check_prompt


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t\n",
        "\u200b",
        "\ufeff \u2060\u00ad",
        "\ufe0f\u0301",
        "\u3164\u2800",
        "a\x00b",
        "a\x1cb",
        "a\x1b[31m",
        "\ud800",
        "x" * (LONGEST_PROMPT + 1),
    ],
)
def test_bad_prompts_are_refused(text: str) -> None:
    """Empty, overlong and non-text prompts raise ValueError."""
    with pytest.raises(ValueError, match="the prompt"):
        check_prompt(text)


@pytest.mark.parametrize("text", ["a red car", "x" * LONGEST_PROMPT, "ein grünes Boot 🚤", "ᚠᛇᚻ unknown words"])
def test_good_prompts_are_stripped(text: str) -> None:
    """Any other text passes, without white space around it."""
    assert check_prompt(f"  {text}\n") == text


@pytest.mark.parametrize("space", ["\n", "\r\n", "\t", "\v", "\f", "\x85", "\u2028", "\u2029", "\u3000", " \n\n "])
def test_line_breaks_and_tabs_are_white_space(space: str) -> None:
    """Any white space in a prompt is one space."""
    assert check_prompt(f"a red{space}car{space}") == "a red car"


def test_module_needs_no_torch() -> None:
    """The server process can import the rule without loading torch."""
    code = "import sys, engine.wire.prompt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
