import subprocess
import sys

import pytest

from engine.wire.prompt import LONGEST_PROMPT, check_prompt


@pytest.mark.parametrize(
    "text", ["", " \t\n", "a\x00b", "a\x1b[31m", "line\nbreak", "\ud800", "x" * (LONGEST_PROMPT + 1)]
)
def test_bad_prompts_are_refused(text: str) -> None:
    """Empty, overlong and non-text prompts raise ValueError."""
    with pytest.raises(ValueError, match="the prompt"):
        check_prompt(text)


@pytest.mark.parametrize("text", ["a red car", "x" * LONGEST_PROMPT, "ein grünes Boot 🚤", "ᚠᛇᚻ unknown words"])
def test_good_prompts_are_stripped(text: str) -> None:
    """Any other text passes, without white space around it."""
    assert check_prompt(f"  {text}\n") == text


def test_module_needs_no_torch() -> None:
    """The server process can import the rule without loading torch."""
    code = "import sys, engine.wire.prompt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
