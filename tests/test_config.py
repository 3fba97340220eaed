"""Presets and the geometry that follows from them."""

import dataclasses

import pytest

from engine.config import preset


def test_the_geometry_of_a_hop() -> None:
    """A first hop makes 25 frames, later ones 24, which are 3 s."""
    mini = preset("mini")
    assert (mini.first_hop_frames, mini.hop_frames, mini.hop_s) == (25, 24, 3.0)
    assert mini.renderer.dit.frames == mini.prompt_latents + mini.new_latents


def test_an_unknown_preset_is_refused() -> None:
    """The error names the presets there are."""
    with pytest.raises(ValueError, match="no preset 'maxi'; there are .*mini"):
        preset("maxi")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"prompt_latents": 6}, "do not fill a window of 13"),
        ({"slices": (3, 2)}, "do not add up"),
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
