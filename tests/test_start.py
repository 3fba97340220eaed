"""A video that goes on from given pictures."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoint import TINY, make_extractor, make_folder, make_texts
from tiny import tiny_config, tiny_model, write_weights

from engine.config import PRESETS
from engine.live.channel_state import Place
from engine.live.generator import Generator
from engine.live.journal import Journal
from engine.live.journal_writer import JournalWriter
from engine.live.offline import generate_frames
from engine.live.replay import Replay
from engine.live.start import Starter, most_pictures
from engine.loading.model import load
from engine.loading.weights import load_weights, save_component
from engine.semantic.theia import Theia
from engine.video import generate
from engine.wire.state_folder import JOURNAL

MOST = 49


@pytest.fixture(scope="module", params=["tiny", "landiff"])
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """Of a tiny model of our own kind, and of a tiny one as published, with their extractors."""
    folder, cpu = tmp_path_factory.mktemp("weights"), torch.device("cpu")
    if request.param == "tiny":
        write_weights(folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            save_component(folder, "theia", Theia(tiny_config().theia))
        return Generator(load(tiny_config(), folder, cpu, torch.float32))
    make_folder(folder)
    make_texts(folder)
    make_extractor(folder)
    return Generator(load(TINY, folder, cpu, torch.float32))


def pictures(generator: Generator, count: int = MOST) -> npt.NDArray[np.uint8]:
    """A square that moves over noise."""
    config, rng = generator.model.config, np.random.default_rng(3)
    video = np.repeat(rng.integers(0, 256, (1, config.height_px, config.width_px, 3), np.uint8), count, axis=0)
    for number, picture in enumerate(video):
        picture[4:12, number % 20 : number % 20 + 8] = (250, 20, 20)
    return video


def test_a_video_goes_on_from_pictures(generator: Generator) -> None:
    """Its first chunk is one within a video; tokens and latents of the pictures are what it goes on from."""
    model, config = generator.model, generator.model.config
    given = pictures(generator)
    state = Starter(generator).begin(given, "a red ball", 7)
    assert state.next == Place(0, 0, config.tokenizer.frames)
    assert most_pictures(config) == MOST
    with model.computing():
        video = torch.from_numpy(given).movedim(-1, 1)[None].float() / 127.5 - 1
        latents = model.vae.encode(video, model.vae.new_state())
        features = model.tokenizer.decode(state.plan.gops[0].tokens)
        theia = Theia(config.theia).eval()
        assert model.folder is not None
        load_weights(model.folder, {"theia": theia}, config.name, torch.device("cpu"))
        tokens = model.tokenizer.encode(theia(torch.from_numpy(given[::4]).movedim(-1, 1)[None]).float())
    length = config.context_length
    torch.testing.assert_close(state.context_latents, latents[:, -length:].float())
    assert torch.equal(state.features, features[:, -length:].float())
    assert torch.equal(state.plan.gops[0].tokens, tokens)
    frames = [batch.frames for batch in generate_frames(generator, state, config.chunk_frames)]
    assert sum(frames) == config.chunk_frames and state.next.chunk == 1


def test_what_is_given_matters_and_nothing_else(generator: Generator) -> None:
    """The same pictures, prompt and seed give the same frames, other pictures others."""
    starter = Starter(generator)

    def video(given: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        state = starter.begin(given, "a red ball", 7)
        return np.concatenate([batch.i420 for batch in generate_frames(generator, state, 30)])

    given = pictures(generator)
    first, again, other = video(given), video(given.copy()), video(255 - given)
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("count", [1, 20, 60])
def test_the_first_picture_stands_still_before_few_and_the_last_of_many_count(generator: Generator, count: int) -> None:
    """One picture, a short video and a long one."""
    given = pictures(generator, count)
    whole = np.concatenate([np.repeat(given[:1], max(0, MOST - count), axis=0), given[-MOST:]])
    starter = Starter(generator)
    few, full = starter.begin(given, "a red ball", 7), starter.begin(whole, "a red ball", 7)
    assert torch.equal(few.context_latents, full.context_latents)
    assert torch.equal(few.plan.gops[0].tokens, full.plan.gops[0].tokens)


def test_other_sizes_are_refused(generator: Generator) -> None:
    """Pictures that do not fit, none at all, and another kind of numbers."""
    given = pictures(generator)
    for bad in (given[:, 1:], given[:0], given.astype(np.float32)):
        with pytest.raises(ValueError, match="are no pictures of size"):
            Starter(generator).begin(bad, "a red ball", 7)


def test_a_model_without_its_folder_is_refused() -> None:
    """There is no extractor to load."""
    generator = Generator(tiny_model())
    with pytest.raises(ValueError, match="no extractor"):
        Starter(generator).begin(pictures(generator), "a red ball", 7)


def test_the_journal_of_a_started_video_is_replayed(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins with the snapshot of what the video goes on from."""
    monkeypatch.setitem(PRESETS, generator.model.config.name, lambda: generator.model.config)
    state = Starter(generator).begin(pictures(generator), "a red ball", 7)
    writer = JournalWriter(tmp_path, generator, lambda *told: pytest.fail(str(told)))
    journal, video = writer.open("main", state, new=True), []
    for _ in range(2):
        while generator.needs_plan(state):
            generator.plan(state)
        units = journal.recorded(state, generator.chunk(state), state.next.frame).units
        video += [unit.batch.i420 for unit in units if unit.batch is not None]
    writer.close(60)
    replay = Replay(generator, Journal(tmp_path / "main" / JOURNAL))
    again = [batch.i420 for batch in replay.frames(0, 48)]
    assert (np.concatenate(again) == np.concatenate(video)).all()


def test_files_that_are_no_film_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Missing, empty, and something else; and the file that would be overwritten."""
    film, out = tmp_path / "film.mp4", tmp_path / "out.mp4"
    for content in (None, b"", b"no film" * 100):
        if content is not None:
            film.write_bytes(content)
        with pytest.raises(ValueError, match=r"film\.mp4 is no video"):
            generate.main(["--prompt", "a ball", "--seconds", "1", "--start", str(film), "--out", str(out)])
    with pytest.raises(ValueError, match="is what is read"):
        generate.main(["--prompt", "a ball", "--seconds", "1", "--start", str(film), "--out", str(film)])
    assert not out.exists()
