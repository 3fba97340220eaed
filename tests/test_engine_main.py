import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from checkpoint import TINY, make_folder, make_texts
from test_files import limited
from tiny import tiny_config, write_weights

from engine.__main__ import COMMANDS, main
from engine.config import PRESETS


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny preset's weights; `--preset tiny` works."""
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    folder = tmp_path / "weights"
    write_weights(folder)
    return folder


def _generate(out: Path, weights: Path, *more: str) -> int:
    given = ["--prompt", "a red ball", "--seconds", "5", "--out", str(out), "--preset", "tiny"]
    return main(["generate", *given, "--weights", str(weights), "--device", "cpu", *more])


def _read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray() for frame in container.decode(video=0)]).astype(int)


def test_generate_writes_the_video(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file has the asked length; it changes with the seed, and from the chunk on with a changed prompt."""
    plain, seeded, changed = tmp_path / "plain.mp4", tmp_path / "seeded.mp4", tmp_path / "changed.mp4"
    assert _generate(plain, weights) == 0
    assert "40/40" in capsys.readouterr().err
    assert _generate(seeded, weights, "--seed", "1") == 0
    capsys.readouterr()
    assert _generate(changed, weights, "--change", "2.5:the blue sea: calm") == 0
    assert "without effect in 'the blue sea: calm': calm" in capsys.readouterr().err
    videos = [_read(path) for path in (plain, seeded, changed)]
    assert {video.shape for video in videos} == {(40, 48, 48)}
    distance = [abs(video - videos[0]).mean(axis=(1, 2)) for video in videos[1:]]
    assert (distance[0] > 2).all()
    # The encoder looks ahead, so that frames before the change may differ a little.
    assert distance[1][:25].mean() < 0.5 and (distance[1][25:] > 2).all()


def test_the_same_command_writes_the_same_file(tmp_path: Path, weights: Path) -> None:
    """Prompt, seed and changes decide every byte of the file."""
    for name in ("first.mp4", "second.mp4"):
        assert _generate(tmp_path / name, weights, "--change", "2.5:the blue sea") == 0
    assert (tmp_path / "first.mp4").read_bytes() == (tmp_path / "second.mp4").read_bytes()


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has a line in the help, and a help of its own."""
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command}" in listed
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0 and f"usage: python -m engine {command}" in capsys.readouterr().out


