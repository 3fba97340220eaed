"""The evaluation as a whole, on the shipped weights and very few videos."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from engine.__main__ import main
from engine.config import preset
from engine.evaluation import drift, evaluate, roundtrip
from engine.evaluation.evaluate import EvaluateConfig, Shorts, Truth
from engine.semantic.theia import Theia
from engine.training.world.captions import Label


def test_the_command_writes_figures_sheet_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure has an interval, the sheet has the asked words, the report is one file with all of it."""
    monkeypatch.setattr(roundtrip, "ROUND_TRIPS", 3)
    out, page = tmp_path / "q.json", tmp_path / "q.html"
    document = tmp_path / "Q.md"
    document.write_text(
        "before\n<!-- engine evaluate mini: begin -->\nold\n<!-- engine evaluate mini: end -->\nafter\n"
    )
    words = ["evaluate", "--json", str(out), "--html", str(page), "--captions", "2", "--steps", "2"]
    words += ["--docs", str(document)]
    assert main([*words, "--drift-minutes", "0.1", "--drift-videos", "1", "--device", "cpu"]) == 0
    figures = json.loads(out.read_text())
    assert set(figures["held_out"]) >= set(drift.WORDS)
    assert figures["held_out"]["scene"]["n"] == 2 and figures["held_out"]["scene"]["half_width_95"] > 0
    assert set(figures["prompt_change"]) >= {*drift.WORDS, "all", "changed_words"}
    assert figures["conditions"]["steps"] == 2
    for name in ("seam_ratio", "latent_jump_ratio", "frechet"):
        assert figures[name] == figures[name] and figures[f"{name}_half_width_95"] >= 0
    assert figures["autoencoder"]["psnr_db"] > 30 and figures["autoencoder"]["n"] == 2
    assert len(figures["long"]) == 1 and len(figures["drift_curve"]) == 1
    assert (tmp_path / "q.png").read_bytes()[:4] == b"\x89PNG"
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 3 and "data:image/png;base64," in text
    table = document.read_text(encoding="utf-8")
    for words_of in (text, table):
        assert f"{figures['seam_ratio']:.2f}" in words_of and figures["long"][0]["prompt"] in words_of
    assert table.startswith("before\n") and table.endswith("after\n") and "old" not in table and "2 steps" in table
    # One file: it refers to nothing outside.
    assert "src=" in text and "href=" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_judge_that_sees_nothing_is_not_believed() -> None:
    """An untrained judge fails its proof on true videos."""
    torch.manual_seed(0)
    theia = Theia(preset("mini").theia).eval()
    labels = [Label("ball", "red", "sea", "left", "slow"), Label("car", "blue", "night", "still", "slow")]
    with pytest.raises(ValueError, match="finds too few words of true videos"):
        evaluate.prove(theia, labels, random.Random(0), tqdm(disable=True))


def test_a_changed_prompt_is_judged_by_the_words_that_changed() -> None:
    """Words that were right before already do not count among the changed ones."""
    before = [Label("ball", "red", "sea", "left", "slow"), Label("car", "red", "sea", "left", "slow")]
    after = [Label("ball", "blue", "sea", "left", "slow"), Label("ball", "blue", "sea", "left", "slow")]
    right = {word: True for word in drift.WORDS}
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
    truth, shorts = Truth(flicker=[1.0, 50.0, 3.0, 70.0]), Shorts(flicker=[2.0, 90.0, 6.0, 80.0])
    figures = evaluate.flicker(truth, shorts, labels)
    assert figures["levels"]["mean"] == 4.0 and figures["ratio"] == 2.0 and figures["n"] == 2
    assert evaluate.flicker(truth, shorts, labels[:2]) == {"n": 1}


@pytest.mark.parametrize("values", [{"captions": 1}, {"drift_videos": 0}, {"drift_minutes": 0}])
def test_amounts_must_be_positive(values: dict[str, int]) -> None:
    """One caption gives no interval; none and zero are refused."""
    with pytest.raises(ValueError, match="at least"):
        EvaluateConfig(**values)


def test_figures_or_videos_must_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither --json nor --vbench, or --html alone, is a mistake."""
    for words in ([], ["--vbench", "x", "--prompts", "y", "--html", "z"]):
        with pytest.raises(SystemExit):
            main(["evaluate", *words])
    assert "give --json F" in capsys.readouterr().err
