"""Deaths that are measured: what two viewers saw of them, the figures, and the page behind the end of its server."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fakes import HEIGHT, serving, test_frame

from engine.config import preset
from engine.live.generator import Generator
from engine.live.journal_writer import JournalWriter
from engine.loading.model import load
from engine.loading.options import place
from engine.wire.state_folder import JOURNAL
from streaming.bench.chromium import missing
from streaming.bench.client import Http
from streaming.bench.recording import BenchError
from streaming.chaos import kills, page
from streaming.chaos.page import longest_gap
from streaming.chaos.seams import CLIP, Death, figures
from streaming.chaos.two_viewers import TwoViewers
from streaming.chaos.undisturbed import as_seen, replayed
from streaming.media.hub import Geometry

FAKE = (sys.executable, str(Path(__file__).parent / "fakes.py"), "--spare-engine")
PROMPT = "a white ball floats up under the stars at night"


def most_like(i420: npt.NDArray[np.uint8], number: int) -> int:
    """Whose picture of those around a number is nearest to this one."""
    luma = i420[:HEIGHT].astype(int)
    return min(range(number - 3, number + 4), key=lambda one: np.abs(luma - test_frame(one)[:HEIGHT]).mean())


async def test_two_viewers_see_numbers_and_whole_pictures(loopback: None) -> None:
    """Each picture is that of its number, of one viewer or the other."""
    async with serving() as running, TwoViewers(Http(running.url)) as viewers:
        await viewers.until(viewers.newest + 40, 20)
        pictures = viewers.pictures()
        assert len(pictures) > 20 and viewers.gap_s(0.0) < 5
        # A codec is not exact, but a picture is more like its own than like those before and behind it.
        assert np.mean([most_like(i420, number) == number for number, i420 in pictures.items()]) >= 0.9
        assert (await running.report())["viewers"] == 2
        with pytest.raises(BenchError, match="did not come within 0 s"):
            await viewers.until(10**6, 0.1)
    with pytest.raises(BenchError):
        async with TwoViewers(Http(running.url)):
            pass


def death(seam: float = 1.0, lost: tuple[int, ...] = (), first: int = 100) -> Death:
    """Of pictures that grow lighter by a level each frame, by `seam` levels across the end."""
    levels = {first + step: 120 + step + (seam - 1.0) * (step >= 0) for step in range(-2 * CLIP - 1, CLIP + 1)}
    pictures = {n: np.full((6, 4), round(level), np.uint8) for n, level in levels.items() if n not in lost}
    return Death(PROMPT, first, 1.5, 0.25, 0.125, pictures)


def test_seams_are_held_against_what_is_around() -> None:
    """A death that nobody sees has ratio 1, and so has the same place a clip before."""
    right = {"long before": {"subject": True}, "before": {"subject": True}, "after": {"subject": True}}
    found = figures([death(), death()], [right, right])
    assert (found["seam_ratio"]["ratio"], found["seam_ratio_a_clip_before"]["ratio"]) == (1.0, 1.0)
    assert found["same_words"]["same"] == 2 and found["new_frames_s"]["most"] == 1.5
    assert (found["gap_s"]["median"], found["repeats_s"]["most"]) == (0.25, 0.125)
    found = figures([death(seam=3.0), death(seam=3.0)], [right, right | {"after": {"subject": False}}])
    assert (found["seam_ratio"]["ratio"], found["seam_ratio_a_clip_before"]["ratio"]) == (3.0, 1.0)
    assert found["same_words"] == {"same": 1, "of": 2, "by_word": {"subject": {"same": 1, "of": 2}}}
    assert found["same_words_a_clip_before"]["same"] == 2


def test_frames_that_were_lost_on_the_way_are_left_out() -> None:
    """A seam that was not seen has no ratio; the judge gets as many frames as ever."""
    one = death(lost=(100, 110, 52))
    assert one.change(100) is None and one.change(101) is None and one.change(102) == 1.0
    assert one.around(100) == 1.0 and [len(clip) for clip in one.clips.values()] == [CLIP] * 3
    right = dict.fromkeys(one.clips, {"subject": True})
    assert figures([one, death()], [right, right])["seam_ratio"] == {"ratio": None, "half_width_95": None, "n": 1}


def test_the_video_is_held_against_its_replay() -> None:
    """One that went on as another video is far from it, behind the end alone."""
    one = death(seam=21.0)
    one = replace(one, undisturbed=death().pictures)
    right = dict.fromkeys(one.clips, {"subject": True}) | {"undisturbed": {"subject": False}}
    found = figures([one], [right])
    assert found["levels_from_undisturbed"]["before"]["most"] == 0.0
    assert found["levels_from_undisturbed"]["after"]["most"] == 20.0
    assert found["same_words_as_undisturbed"]["same"] == 0 and found["same_words"]["same"] == 1


def test_a_journal_that_cannot_be_replayed_is_told(tmp_path: Path) -> None:
    """In the words of the command."""
    with pytest.raises(BenchError, match="the replay failed: .*no.jsonl"):
        replayed(tmp_path / "no.jsonl", {0}, "vp8")


def test_a_journal_is_replayed(tmp_path: Path) -> None:
    """Frames by their numbers, those alone that are asked for and there."""
    own = Generator(load(preset("mini"), *place(preset("mini"), None, "cpu")))
    state = own.open("a red ball", 7, steps=1)
    writer = JournalWriter(tmp_path, own, lambda *told: pytest.fail(str(told)))
    journal = writer.open("main", state, new=True)
    while own.needs_plan(state):
        own.plan(state)
    units = list(journal.recorded(state, own.chunk(state), 0).units)
    writer.close(60)
    frames = np.concatenate([unit.batch.i420 for unit in units if unit.batch is not None])
    config = preset("mini")
    seen = list(as_seen(frames, Geometry(config.width_px, config.height_px, config.fps), "vp8"))
    found = replayed(tmp_path / "main" / JOURNAL, {0, 9, 10**6}, "vp8")
    assert found.keys() == {0, 9} and len(seen) == len(frames)
    assert all((found[number] == seen[number]).all() for number in found)
    assert 0 < np.abs(seen[9].astype(int) - frames[9]).mean() < 3


@pytest.mark.timeout(180)
def test_an_engines_end_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loopback: None) -> None:
    """The spare goes on with the next frame, and the judge reads all clips."""
    monkeypatch.setattr(kills, "STOPPED_S", 4.0)
    target = tmp_path / "kills.json"
    assert kills.main(["--times", "1", "--fault", "engine_stopped", "--json", str(target)], FAKE) == 0
    report = json.loads(target.read_text())
    assert report["command"].endswith(f"kills --times 1 --fault engine_stopped --json {target}")
    (row,) = report["deaths"]
    assert report["conditions"]["cores"] > 0 and row["first_frame"] > 2 * CLIP and row["seam"] > 0
    # The server waits for so long.
    assert 1.0 < row["new_frames_s"] < kills.LIMIT_S
    assert [set(right) for right in row["right"].values()] == [{"subject", "colour", "scene", "direction"}] * 3


@pytest.mark.browser
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_the_page_behind_its_servers_end_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loopback: None
) -> None:
    """The same page shows pictures again when another server listens."""
    monkeypatch.setattr(page, "CALM_S", (0.1, 0.2))
    target = tmp_path / "kills.json"
    assert kills.main(["--times", "1", "--fault", "server_killed", "--json", str(target)], FAKE) == 0
    (end,) = json.loads(target.read_text())["ends"]
    assert 0 < end["ready_s"] and 0 < end["gap_s"] < page.LIMIT_S and end["left"] == []
    assert longest_gap([1.0, 1.5, 3.0, 3.5, 9.0], 2.5) == (5.5, 9.0)


def test_what_cannot_be_measured_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad arguments end with status 2; a server that does not start and a missing browser with 1 and a line."""
    target = str(tmp_path / "kills.json")
    for argv in (["--times", "0", "--json", target], ["--json", str(tmp_path / "no" / "k.json")], ["--json", "k.txt"]):
        with pytest.raises(SystemExit) as caught:
            kills.main(argv)
        assert caught.value.code == 2
    assert kills.main(["--json", target], (sys.executable, "-c", "raise SystemExit('no')")) == 1
    assert "kills failed: the server ended with status 1" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    assert kills.main(["--fault", "server_killed", "--json", target], FAKE) == 1
    assert "is missing" in capsys.readouterr().err and not Path(target).exists()