def test_bad_weights_are_named(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is cut short or missing ends the command with status 2, its name, and no file."""
    (weights / "vae.safetensors").write_bytes((weights / "vae.safetensors").read_bytes()[:500])
    assert _generate(tmp_path / "a.mp4", weights) == 2
    (weights / "vae.safetensors").unlink()
    assert _generate(tmp_path / "b.mp4", weights) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("generate: ") for line in lines] == [True, False] * 2
    assert all("vae.safetensors" in line for line in lines[1::2])
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--prompt", "  "], "empty"),
        (["--prompt", "a\x07b"], "control characters"),
        (["--prompt", "x" * 2001], "2001"),
        (["--seconds", "0"], "'0'"),
        (["--seconds", "nan"], "'nan'"),
        (["--seconds", "soon"], "'soon'"),
        (["--reference"], "not allowed with argument --seconds"),
        (["--seed", "-1"], "'-1'"),
        (["--steps", "0"], "steps 0"),
        (["--change", "the sea"], "SECONDS:PROMPT"),
        (["--change", "3: "], "empty"),
    ],
)
def test_bad_arguments_are_refused(wrong: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each wrong argument ends the command with status 2 and is named."""
    given = ["generate", "--prompt", "a red ball", "--seconds", "5", "--out", "never.mp4"]
    with pytest.raises(SystemExit) as exit_:
        main([*given, *wrong])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--preset", "huge"), ("--out", "missing/video.mp4")])
def test_what_is_not_there_is_one_line(
    option: str, value: str, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown presets and folders end the command with status 2 and one line."""
    assert _generate(tmp_path / "never.mp4", weights, option, str(tmp_path / value) if "/" in value else value) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and value.split("/")[0] in lines[0]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for the published model at tiny size, with a folder as the release has it."""
    monkeypatch.setitem(PRESETS, "landiff", lambda: TINY)
    make_folder(tmp_path / "weights")
    make_texts(tmp_path / "weights")
    given = ["generate", "--prompt", "a red fish", "--preset", "landiff", "--device", "cpu"]
    return [*given, "--weights", str(tmp_path / "weights")]


def test_published_weights_are_filmed(tmp_path: Path, published: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The published model writes a video of any length, and the release's 49 frames with --reference."""
    assert main([*published, "--out", str(tmp_path / "long.mp4"), "--seconds", "7.5"]) == 0
    assert "60/60" in capsys.readouterr().err
    assert main([*published, "--out", str(tmp_path / "short.mp4"), "--reference", "--seed", "42"]) == 0
    assert "63/63" in capsys.readouterr().err  # 54 positions of the plan, 3 steps, 6 slices
    assert _read(tmp_path / "long.mp4").shape == (60, 24, 32)
    assert _read(tmp_path / "short.mp4").shape == (49, 24, 32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "landiff", "--seconds", "1"], "comes without weights"),
        (["--preset", "landiff", "--reference"], "comes without weights"),
        (["--preset", "mini", "--reference"], "'mini' is not sampled so"),
        (["--preset", "landiff", "--reference", "--change", "1:the sea"], "leave out --reference"),
        (["--preset", "landiff", "--seconds", "1", "--weights", "no folder"], "'no folder' is neither a folder"),
    ],
)
def test_what_the_published_model_needs(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing weights and combinations without a meaning end with status 2, one line that says so, and no file."""
    out = tmp_path / "never.mp4"
    assert main(["generate", "--prompt", "a", "--out", str(out), "--device", "cpu", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and words in lines[0]
    assert not list(tmp_path.iterdir())


# What writes a file, up to the file's name, and its suffix; what it would read is not there.
WRITING = {
    "generate": (["--prompt", "a", "--seconds", "1", "--weights", "none", "--out"], ".mp4"),
    "reconstruct": (["none.npz", "--weights", "none", "--out"], ".mp4"),
    "tokenize": (["none.mp4", "--weights", "none", "--out"], ".npz"),
    "evaluate": (["--weights", "none", "--json"], ".json"),
    "inspect": (["--json"], ".json"),
    "convert": (["none"], ""),
}


@pytest.mark.parametrize("command", WRITING)
def test_where_nothing_can_be_written_nothing_is_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command refuses, in one line, names that are too long and places that are not there or not for files."""
    monkeypatch.chdir(tmp_path)
    words, suffix = WRITING[command]
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"folder{suffix}" / "mine").touch()
    places = {"x" * 256 + suffix: "too long", f"folder{suffix}": "folder"}
    if command != "convert":
        places |= {f"missing/v{suffix}": "the folder", f"v{suffix}/v{suffix}": "the folder"}
    if Path("/sys").is_mount():
        places[f"/sys/v{suffix}"] = f"/sys/v{suffix} cannot be written"
    for place, said in places.items():
        assert main([command, *words, place]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"{command}: ") and said in lines[0], lines
    assert [path.name for path in tmp_path.rglob("*")] == [f"folder{suffix}", "mine"]


TINY_PROGRAM = """
import sys
sys.path.append("tests")
from tiny import tiny_config
from engine.__main__ import main
from engine.config import PRESETS
PRESETS["tiny"] = tiny_config
sys.exit(main(sys.argv[1:]))
"""


def _begun(folder: Path) -> bool:
    """Whether a file that is being written has bytes. One is tried and removed before."""
    for path in folder.glob("*.part"):
        with suppress(FileNotFoundError):
            return path.stat().st_size > 0
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_old_file(tmp_path: Path, weights: Path, number: signal.Signals) -> None:
    """`generate` that is ended while it writes leaves what was there, and nothing else; Ctrl-C gets one line."""
    out = tmp_path / "v.mp4"
    out.write_text("old")
    words = ["generate", "--prompt", "a red ball", "--seconds", "9999", "--out", str(out), "--preset", "tiny"]
    argv = [sys.executable, "-c", TINY_PROGRAM, *words, "--weights", str(weights), "--device", "cpu"]
    with subprocess.Popen(argv, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not _begun(tmp_path) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in said
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "generate: interrupted; nothing was written"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.mp4", "weights"] and out.read_text() == "old"


def test_a_disk_that_gets_full_is_one_line(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A video that does not fit ends with status 2, the cure, and the old file."""
    out = tmp_path / "v.mp4"
    out.write_text("old")
    with limited(8192):
        assert _generate(out, weights) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"generate: {out} cannot be written (File too large): ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.mp4", "weights"] and out.read_text() == "old"
