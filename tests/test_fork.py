"""A channel that goes on from a chunk of a journal."""

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_journal_writer import Told, settled
from tiny import tiny_config, tiny_model

from engine.config import PRESETS
from engine.live import fork as forks
from engine.live import journal_writer
from engine.live.channel_state import ChannelState
from engine.live.fork import Made, fork
from engine.live.generator import Generator
from engine.live.journal import Environment, Journal
from engine.live.journal_writer import JournalWriter
from engine.live.offline import finished, generate_frames
from engine.live.replay import Replay
from engine.runtime.pytree import leaves
from engine.wire.settings import ChannelSettings, ChannelStart, Fork
from engine.wire.state_folder import JOURNAL

CHUNKS = 8
SNAPSHOT_EVERY = 3  # chunks
CHANGES = {2: ("the blue boat", None), 5: ("the blue boat", 11)}  # by chunk: prompt and seed from there on
CUT = 4  # the chunk within which the video is cut

Video = npt.NDArray[np.uint8]


@pytest.fixture(scope="module", autouse=True)
def tiny_preset() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", tiny_config)
        patch.setattr(journal_writer, "SNAPSHOT_S", SNAPSHOT_EVERY * tiny_config().chunk_s)
        yield


@cache
def generator() -> Generator:
    return Generator(tiny_model())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, ChannelState], dict[int, Video]]:
    """A folder of journals; by chunk a copy of the state that it began with, and its frames."""
    folder, own = tmp_path_factory.mktemp("state"), generator()
    writer, state = JournalWriter(folder, own, Told()), own.open("a red ball", 7, steps=2)
    state.open_from = 0
    states, frames = {}, {}
    journal = writer.open("main", state, new=True)
    for number in range(CHUNKS):
        if number in CHANGES:
            own.change(state, CHANGES[number][0], state.next, CHANGES[number][1])
        if number == CUT:
            own.rewind(state, state.next.frame - 9)
            own.change(state, "the sea", state.next)
        while own.needs_plan(state):
            own.plan(state)
        states[state.next.chunk] = dataclasses.replace(state)
        chunk = journal.recorded(state, own.chunk(state), state.next.frame)
        frames[chunk.start.chunk] = np.concatenate([batch.i420 for batch in finished(chunk.units)])
        state.open_from = state.next.frame - 20
    settled(writer)
    writer.close(60)
    return folder, states, frames


def forked(folder: Path, settings: ChannelSettings) -> Made:
    assert settings.source is not None
    journal = Journal(folder / settings.source.folder / JOURNAL, whole=False)
    units = fork(generator(), Environment.of(generator().model), journal, settings)
    while True:
        try:
            next(units)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def ask(chunk: int, prompt: str | None = None, seed: int | None = None, steps: int | None = None) -> ChannelSettings:
    return ChannelSettings(prompt, seed, steps, source=Fork("main", chunk))


def video_of(made: Made, chunks: int) -> list[Video]:
    return [np.concatenate([batch.i420 for batch in _chunk(made, number)]) for number in range(chunks)]


def _chunk(made: Made, number: int) -> Iterator[object]:
    own, state = generator(), made.state
    while own.needs_plan(state):
        own.plan(state)
    steps = made.steps if number == 0 else None
    yield from finished(own.chunk(state, steps).units)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_fork_begins_with_what_was_there(
    source: tuple[Path, dict[int, ChannelState], dict[int, Video]], chunk: int
) -> None:
    """Context, memory of the autoencoder and place are those of the source, bit for bit; so is the chunk itself."""
    folder, states, frames = source
    made, was = forked(folder, ask(chunk)), states[chunk]
    assert made.state.next == was.next
    assert made.settings == ChannelSettings(was.prompt, was.seed, None, ChannelStart(was.next.frame, chunk))
    for name in ("features", "context_latents", "vae"):
        own, theirs = leaves(getattr(made.state, name)), leaves(getattr(was, name))
        assert all(torch.equal(one, other) for one, other in zip(own, theirs, strict=True)), name
    first, second = video_of(made, 2)
    assert (first == frames[chunk]).all() and len(second) == generator().model.config.chunk_frames


