"""The evaluation as a whole, on the shipped weights and very few videos."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.__main__ import main
from engine.config import preset
from engine.evaluation import evaluate
from engine.evaluation.evaluate import Judged
from engine.semantic.theia import Theia
from engine.training.world.captions import Label

WORDS = {"subject", "colour", "scene", "direction", "speed"}


def test_the_command_writes_figures_and_sheet_and_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every figure has an interval, the sheet has a row a video, the table has the figures and their conditions."""
    out = tmp_path / "q.json"
    words = ["evaluate", "--json", str(out), "--captions", "2", "--steps", "2", "--drift-minutes", "0.1"]
    assert main([*words, "--drift-videos", "1", "--device", "cpu"]) == 0
    figures = json.loads(out.read_text())
    assert set(figures["held_out"]) >= WORDS
    assert figures["held_out"]["scene"]["n"] == 2 and figures["held_out"]["scene"]["half_width_95"] > 0
    assert set(figures["prompt_change"]) >= {*WORDS, "all", "changed_words"}
    assert figures["conditions"]["steps"] == 2
    for name in ("seam_ratio", "latent_jump_ratio", "frechet"):
        assert next(iter(figures[name].values())) > 0 and figures[name]["half_width_95"] >= 0
    assert figures["autoencoder"]["picture"]["db"] > 30 and figures["autoencoder"]["subject_box"]["n"] == 2
    assert figures["tokenizer"]["all"]["share"] > 0.5
    assert len(figures["long_videos"]) == 1 and [point["minute"] for point in figures["drift_curve"]] == [1]
    with Image.open(tmp_path / "q.png") as sheet:
        assert sheet.size == (5 * 192, 2 * (128 + 14))
    table = capsys.readouterr().out
    assert f"| seam ratio | {figures['seam_ratio']['ratio']:.3f} ±" in table and "steps 2" in table
    assert "| minute 1 of long videos" in table


def test_videos_that_go_on_from_clips_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the clip decides, and the seams behind it, with intervals; the command tells them as a table."""
    out = tmp_path / "s.json"
    assert main(["evaluate", "--json", str(out), "--starts", "2", "--steps", "1", "--device", "cpu"]) == 0
    figures = json.loads(out.read_text())
    assert figures["kept"]["n"] == 6 and figures["kept"]["share"] > 0.5 and len(figures["clips"]) == 2
    assert 0 < figures["seam_ratio"]["ratio"] < 2 and figures["later_seam_ratio"]["n"] == 2
    assert f"| seam ratio | {figures['seam_ratio']['ratio']:.3f} ±" in capsys.readouterr().out


def test_a_judge_that_sees_nothing_is_not_believed() -> None:
    """An untrained judge fails its proof on true videos."""
    torch.manual_seed(0)
    theia = Theia(preset("mini").theia).eval()
    labels = [Label("ball", "red", "sea", "left", "slow"), Label("car", "blue", "night", "still", "slow")]
    with pytest.raises(ValueError, match="misses words of true videos"):
        evaluate.prove(theia, labels, random.Random(0), 24)


def test_a_changed_prompt_is_judged_by_the_words_that_changed() -> None:
    """Words that were right before already do not count among the changed ones."""
    before = [Label("ball", "red", "sea", "left", "slow"), Label("car", "red", "sea", "left", "slow")]
    after = [Label("ball", "blue", "sea", "left", "slow"), Label("ball", "blue", "sea", "left", "slow")]
    right = dict.fromkeys(after[0].words, True)
    figures = evaluate.prompt_change([right | {"colour": False}, right], before, after)
    assert figures["changed_words"]["share"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["colour"]["share"] == figures["all"]["share"] == 0.5


def test_a_relation_and_a_camera_count_where_a_caption_has_them() -> None:
    """A second subject that comes is a changed word, one that was there before is not; a camera that starts is one."""
    pair = Label("ball", "red", "sea", "left", "slow", relation="above", subject2="car", colour2="blue")
    before = [replace(pair, relation=None, subject2=None, colour2=None), pair]
    after = [pair, replace(pair, camera="right")]
    rows = [dict.fromkeys(after[0].words, True) | {"relation": False}, dict.fromkeys(after[1].words, True)]
    figures = evaluate.prompt_change(rows, before, after)
    assert figures["relation"]["share"] == 0.5 and figures["relation"]["n"] == 2
    assert figures["camera"]["n"] == figures["fixed_camera"]["n"] == 1
    assert figures["changed_words"]["share"] == 0.75 and figures["changed_words"]["n"] == 4  # its colour and kind too


def test_flicker_is_of_still_scenes() -> None:
    """Only captions of still subjects before a still camera are compared with their true videos."""
    labels = [Label("ball", "red", "sea", direction, "slow") for direction in ("still", "left", "still")]
    labels.append(replace(labels[0], camera="left"))
    true, made = Judged(flicker=[1.0, 50.0, 3.0, 70.0]), Judged(flicker=[2.0, 90.0, 6.0, 80.0])
    figures = evaluate.flicker(made, true, labels)
    assert figures["levels"]["mean"] == 4.0 and figures["ratio"] == 2.0 and figures["n"] == 2
    assert evaluate.flicker(made, true, labels[:2]) == {}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--json"),
        (["--json", "q.txt"], ".json"),
        (["--json", "none/q.json"], "none"),
        (["--json", "q.json", "--captions", "1"], "--captions must be at least 2"),
        (["--json", "q.json", "--starts", "1"], "--starts must be at least 2"),
        (["--json", "q.json", "--pictures", "1"], "--pictures must be at least 2"),
        (["--json", "q.json", "--drift-videos", "0"], "--drift-videos 1"),
        (["--json", "q.json", "--drift-minutes", "0"], "--drift-minutes above 0"),
    ],
)
def test_bad_arguments_are_refused(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a place for the figures that can be written, or with too little to judge, status 2 comes at once."""
    try:
        code = main(["evaluate", *words])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2 and complaint in capsys.readouterr().err
