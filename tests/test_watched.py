"""From when on frames that somebody watched show every word of their prompt."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine.__main__ import main
from engine.perceptual.frames import to_host
from engine.training.world import drawing
from engine.training.world.captions import Label

LABEL = Label("car", "red", "desert", "right", "slow")
PROMPT = {"prompt": "a red car", "subject": "car", "colour": "red", "scene": "desert", "direction": "right"}


def drawn(label: Label, frames: int, scale: int = 1) -> npt.NDArray[np.uint8]:
    """A true video of the world as I420 [F, 3H/2, W], `scale` times as large and as many frames a second."""
    spec = drawing.sample([label], random.Random(3))
    rgb = drawing.draw(spec, torch.arange(frames)[None] / scale, scale)[0]
    return to_host(rgb[None].float() / 127.5 - 1)


def judged(folder: Path, frames: list[npt.NDArray[Any]], prompts: list[dict[str, Any]], *more: str) -> int:
    np.savez(folder / "frames.npz", *frames)
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    argv = ["--frames", str(folder / "frames.npz"), "--prompts", str(folder / "prompts.jsonl")]
    return main(["evaluate", *argv, "--json", str(folder / "found.json"), "--device", "cpu", *more])


def test_words_are_right_from_the_first_chunk_on_that_shows_them_all(tmp_path: Path) -> None:
    """Behind frames of something else, in the midst of a chunk; and never for another prompt."""
    ball = drawn(Label("ball", "blue", "sea", "left", "slow"), 20)
    car = drawn(LABEL, 40)
    assert judged(tmp_path, [np.concatenate([ball, car]), car], [PROMPT, PROMPT | {"colour": "green"}]) == 0
    first, second = json.loads((tmp_path / "found.json").read_text())["watched"]
    assert first["frames"] == 60 and 12 <= first["first"] <= 20
    assert first["right"] == dict.fromkeys(("subject", "colour", "scene", "direction"), True)
    assert second["first"] is None
    assert second["right"] == {"subject": True, "colour": False, "scene": True, "direction": True}


def test_large_frames_are_judged_as_small_ones_are(tmp_path: Path) -> None:
    """A chunk of them has twice the frames."""
    ball = drawn(Label("ball", "blue", "sea", "left", "slow"), 40, scale=2)
    assert (
        judged(tmp_path, [np.concatenate([ball, drawn(LABEL, 80, scale=2)]), drawn(LABEL, 40, scale=2)], [PROMPT] * 2)
        == 0
    )
    first, short = json.loads((tmp_path / "found.json").read_text())["watched"]
    assert 24 <= first["first"] <= 40 and all(first["right"].values())
    assert short["first"] is None, "less than a chunk"


def test_a_whole_clip_is_judged_at_once(tmp_path: Path) -> None:
    """However long it is; what half of it does not show is not right."""
    ball = drawn(Label("ball", "blue", "sea", "left", "slow"), 49)
    assert judged(tmp_path, [drawn(LABEL, 49), np.concatenate([drawn(LABEL, 12), ball])], [PROMPT] * 2, "--whole") == 0
    car, mostly_ball = json.loads((tmp_path / "found.json").read_text())["watched"]
    assert car["first"] == 0 and all(car["right"].values()) and car["frames"] == 49
    assert mostly_ball["first"] is None and not mostly_ball["right"]["subject"]


def test_less_than_a_chunk_is_not_judged(tmp_path: Path) -> None:
    """Nothing is right yet."""
    assert judged(tmp_path, [drawn(LABEL, 20)], [PROMPT]) == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())["watched"]
    assert (found["first"], found["right"]) == (None, {})


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "has 0 arrays for 1 prompts"),
        ([np.zeros((3, 128, 192, 3), np.uint8)], "array 1: uint8 (3, 128, 192, 3) is not I420"),
        ([np.zeros((3, 192, 192), np.float32)], "array 1: float32"),
        ([np.array([{}], object)], "cannot be read"),
    ],
)
def test_other_files_are_refused(
    frames: list[npt.NDArray[Any]], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line that names the file, before anything is loaded."""
    assert judged(tmp_path, frames, [PROMPT]) == 2
    said = capsys.readouterr().err
    assert words in said and "frames.npz" in said and len(said.splitlines()) == 1


def test_frames_need_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can judge what nobody asked for; and a file that is none is named."""
    argv = ["evaluate", "--json", str(tmp_path / "found.json"), "--frames", str(tmp_path / "no.npz")]
    assert main(argv) == 2 and "--frames needs --prompts" in capsys.readouterr().err
    (tmp_path / "no.npz").write_text("text")
    (tmp_path / "p.jsonl").write_text(json.dumps(PROMPT))
    assert main([*argv, "--prompts", str(tmp_path / "p.jsonl")]) == 2
    assert "no.npz cannot be read" in capsys.readouterr().err
