"""The console script hands its words to the command that they name."""

import pytest

import server


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["--help"], "server.py"),
        (["generate", "--help"], "python -m engine generate"),
        (["train", "--help"], "python -m engine.training"),
        (["bench", "--help"], "python -m engine.bench"),
        (["bench-stream", "--help"], "python -m streaming.bench"),
        (["bench-kernels", "--help"], "python -m kernels.bench"),
        (["doctor", "--help"], "python -m streaming.doctor"),
    ],
)
def test_a_name_picks_its_command(words: list[str], program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a name the server answers, with one the command of that name."""
    with pytest.raises(SystemExit) as exit_:
        server.console(words)
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {program} ")


def test_an_unknown_name_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with status 2 and the list of commands."""
    with pytest.raises(SystemExit) as exit_:
        server.console(["watch"])
    assert exit_.value.code == 2
    assert "generate" in capsys.readouterr().err
