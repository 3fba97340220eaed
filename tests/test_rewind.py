import copy
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoint import TINY
from tiny import tiny_model

from engine.live.channel_state import ChannelState
from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames
from engine.live.snapshot import restore, take_snapshot
from engine.loading.model import load

FIRST, CHUNK = 25, 24  # frames of the first chunk and of every other
CUTS = [0, 3, 9, 16, 17, 24, 25, 26, 33, 40, 41, 48, 49]


@cache
def _generator(folder: Path | None = None) -> Generator:
    """Of the tiny model, or of a tiny one as published whose files are in a folder."""
    if folder is None:
        return Generator(tiny_model())
    return Generator(load(TINY, folder, torch.device("cpu"), torch.float32))


def _open(generator: Generator, prompt: str = "a red ball") -> ChannelState:
    state = generator.open(prompt, 1)
    state.open_from = 0
    return state


def _frames(generator: Generator, state: ChannelState, count: int, *changes: Change) -> npt.NDArray[np.uint8]:
    return np.concatenate([batch.i420 for batch in generate_frames(generator, state, count, changes)])


def _differing(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> list[int]:
    return np.flatnonzero((one != other).any(axis=(1, 2))).tolist()


@pytest.mark.parametrize("frame", CUTS)
def test_a_cut_begins_at_its_frame(frame: int) -> None:
    """All frames before it are as they were, and all from it on are others."""
    plain = _frames(_generator(), _open(_generator()), 100)
    cut = _frames(_generator(), _open(_generator()), 100, Change(frame, "the blue boat", "cut"))
    assert _differing(cut, plain) == list(range(frame, 100))


@pytest.mark.parametrize("preset", ["tiny", "landiff"])
def test_going_back_leaves_no_trace(preset: str, published_folder: Path) -> None:
    """A video goes on bit for bit from every slice that it went back to, however far it had come.

    The video that never came further is the one that was cut there at once, as the loop does.
    """
    generator = _generator(published_folder if preset == "landiff" else None)
    first = generator.model.config.first_chunk_frames
    for frame in (first - 3, first + 9, first + 20):
        videos = []
        for ahead in (0, CHUNK, 2 * CHUNK):
            state = _open(generator)
            for _ in generate_frames(generator, state, first + CHUNK + ahead):
                pass
            place = generator.rewind(state, frame)
            assert place == state.next and frame - 8 < place.frame <= frame
            generator.change(state, "the blue boat", place, seed=9)
            videos.append(_frames(generator, state, 2 * CHUNK))
        assert not _differing(videos[0], videos[1]) and not _differing(videos[0], videos[2])


def test_cuts_follow_each_other() -> None:
    """A cut in frames that were made by a cut, in the same slice or later, and a prompt that flows after them."""
    changes = [
        Change(30, "the blue boat", "cut"), Change(31, "the sea", "cut", seed=4), Change(52, "a red ball", "cut"),
        Change(80, "the sea"),
    ]  # fmt: skip
    generator = _generator()
    video = _frames(generator, _open(generator), 120, *changes)
    for number, change in enumerate(changes):
        without = _frames(generator, _open(generator), 120, *changes[:number])
        assert _differing(video, without)[0] == (change.frame if change.mode == "cut" else 97)


def test_a_seed_counts_from_its_chunk() -> None:
    """Another seed gives another video under the same prompt, from the next chunk or from the frame of a cut."""
    generator = _generator()
    plain = _frames(generator, _open(generator), 80)
    for mode, first in (("flow", 49), ("cut", 40)):
        changed = _frames(generator, _open(generator), 80, Change(40, "a red ball", mode, seed=2))
        assert _differing(changed, plain) == list(range(first, 80))


def test_what_is_not_kept_is_refused() -> None:
    """Without `open_from` no chunk is kept, and with it those before it are dropped."""
    generator = _generator()
    state = generator.open("a red ball", 1)
    for _ in generate_frames(generator, state, FIRST + CHUNK):
        pass
    assert not state.past
    with pytest.raises(ValueError, match="frame 30 cannot be made anew"):
        generator.rewind(state, 30)
    assert generator.rewind(state, FIRST + CHUNK) == state.next
    state = _open(generator)
    for _ in range(10):
        state.open_from = max(state.next.frame - 10, 0)
        for _ in generate_frames(generator, state, CHUNK):
            pass
    assert [past.start.chunk for past in state.past] == [8, 9] and len(state.plan.gops) <= 4
    with pytest.raises(ValueError, match="cannot be made anew"):
        generator.rewind(state, state.past[0].start.frame - 1)


@pytest.mark.parametrize("preset", ["tiny", "landiff"])
def test_a_snapshot_can_go_back(preset: str, published_folder: Path) -> None:
    """What is kept of past chunks is in the record, but for states behind slices: these are decoded again."""
    generator = _generator(published_folder if preset == "landiff" else None)
    state = _open(generator)
    for _ in generate_frames(generator, state, FIRST + CHUNK):
        pass
    restored = restore(generator, copy.deepcopy(take_snapshot(generator, state)))
    assert state.past[-1].ends and not restored.past[-1].ends
    videos = []
    for one in (state, restored):
        generator.change(one, "the sea", generator.rewind(one, 36))
        videos.append(_frames(generator, one, 60))
    assert not _differing(*videos)
