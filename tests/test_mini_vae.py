"""The small autoencoder: streaming, causality and its linear start."""

from dataclasses import replace

import pytest
import torch

from engine.perceptual.mini.vae import TinyVAE, TinyVAEConfig, TinyVAEState

# All that the network is given comes out of it again.
WHOLE = TinyVAEConfig(
    latent_channels=768, encoder_width_8=8, encoder_width_4=8, decoder_width_8=8, decoder_width_4=8,
    smoothing=0.0, seam_smoothing=0.0,
)  # fmt: skip


@pytest.fixture
def vae() -> TinyVAE:
    torch.manual_seed(0)
    config = TinyVAEConfig(
        latent_channels=6, encoder_width_8=16, encoder_width_4=8, decoder_width_8=24, decoder_width_4=16
    )
    vae = TinyVAE(config)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    vae.basis.copy_(torch.linalg.qr(torch.randn(768, 6)).Q.T)
    vae.latent_scale.uniform_(0.5, 2.0)
    return vae


@torch.no_grad()
def test_decoding_in_slices_equals_decoding_whole(vae: TinyVAE) -> None:
    """Any cut of the latents gives the frames of one call."""
    latents = torch.randn(2, 7, 6, 2, 3)
    whole = vae.decode(latents, TinyVAEState())
    state = TinyVAEState()
    parts = [vae.decode(part, state) for part in latents.split([3, 2, 1, 1], dim=1)]
    assert whole.shape == (2, 25, 3, 16, 24)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def test_encoding_in_slices_equals_encoding_whole(vae: TinyVAE) -> None:
    """Any cut of the frames at latents gives the latents of one call."""
    video = torch.rand(1, 17, 3, 16, 24) * 2 - 1
    whole = vae.encode(video, TinyVAEState())
    state = TinyVAEState()
    parts = [vae.encode(part, state) for part in video.split([5, 8, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def test_a_state_that_has_started_is_of_a_running_video(vae: TinyVAE) -> None:
    """Its first latent stands for four frames and comes behind memories of nothing."""
    latents = torch.randn(1, 2, 6, 2, 3)
    running = vae.decode(latents, TinyVAEState(started=True))
    assert running.shape[1] == 8
    torch.testing.assert_close(running[:, 3:], vae.decode(latents, TinyVAEState()))
    video = torch.rand(1, 8, 3, 16, 24) * 2 - 1
    assert vae.encode(video, TinyVAEState(started=True)).shape[1] == 2


@torch.no_grad()
def test_later_latents_do_not_change_earlier_frames(vae: TinyVAE) -> None:
    """The decoder is causal."""
    latents = torch.randn(1, 4, 6, 2, 3)
    before = vae.decode(latents, TinyVAEState())
    latents[:, 2:] += 1.0
    after = vae.decode(latents, TinyVAEState())
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


@torch.no_grad()
def test_a_new_network_is_the_linear_map() -> None:
    """With as many channels as patch values and an orthogonal basis, an untrained network loses nothing."""
    vae = TinyVAE(WHOLE)
    vae.basis.copy_(torch.linalg.qr(torch.randn(768, 768)).Q)
    vae.mean.normal_()
    video = torch.rand(1, 9, 3, 16, 16) * 2 - 1
    again = vae.decode(vae.encode(video, TinyVAEState()), TinyVAEState())
    torch.testing.assert_close(again, video, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_small_jumps_between_latents_are_spread_and_large_ones_stay() -> None:
    """A still picture that is off by less than `smoothing` in one latent moves evenly; what is beyond moves at once.
    Where a chunk begins, and only there, `seam_smoothing` holds."""
    vae = TinyVAE(replace(WHOLE, smoothing=0.04, seam_smoothing=0.4))
    vae.basis.copy_(torch.eye(768))

    def frames(height: float, chunk_begins: int | None = None) -> torch.Tensor:
        video, state, parts = torch.zeros(1, 9, 3, 8, 8), TinyVAEState(), []
        video[:, 5:] = height
        for number, latent in enumerate(vae.encode(video, TinyVAEState()).split(1, dim=1)):
            if number == chunk_begins:
                vae.begin_chunk(state)
            parts.append(vae.decode(latent, state))
        return torch.cat(parts, dim=1)[0, 4:, 0, 0, 0]

    torch.testing.assert_close(frames(0.02), torch.tensor([0.0, 0.005, 0.01, 0.015, 0.02]))
    torch.testing.assert_close(frames(1.0), torch.tensor([0.0, 0.97, 0.98, 0.99, 1.0]))
    torch.testing.assert_close(frames(0.4, chunk_begins=2), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]))
    torch.testing.assert_close(frames(0.4, chunk_begins=1), torch.tensor([0.0, 0.37, 0.38, 0.39, 0.4]))


@torch.no_grad()
def test_a_video_goes_on_from_a_picture_that_is_not_its_own() -> None:
    """Its first frame is near to the picture, whose look fades away within the chunk; the next chunk has none of it."""
    vae = TinyVAE(replace(WHOLE, smoothing=0.0, seam_smoothing=0.0, given_smoothing=0.2, fading=0.5))
    vae.basis.copy_(torch.eye(768))
    latents = vae.encode(torch.zeros(1, 21, 3, 8, 8), TinyVAEState())

    def after(picture: float) -> torch.Tensor:
        """Levels behind the second latent, before which the picture comes; the fifth begins another chunk."""
        state, parts = TinyVAEState(), []
        for number, latent in enumerate(latents.split(1, dim=1)):
            if number == 2:
                vae.show(state, torch.full((1, 3, 8, 8), picture))
            if number in (2, 4):
                vae.begin_chunk(state)
            parts.append(vae.decode(latent, state))
        assert state.offset is None
        return torch.cat(parts, dim=1)[0, 5:, 0, 0, 0]

    fading = torch.tensor([0.875, 0.75, 0.625, 0.5, 0.4375, 0.375, 0.3125, 0.25] + [0.0] * 8)
    torch.testing.assert_close(after(0.1), 0.1 * fading, atol=1e-6, rtol=0)
    # Of what differs more a part is kept.
    torch.testing.assert_close(after(-0.7), -0.2 * fading, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "word"), [((1, 6, 3, 16, 24), "6 frames"), ((1, 5, 3, 12, 24), "12x24")])
def test_videos_that_do_not_fit_are_refused(vae: TinyVAE, shape: tuple[int, ...], word: str) -> None:
    """A wrong number of frames or pixels is named."""
    with pytest.raises(ValueError, match=word):
        vae.encode(torch.zeros(shape), TinyVAEState())
