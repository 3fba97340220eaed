"""Large pictures of small latents: streaming, causality, and where each frame lies."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_model, write_weights

from engine.config import PRESETS
from engine.live.channel_state import ChannelState
from engine.live.generator import Generator
from engine.live.journal import Environment, Journal
from engine.live.journal_writer import JournalWriter
from engine.live.offline import finished, generate_frames, next_chunk
from engine.live.replay import Replay, differences
from engine.live.snapshot import restore, take_snapshot
from engine.live.start import Starter, most_pictures
from engine.loading.model import with_small_pictures
from engine.perceptual.frames import shrunk
from engine.perceptual.mini.enlarger import Enlarger, EnlargerConfig, LargeVAE, LargeVAEState, enlarged
from engine.perceptual.mini.vae import TinyVAE, TinyVAEConfig, TinyVAEState

CONFIG = TinyVAEConfig(latent_channels=6, encoder_width_8=16, encoder_width_4=8, decoder_width_8=24, decoder_width_4=16)
FIRST, CHUNK = 49, 48  # frames of the first chunk and of every other


@pytest.fixture
def vae() -> LargeVAE:
    torch.manual_seed(0)
    small = TinyVAE(CONFIG)
    vae = LargeVAE(small, Enlarger(EnlargerConfig(width=8, blocks=1), CONFIG.decoder_width_4))
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    small.basis.copy_(torch.linalg.qr(torch.randn(768, 6)).Q.T)
    return vae


@torch.no_grad()
def test_decoding_in_slices_equals_decoding_whole(vae: LargeVAE) -> None:
    """Any cut of the latents gives the frames of one call, eight a latent and one of the first."""
    latents = torch.randn(2, 7, 6, 2, 3)
    whole = vae.decode(latents, LargeVAEState())
    state = LargeVAEState()
    parts = [vae.decode(part, state) for part in latents.split([3, 2, 1, 1], dim=1)]
    assert whole.shape == (2, 49, 3, 32, 48)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def test_later_latents_do_not_change_earlier_frames(vae: LargeVAE) -> None:
    """The decoder is causal."""
    latents = torch.randn(1, 4, 6, 2, 3)
    before = vae.decode(latents, LargeVAEState())
    latents[:, 2:] += 1.0
    after = vae.decode(latents, LargeVAEState())
    assert torch.equal(before[:, :9], after[:, :9]) and not torch.equal(before[:, 9:], after[:, 9:])


@torch.no_grad()
def test_latents_are_those_of_small_pictures(vae: LargeVAE) -> None:
    """Every second large frame, at half its size, is encoded as a small one; in slices too."""
    video = torch.rand(1, 33, 3, 32, 48) * 2 - 1
    small = torch.nn.functional.avg_pool2d(video[0, ::2], 2)[None]
    state = TinyVAEState()
    parts = [vae.encode(part, state) for part in video.split([17, 16], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), vae.vae.encode(small, TinyVAEState()))
    for frames, size in ((34, (32, 48)), (33, (31, 48))):
        with pytest.raises(ValueError, match=f"{frames} frames of {size[0]}x{size[1]}"):
            vae.encode(torch.zeros(1, frames, 3, *size), TinyVAEState())


@torch.no_grad()
def test_an_untrained_enlarger_shows_small_frames_and_blends() -> None:
    """Frames of a latent stand at 1/2, 1, 3/2, ... small frames behind the one before."""
    frames = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(2, -1, 3, 16, 24)
    expected = torch.arange(1, 9) / 2
    torch.testing.assert_close(enlarged(frames)[1, :, 0, 5, 5], expected)
    enlarger = Enlarger(EnlargerConfig(width=8, blocks=1), 16)
    large, added = enlarger(frames, torch.randn(2, 16, 4, 6), torch.randn(2, 3, 32, 48))
    torch.testing.assert_close(large, enlarged(frames))
    assert not added.any() and added.shape == (2, 3, 32, 48)


@torch.no_grad()
def test_what_was_added_to_a_frame_is_seen_by_the_next_latent(vae: LargeVAE) -> None:
    """Of an own frame what the network added, of one that was given what it has more than its small picture."""
    latents, state = torch.randn(1, 3, 6, 2, 3), vae.new_state()
    video = vae.decode(latents[:, :2], state)
    assert state.frame is not None and state.added is not None
    torch.testing.assert_close(state.added, vae.enlarger.detail(video[:, -1], state.frame))
    other = replace(state, added=state.added + 1.0)
    assert not torch.equal(vae.decode(latents[:, 2:], state), vae.decode(latents[:, 2:], other))
    given = torch.rand(1, 3, 32, 48)
    vae.show(state, given)
    torch.testing.assert_close(state.added, vae.enlarger.detail(given, torch.nn.functional.avg_pool2d(given, 2)))


def test_a_stored_state_of_another_size_is_refused(vae: LargeVAE) -> None:
    """As of small pictures; a state without it is of a video that has not begun."""
    vae.check_state(LargeVAEState(), 2, 3)
    vae.check_state(LargeVAEState(added=torch.zeros(1, 3, 32, 48)), 2, 3)
    for wrong in (torch.zeros(1, 3, 16, 24), torch.zeros(1, 3, 32, 48, dtype=torch.int64), "zeros"):
        with pytest.raises(ValueError, match=r"added is no tensor of size \[1, 3, 32, 48\]"):
            vae.check_state(LargeVAEState(added=wrong), 2, 3)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_chunk_that_begins_elsewhere_is_spread_over_eight_frames() -> None:
    """What a chunk's first latent is off by fades in evenly, as in small pictures, at twice the rate."""
    small = TinyVAE(TinyVAEConfig(latent_channels=768, seam_smoothing=0.4, smoothing=0.0))
    small.basis.copy_(torch.eye(768))
    vae = LargeVAE(small, Enlarger(EnlargerConfig(width=8, blocks=1), 128))
    video, state = torch.zeros(1, 17, 3, 16, 16), LargeVAEState()
    video[:, 9:] = 0.4
    latents = vae.encode(video, TinyVAEState())
    vae.decode(latents[:, :2], state)
    vae.begin_chunk(state)
    torch.testing.assert_close(vae.decode(latents[:, 2:], state)[0, :, 0, 0, 0], 0.05 * torch.arange(1.0, 9.0))


