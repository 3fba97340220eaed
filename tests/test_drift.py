"""Long videos: where changes lie, what becomes of minutes."""

import random

import numpy as np
import pytest
import torch
from tiny import tiny_model

from engine.config import preset
from engine.evaluation import drift
from engine.evaluation.drift import LongVideo
from engine.live.generator import Generator
from engine.semantic.theia import Theia
from engine.training.world.captions import random_label

WORDS = ("subject", "colour", "scene", "direction", "speed")


def test_changes_are_sorted_by_where_they_lie() -> None:
    """Chunks begin at 25, 49, ..., latents at 1, 5, 9, ...; every change is counted once."""
    changes = [7.0 if frame in (25, 49) else 3.0 if frame % 4 == 1 else 1.0 for frame in range(1, 73)]
    seams, jumps, others = drift.sort_changes(changes, preset("mini"))
    assert seams.tolist() == [7.0, 7.0] and jumps.tolist() == [3.0] * 16 and others.tolist() == [1.0] * 54


def test_a_video_whose_chunks_do_not_show_has_a_seam_ratio_of_one() -> None:
    """Seams as large as the rest give 1, and jumps are compared with what is neither."""
    plain = np.full(2, 2.0), np.full(10, 2.0), np.full(30, 2.0)
    rough = np.full(2, 6.0), np.full(10, 4.0), np.full(30, 2.0)
    short = np.zeros(0), np.full(3, 9.0), np.full(3, 9.0)  # has no seam and is left out
    assert drift.seam_figures([plain, plain, short])["seam_ratio"]["ratio"] == 1.0
    figures = drift.seam_figures([rough, rough])
    assert figures["seam_ratio"]["ratio"] == pytest.approx(6 / 2.5)
    assert figures["latent_jump_ratio"]["ratio"] == pytest.approx(2.0)
    assert figures["seam_ratio"]["half_width_95"] == pytest.approx(0)


def long_video(colour_right: list[list[bool]], sharpness: list[float]) -> LongVideo:
    rows = [[{word: word != "colour" or right for word in WORDS} for right in minute] for minute in colour_right]
    rgb = np.asarray([[100.0, 100.0, 100.0 + 3 * minute] for minute in range(len(rows))])
    return LongVideo("a ball", rows, np.asarray(sharpness), rgb, (np.ones(1), np.ones(1), np.ones(1)))


def test_minutes_are_compared_with_the_first() -> None:
    """The second minute lost a third of its colours and a tenth of its sharpness; one video has no interval."""
    first, second = drift.curve([long_video([[True] * 3, [True, True, False]], [10.0, 9.0])])
    assert [first["minute"], second["minute"]] == [1, 2]
    assert first["words"]["colour"]["share"] == 1.0 and second["words"]["colour"]["share"] == pytest.approx(0.6667)
    assert first["sharpness_drift"]["mean"] == 0 and second["sharpness_drift"]["mean"] == pytest.approx(-0.1)
    assert second["colour_drift"] == {"mean": pytest.approx(3 / 255), "half_width_95": None, "n": 1}


def test_the_curve_pools_videos() -> None:
    """Words are counted over all clips of a minute; drifts have an interval over videos."""
    good = long_video([[True] * 3] * 2, [10.0, 10.0])
    bad = long_video([[True] * 3, [False] * 3], [10.0, 8.0])
    first, second = drift.curve([good, bad])
    colour = second["words"]["colour"]
    assert first["words"]["colour"]["share"] == 1.0 and colour["share"] == 0.5 and colour["n"] == 6
    assert second["sharpness_drift"]["mean"] == pytest.approx(-0.1)
    assert second["sharpness_drift"]["half_width_95"] > 0.1


def test_a_short_video_has_one_minute() -> None:
    """A quarter of a minute is judged as two clips of one minute; each change between their frames is sorted once."""
    generator = Generator(tiny_model())
    torch.manual_seed(0)
    theia = Theia(preset("mini").theia).eval()
    video = drift.watch(generator, theia, random_label(random.Random(0)), 0.25, 0)
    assert [len(minute) for minute in video.rows] == [2]
    assert video.sharpness.shape == (1,) and video.rgb.shape == (1, 3)
    assert [len(part) for part in video.changes] == [4, 21, 72]
