"""A channel's state as a record that another process goes on from."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoint import TINY, make_folder, make_texts
from tiny import tiny_model

from engine.live.channel_state import ChannelState
from engine.live.generator import Generator
from engine.live.snapshot import read_snapshot, restore, take_snapshot, write_snapshot
from engine.loading.model import load

ROOT = Path(__file__).parents[1]
PATHS = os.environ | {"PYTHONPATH": str(ROOT)}
CHANGES = {1: "the blue boat", 3: "a red ball"}  # by the chunk in the middle of which they come
DISCARDS = {2: 11, 4: 12}  # likewise seeds, with which the plan is dropped from the middle of the next chunk on
CHUNKS, LOOK_AHEAD = 6, 16  # semantic frames


@cache
def generator(folder: Path | None = None) -> Generator:
    """Of the tiny model, or of a tiny one as published whose files are in a folder."""
    if folder is None:
        return Generator(tiny_model())
    return Generator(load(TINY, folder, torch.device("cpu"), torch.float32))


def next_chunk(generator: Generator, state: ChannelState) -> npt.NDArray[np.uint8]:
    """As in the loop: planning runs ahead of the chunk, and a prompt may change in its middle."""
    number, frames = state.next.chunk, []
    while generator.needs_plan(state):
        generator.plan(state)
    chunk = generator.chunk(state)
    for count, unit in enumerate(chunk.units):
        if unit.batch is not None:
            frames.append(unit.batch.i420)
        if count == 1 and number in CHANGES:
            generator.change(state, CHANGES[number], chunk.end)
        if DISCARDS.get(number, state.plan.gops[-1].seed) != state.plan.gops[-1].seed:
            generator.replan(state, min(chunk.end.latent + 2, generator.planned(state)), DISCARDS[number])
        if generator.planned(state) - chunk.end.latent < LOOK_AHEAD:
            generator.plan(state)
    return np.concatenate(frames)


@pytest.mark.parametrize("preset", ["tiny", "landiff"])
def test_another_process_goes_on_bit_for_bit(preset: str, tmp_path: Path) -> None:
    """A snapshot between any two chunks, stored without code, gives the rest of the video in a new process."""
    weights = None
    if preset == "landiff":
        weights = tmp_path / "weights"
        make_folder(weights)
        make_texts(weights)
    own = generator(weights)
    state, video = own.open("a red ball", 7, steps=3), []
    for number in range(CHUNKS):
        torch.save(take_snapshot(own, state), tmp_path / f"{number}.pt")
        video.append(next_chunk(own, state))
    np.save(tmp_path / "video.npy", np.concatenate(video))
    ends = [str(end) for end in np.cumsum([len(frames) for frames in video])]
    subprocess.run(
        [sys.executable, __file__, str(weights or ""), str(tmp_path), *ends],
        check=True,
        timeout=110,
        cwd=ROOT,
        env=PATHS,
    )


@pytest.mark.parametrize("wrong", [{"format": 0}, {"preset": "huge"}])
def test_another_model_refuses(wrong: dict[str, Any]) -> None:
    """A record of another format or preset is refused with both values."""
    state = generator().open("a red ball", 7)
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        restore(generator(), take_snapshot(generator(), state) | wrong)


@pytest.mark.parametrize("wrong", ["features", "vae", "gops", "plan", "next"])
def test_a_record_that_lacks_something_is_refused(wrong: str) -> None:
    """Whatever it is."""
    record = take_snapshot(generator(), generator().open("a red ball", 7))
    del record[wrong]
    with pytest.raises(ValueError, match="has not what a state needs"):
        restore(generator(), record)


def test_a_file_that_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    """Missing, empty, cut short, foreign, or of another kind: one line of text that names it."""
    path = tmp_path / "1.snapshot"
    write_snapshot(path, take_snapshot(generator(), generator().open("a red ball", 7)))
    assert restore(generator(), read_snapshot(path)).prompt == "a red ball"
    whole = path.read_bytes()
    torch.save([1, 2], path)
    for content in (path.read_bytes(), whole[:-100], whole[:50], b"", b"x" * 1000, None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(ValueError, match=r"1\.snapshot is") as error:
            read_snapshot(path)
        assert "\n" not in str(error.value)


def test_a_snapshot_stays_as_it_was() -> None:
    """The video that goes on does not write into the record."""
    state = generator().open("a red ball", 7)
    next_chunk(generator(), state)
    first, kept = (take_snapshot(generator(), state) for _ in range(2))
    next_chunk(generator(), state)
    assert str(first) == str(kept)
    assert str(take_snapshot(generator(), state)) != str(kept)


def main(weights: str, folder: str, *ends: str) -> None:
    """Goes on from each snapshot of a folder and compares with the video there."""
    own = generator(Path(weights) if weights else None)
    video = np.load(Path(folder) / "video.npy")
    for number, begin in enumerate([0, *map(int, ends[:-1])]):
        record = torch.load(Path(folder) / f"{number}.pt", weights_only=True)
        state = restore(own, record)
        rest = np.concatenate([next_chunk(own, state) for _ in range(number, CHUNKS)])
        assert (rest == video[begin:]).all(), f"another video from chunk {number} on"


if __name__ == "__main__":
    main(*sys.argv[1:])
