"""Presets and the lengths that follow from them."""

import dataclasses

import pytest

from engine.config import preset
from engine.perceptual.schedule import DiffusionSchedule
from engine.semantic.planner import PlannerConfig


@pytest.mark.parametrize(("name", "first_frames"), [("mini", 25), ("landiff", 49)])
def test_lengths_follow(name: str, first_frames: int) -> None:
    """A first chunk makes 25 frames, or a whole window's 49 as the release does; later ones make 24, which are 3 s."""
    config = preset(name)
    assert (config.first_chunk_frames, config.chunk_frames, config.chunk_s) == (first_frames, 24, 3.0)
    assert config.renderer.dit.frames == config.context_length + config.chunk_length
    assert config.published == (name == "landiff")
    dit = config.renderer.dit
    assert (config.height_px, config.width_px) == (8 * dit.height, 8 * dit.width)
    assert config.theia.output_shape == config.tokenizer.grid


def test_large_pictures_are_of_the_same_latents() -> None:
    """Twice as wide, high and many frames; a chunk lasts as long. A preset without them names what it has."""
    config = preset("mini", "large")
    assert (config.height_px, config.width_px, config.fps) == (256, 384, 16.0)
    assert (config.first_chunk_frames, config.chunk_frames, config.chunk_s) == (49, 48, 3.0)
    assert config.latents_per_s == preset("mini").latents_per_s == 2.0
    assert config.with_picture("small") == preset("mini") and config.with_picture("large") == config
    with pytest.raises(ValueError, match="'landiff' has no picture 'large'; it has small"):
        preset("landiff", "large")
    with pytest.raises(ValueError, match="no picture 'huge'; it has large, small"):
        preset("mini", "huge")


def test_an_unknown_preset_is_refused() -> None:
    """The error names the presets there are."""
    with pytest.raises(ValueError, match="no preset 'maxi'; there are .*mini"):
        preset("maxi")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"context_length": 6}, "do not fill a window of 13"),
        ({"context_length": 8, "chunk_length": 5, "first_chunk_length": 8}, "chunk_length 5 is odd"),
        ({"first_chunk_length": 6}, "at least context_length 7"),
        ({"first_chunk_length": 14}, "fit a window of 13"),
        ({"schedule": DiffusionSchedule()}, "needs prediction 'v', not 'x0'"),
        ({"planner": PlannerConfig()}, "must be told motion_score None"),
        ({"context_mix": (0.5,)}, "6 shares"),
        ({"context_mix": (0.0,) * 5 + (2.0,)}, "from 0 to 1"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(changes: dict[str, object], word: str) -> None:
    """A wrong configuration fails when it is made."""
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(preset("mini"), **changes)


def test_channels_must_agree() -> None:
    """Autoencoder and renderer name their channels."""
    mini = preset("mini")
    with pytest.raises(ValueError, match="16 latent channels, the renderer 24"):
        dataclasses.replace(mini, vae=dataclasses.replace(mini.vae, latent_channels=16))
