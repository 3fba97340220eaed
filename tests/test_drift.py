"""Long videos: where changes lie, what becomes of minutes."""

import numpy as np
import pytest
import torch
from tiny import tiny_model

from engine.evaluation import drift
from engine.evaluation.drift import ChangeMeter, Changes, LongVideo
from engine.live.generator import Generator
from engine.training.world import judge as judging
from engine.wire.frames import FrameChunk


def chunks(levels: list[int]) -> list[tuple[FrameChunk, torch.Tensor]]:
    """Hops of 25, 24, 24, ... even frames of the given grey levels, in chunks of 9 and 8."""
    made, index, hop = [], 0, 0
    while index < len(levels):
        for size in (9, 8, 8) if hop == 0 else (8, 8, 8):
            part = levels[index : index + size]
            rgb = torch.tensor(part, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 6)
            made.append((FrameChunk(index, hop, np.zeros((len(part), 6, 6), np.uint8), 0.0), rgb))
            index += size
        hop += 1
    return made


def test_changes_are_sorted_by_where_they_lie() -> None:
    """Hops begin at 25, 49, ..., latents at 1, 5, 9, ...; every change is counted once."""
    levels, level = [], 100
    for frame in range(73):
        seam, jump = frame in (25, 49), frame % 4 == 1
        level += (7 if seam else 3 if jump else 1) * (1 if frame % 2 else -1)
        levels.append(level)
    meter = ChangeMeter()
    for chunk, rgb in chunks(levels):
        meter.see(chunk, rgb)
    assert meter.changes.seams == [7.0, 7.0]
    assert meter.changes.jumps == [3.0] * 16
    assert meter.changes.others == [1.0] * 54


def test_a_forgetful_channel_renders_every_hop_as_its_first() -> None:
    """Hops have the first one's length, differ from those with a prompt half, and their latents are told apart."""
    generator = Generator(tiny_model())
    made = {without: list(drift.chunks(generator, "a red ball", 3, 60, without)) for without in (None, "prompt-half")}
    whole, bare = made.values()
    assert sum(chunk.frames for chunk in whole) == 60 and sum(chunk.frames for chunk in bare) == 75
    assert [chunk.index for chunk in bare] == [0, 9, 17, 25, 34, 42, 50, 59, 67]
    assert all(np.array_equal(a.i420, b.i420) for a, b in zip(whole[:3], bare[:3], strict=True))
    assert not np.array_equal(whole[3].i420[:8], bare[3].i420[:8])
    meter = ChangeMeter(forgetful=True)
    for chunk in bare:
        meter.see(chunk, judging.to_rgb(chunk.i420))
    assert [len(part) for part in (meter.changes.seams, meter.changes.jumps, meter.changes.others)] == [2, 18, 54]


def test_without_a_plan_the_renderer_goes_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No code is planned, hops join as ever, and the video is another than with a plan."""
    generator = Generator(tiny_model())
    planned = np.concatenate([chunk.i420 for chunk in drift.chunks(generator, "a red ball", 3, 73)])
    monkeypatch.setattr(generator, "plan", lambda channel: pytest.fail("planned"))
    chunks = list(drift.chunks(generator, "a red ball", 3, 73, "plan"))
    alone = np.concatenate([chunk.i420 for chunk in chunks])
    assert [chunk.index for chunk in chunks] == list(np.cumsum([0, *(chunk.frames for chunk in chunks[:-1])]))
    assert len(alone) == 73 and not np.array_equal(alone, planned)


def test_a_video_whose_hops_do_not_show_has_a_seam_ratio_of_one() -> None:
    """Seams as large as the rest give 1, and jumps are compared with what is neither."""
    plain = Changes([2.0, 2.0], [2.0] * 10, [2.0] * 30)
    rough = Changes([6.0, 6.0], [4.0] * 10, [2.0] * 30)
    assert drift.seams([plain, plain])["seam_ratio"] == 1.0
    figures = drift.seams([rough, rough])
    assert figures["seam_ratio"] == pytest.approx(6 / 2.5)
    assert figures["latent_jump_ratio"] == pytest.approx(2.0)
    assert figures["seam_ratio_half_width_95"] == pytest.approx(0)
    histogram = figures["seam_histogram"]
    assert all(sum(histogram[name]) == pytest.approx(1) for name in ("seams", "jumps", "others"))
    middles = np.asarray(histogram["edges"][:-1]) + 0.05
    assert np.average(middles, weights=histogram["seams"]) == pytest.approx(2.4, abs=0.06)


def long_video(colour_right: list[bool], sharpness: list[float]) -> LongVideo:
    rows = [{word: word != "colour" or right for word in drift.WORDS} for right in colour_right]
    colours = [[100.0, 100.0, 100.0 + clip] for clip in range(len(rows))]
    return LongVideo("a ball", 2.0, 3.0, rows, sharpness, colours, Changes([1.0], [1.0], [1.0]))


def test_minutes_are_compared_with_the_first() -> None:
    """Three clips a minute: the second minute lost a third of its colours and a tenth of its sharpness."""
    video = long_video([True, True, True, True, True, False], [10.0] * 3 + [9.0] * 3)
    figures = video.figures()
    assert figures["first_minute"]["colour"] == 1.0
    assert figures["last_minute"] == pytest.approx({word: 1.0 for word in drift.WORDS} | {"colour": 2 / 3})
    assert figures["sharpness_drift"] == pytest.approx(-0.1)
    assert figures["colour_drift"] == pytest.approx(3 / 255)
    assert [point["minute"] for point in figures["curve"]] == [0, 1]


def test_the_curve_pools_videos() -> None:
    """Words are counted over all clips of a minute; drifts have an interval over videos."""
    good = long_video([True] * 6, [10.0] * 6)
    bad = long_video([True] * 3 + [False] * 3, [10.0] * 3 + [8.0] * 3)
    first, second = drift.curve([good, bad])
    assert first["colour"]["share"] == 1.0 and second["colour"]["share"] == 0.5 and second["colour"]["n"] == 6
    assert second["sharpness_drift"]["mean"] == pytest.approx(-0.1)
    assert second["sharpness_drift"]["half_width_95"] > 0.1
    assert drift.curve([good])[1]["sharpness_drift"]["half_width_95"] is None


def test_a_video_shorter_than_a_minute_has_one_minute() -> None:
    """One clip is the first and the last minute."""
    video = long_video([False], [10.0])
    assert video.minutes_seen == 1
    assert video.figures()["last_minute"]["colour"] == 0.0