def test_shrunk_pictures_are_means() -> None:
    """Of two by two pixels, rounded; scale 1 changes nothing."""
    picture = torch.tensor([[0, 1, 7, 7], [1, 1, 7, 7]], dtype=torch.uint8).expand(1, 3, 2, 4)
    assert shrunk(picture, 2).tolist() == [[[[1, 7]]] * 3]
    assert shrunk(picture, 1) is picture


@cache
def generator() -> Generator:
    return Generator(tiny_model(picture="large"))


def made(state: ChannelState, count: int) -> np.ndarray:
    return np.concatenate([batch.i420 for batch in generate_frames(generator(), state, count)])


def test_a_video_has_twice_the_frames_of_the_same_latents() -> None:
    """Chunks last as long and plan and latents are the same as those of small pictures."""
    config = generator().model.config
    assert (config.first_chunk_frames, config.chunk_frames, config.chunk_s) == (FIRST, CHUNK, 3.0)
    state = generator().open("a red ball", 3)
    sizes = [batch.frames for batch in generate_frames(generator(), state, FIRST + CHUNK)]
    assert sizes == [17, 16, 16, 16, 16, 16] and state.next.frame == FIRST + CHUNK
    other = Generator(with_small_pictures(generator().model))
    small = other.open("a red ball", 3)
    for batch in generate_frames(other, small, 25 + 24):
        assert batch.i420.shape[1:] == (48, 48)
    assert torch.equal(small.context_latents, state.context_latents)
    assert [gop.tokens.tolist() for gop in small.plan.gops] == [gop.tokens.tolist() for gop in state.plan.gops]


def test_a_video_goes_back_and_on_from_a_snapshot() -> None:
    """A snapshot gives the frames that follow; a cut goes back to the slice of its frame. Small ones are refused."""
    own = generator()
    state = own.open("a red ball", 5)
    state.open_from = 0
    made(state, FIRST)
    snapshot = take_snapshot(own, state)
    video = made(state, CHUNK)
    again = restore(own, snapshot)
    assert (made(again, CHUNK) == video).all()
    place = own.rewind(state, FIRST + 20)
    assert place.frame == FIRST + 16 and own.latent_of(state, FIRST + 16) == place.latent
    small = Generator(with_small_pictures(own.model))
    with pytest.raises(ValueError, match="picture 'large'; this engine goes on from 'small'"):
        restore(small, snapshot)


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    yield


@pytest.mark.usefixtures("tiny_preset")
def test_a_journal_knows_its_pictures(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """It is replayed bit for bit with large pictures, and says what is different for small ones."""
    own, frames = generator(), []
    writer = JournalWriter(tmp_path, own, lambda *told: pytest.fail(str(told)))
    state = own.open("a red ball", 7)
    journal = writer.open("main", state, True)
    while own.needs_plan(state):
        own.plan(state)
    frames = [batch.i420 for batch in finished(journal.recorded(state, own.chunk(state), 0).units)]
    writer.close(60)
    read = Journal(tmp_path / "main/journal.jsonl")
    assert read.config.picture == "large"
    replayed = [batch.i420 for batch in Replay(own, read).frames(0, FIRST)]
    assert (np.concatenate(replayed) == np.concatenate(frames)).all()
    found = differences(read.beginning.environment, Environment.of(with_small_pictures(own.model)))
    assert found["width_px"] == "width_px 48, not 96" and found["fps"] == "fps 8.0, not 16.0"


def test_it_goes_on_from_large_pictures(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Pictures of the large size and rate are read, and the first frame is near to the last of them."""
    from engine.loading.model import load
    from engine.loading.weights import save_component
    from engine.semantic.theia import Theia

    write_weights(tmp_path)
    torch.manual_seed(1)
    save_component(tmp_path, "theia", Theia(tiny_config().theia))
    save_component(tmp_path, "enlarger", Enlarger(EnlargerConfig(width=8, blocks=1), 8))
    config = tiny_config(picture="large")
    own = Generator(load(config, tmp_path, torch.device("cpu"), torch.float32))
    assert most_pictures(config) == 97
    pictures = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8), 97, axis=0)
    state = Starter(own).begin(pictures, "a red ball", 0)
    batches = list(finished(next_chunk(own, state)))
    assert sum(batch.frames for batch in batches) == CHUNK and batches[0].i420.shape[1:] == (96, 96)