def test_another_prompt_or_seed_begins_with_the_chunk(
    source: tuple[Path, dict[int, ChannelState], dict[int, Video]],
) -> None:
    """As a change at that place does: the plan before it is the source's, and what follows is made anew."""
    folder, states, frames = source
    for prompt, seed in (("the sea", None), (None, 99)):
        made = forked(folder, ask(1, prompt, seed, steps=3))
        assert (made.settings.prompt, made.settings.seed) == (prompt or "a red ball", seed or 7)
        assert made.state.plan.gops[0].start == 0 and made.state.plan.gops[-1].changed
        (first,) = video_of(made, 1)
        assert first.shape == frames[1].shape and (first != frames[1]).any()
    # The same change of the video itself.
    own = generator()
    state = own.open("a red ball", 7, steps=2)
    list(generate_frames(own, state, states[1].next.frame))
    own.change(state, "the sea", state.next)
    video = np.concatenate([batch.i420 for batch in generate_frames(own, state, 24)])
    assert (video_of(forked(folder, ask(1, "the sea", steps=2)), 1)[0] == video).all()


def test_a_fork_has_a_journal_of_its_own(
    source: tuple[Path, dict[int, ChannelState], dict[int, Video]], tmp_path: Path
) -> None:
    """It replays without that of its source, and can be forked in turn, from its first chunk too."""
    folder, _, _ = source
    made = forked(folder, ask(4, "a red ball"))
    writer, own = JournalWriter(tmp_path, generator(), Told()), generator()
    journal, begin, frames = writer.open("main", made.state, new=True), made.state.next, []
    for _ in range(3):
        while own.needs_plan(made.state):
            own.plan(made.state)
        chunk = journal.recorded(made.state, own.chunk(made.state), made.state.next.frame)
        frames.append(np.concatenate([batch.i420 for batch in finished(chunk.units)]))
    writer.close(60)
    replay = Replay(own, Journal(tmp_path / "main" / JOURNAL))
    assert replay.begin == begin.frame
    again = np.concatenate([batch.i420 for batch in replay.frames(replay.begin, replay.end)])
    assert (again == np.concatenate(frames)).all()
    for chunk_number in (0, 2):
        second = forked(tmp_path, ask(begin.chunk + chunk_number))
        assert (video_of(second, 1)[0] == frames[chunk_number]).all()
        assert second.state.plan.gops[0].start < begin.latent + 6 * chunk_number


def test_what_cannot_be_forked_is_named(
    source: tuple[Path, dict[int, ChannelState], dict[int, Video]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that is not there yet or no more, or too far from a snapshot; another model, a damaged line."""
    folder, _, _ = source
    with pytest.raises(ValueError, match="chunk 90 is not made yet: those that are there are 0 to 7"):
        forked(folder, ask(90))
    lines = (folder / "main" / JOURNAL).read_bytes().split(b"\n")
    copy = tmp_path / "main" / JOURNAL
    copy.parent.mkdir()
    copy.write_bytes(b"\n".join([*lines[:3], b"{", *lines[3:]]))
    with pytest.raises(ValueError, match=r"chunk 5 is not in the journal: .*; line 4 of .* is damaged"):
        forked(tmp_path, ask(5))
    copy.write_bytes(lines[0] + b"\n")
    with pytest.raises(ValueError, match="no chunk is made yet"):
        forked(tmp_path, ask(0))
    begin = json.loads(lines[0]) | {"weights": "of another"}
    copy.write_bytes(b"\n".join([json.dumps(begin).encode(), *lines[1:]]))
    with pytest.raises(ValueError, match="the journal is of another model"):
        forked(tmp_path, ask(1))
    copy.write_bytes(b"\n".join(lines))
    monkeypatch.setattr(forks, "MOST_AGAIN_S", 2 * tiny_config().chunk_s)
    with pytest.raises(ValueError, match="the last chunk before it that can be gone on from is 1"):
        forked(tmp_path, ask(5))
