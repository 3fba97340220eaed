"""The VAE as a stream: any calls give what one call gives, memory is bounded, and wrong lengths are refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from engine.loading.published_names_perceptual import VAE as VAE_RULES
from engine.loading.published_names_semantic import to_ours, to_published
from engine.perceptual.base import slice_lengths
from engine.perceptual.cogvideox.causal import CausalState
from engine.perceptual.cogvideox.vae import VAE, VAEConfig
from tests import golden

SMALL = VAEConfig(latent_channels=4, width=32, multipliers=(1, 1, 1), blocks=0)


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(1)
    return VAE(SMALL).eval()


def _latents(count: int) -> Tensor:
    return torch.randn(1, count, 4, 2, 3, generator=torch.Generator().manual_seed(2))


def _video(frames: int) -> Tensor:
    return torch.rand(1, frames, 3, 8, 12, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("calls", [[7, 6, 6], [3, 2, 2, 2, 2, 2, 2, 2, 2], [5, 14], [1, 18]])
def test_chunks_equal_one_long_decode(vae: VAE, calls: list[int]) -> None:
    """Decoding chunk by chunk is, bit for bit, one long decode cut into the same slices."""
    latents = _latents(19)
    one, many = CausalState(), CausalState()
    with torch.inference_mode():
        lengths = [1] + [2] * 9 if calls[0] == 1 else [3] + [2] * 8
        whole = torch.cat([vae.decode(part, one) for part in torch.split(latents, lengths, dim=1)], dim=1)
        parts = torch.cat([vae.decode(part, many) for part in torch.split(latents, calls, dim=1)], dim=1)
        if calls[0] != 1:
            assert torch.equal(vae.decode(latents, CausalState()), whole)
    assert whole.shape == (1, 1 + 4 * 18, 3, 8, 12)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("calls", [[9, 8, 8, 8], [17, 16], [9, 24], [9, 16, 8]])
def test_chunks_equal_one_long_encode(vae: VAE, calls: list[int]) -> None:
    """Encoding chunk by chunk is, bit for bit, one long encode."""
    video, state = _video(33), CausalState()
    with torch.inference_mode():
        whole = vae.encode(video, CausalState())
        parts = torch.cat([vae.encode(part, state) for part in torch.split(video, calls, dim=1)], dim=1)
    assert whole.shape == (1, 9, 4, 2, 3)
    assert torch.equal(whole, parts)


def test_state_does_not_grow(vae: VAE) -> None:
    """After the first slice the memory keeps its tensors and their sizes."""
    state = CausalState()
    with torch.inference_mode():
        vae.decode(_latents(3), state)
        before = {slot: (tail.data_ptr(), tail.shape) for slot, tail in state.tails.items()}
        for _ in range(3):
            vae.decode(_latents(6), state)
    assert {slot: (tail.data_ptr(), tail.shape) for slot, tail in state.tails.items()} == before


def test_slices_come_one_at_a_time(vae: VAE) -> None:
    """Frames of a slice are there before the next slice is computed."""
    with torch.inference_mode():
        slices = [frames.shape[1] for frames in vae.decode_slices(_latents(7), CausalState())]
    assert slices == [9, 8, 8]


def test_scale_is_undone(vae: VAE) -> None:
    """Latents reach the decoder divided by the renderer's scale, and leave the encoder multiplied by it."""
    latents, video = _latents(3), _video(9)
    with torch.inference_mode():
        raw = vae.decoder(latents.transpose(1, 2) / 1.15258426, CausalState()).transpose(1, 2)
        mean = vae.encoder(video.transpose(1, 2), CausalState())[0].transpose(1, 2)
        assert torch.equal(vae.decode(latents, CausalState()), raw)
        torch.testing.assert_close(vae.encode(video, CausalState()), mean * 1.15258426)


def test_slice_lengths() -> None:
    """Runs are cut as published; numbers without a meaning are refused with the number and the cure."""
    assert slice_lengths(13, started=False) == [3, 2, 2, 2, 2, 2]
    assert slice_lengths(1, started=False) == [1]
    assert slice_lengths(6, started=True) == [2, 2, 2]
    with pytest.raises(ValueError, match="6 latents at the start of a video: an odd"):
        slice_lengths(6, started=False)
    with pytest.raises(ValueError, match="7 latents within a video: an even"):
        slice_lengths(7, started=True)
    with pytest.raises(ValueError, match="0 latents"):
        slice_lengths(0, started=True)


def test_video_that_does_not_divide_is_refused(vae: VAE) -> None:
    """Frame numbers and picture sizes that give no whole latents are refused."""
    with pytest.raises(ValueError, match="8 frames are not 1"):
        vae.encode(_video(8), CausalState())
    with pytest.raises(ValueError, match="8x10 pixels"):
        vae.encode(_video(9)[..., :10], CausalState())


def test_config_errors() -> None:
    """Widths that norm groups cannot split and too few levels are refused."""
    with pytest.raises(ValueError, match="width 48 .* 32"):
        VAEConfig(width=48)
    with pytest.raises(ValueError, match="2 levels"):
        VAEConfig(multipliers=(1, 2))


def test_published_file_is_covered() -> None:
    """Every tensor of the published VAE file is one of ours, of the same shape, and names read backwards."""
    keys = json.loads((golden.FOLDER.parent / "checkpoint_keys.json").read_text())
    published = keys["CogVideoX-2b-sat/vae/3d-vae.pt"]
    published = {key: value[0] for key, value in published.items() if not key.startswith("__")}
    with torch.device("meta"):
        ours = {key: list(value.shape) for key, value in VAE(VAEConfig()).state_dict().items()}
    assert {to_ours(key, VAE_RULES): shape for key, shape in published.items()} == ours
    assert {to_published(key, VAE_RULES) for key in ours} == set(published)
