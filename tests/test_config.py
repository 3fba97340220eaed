"""Presets and the geometry that follows from them."""

import dataclasses

import pytest

from engine.config import preset
from engine.perceptual.schedule import DiffusionSchedule
from engine.semantic.planner import PlannerConfig


def test_the_geometry_of_a_hop() -> None:
    """A first hop makes 25 frames, later ones 24, which are 3 s."""
    mini = preset("mini")
    assert (mini.first_hop_frames, mini.hop_frames, mini.hop_s) == (25, 24, 3.0)
    assert mini.renderer.dit.frames == mini.prompt_latents + mini.new_latents


def test_the_geometry_of_the_published_model() -> None:
    """Its first hop is what the release renders, 49 frames of 480x720; later hops are those of `mini`."""
    landiff = preset("landiff")
    assert (landiff.first_hop_frames, landiff.hop_frames, landiff.hop_s) == (49, 24, 3.0)
    assert (landiff.height_px, landiff.width_px, landiff.steps) == (480, 720, 50)
    assert landiff.published and not preset("mini").published


def test_an_unknown_preset_is_refused() -> None:
    """The error names the presets there are."""
    with pytest.raises(ValueError, match="no preset 'maxi'; there are .*mini"):
        preset("maxi")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"prompt_latents": 6}, "do not fill a window of 13"),
        ({"prompt_latents": 8, "new_latents": 5, "first_latents": 8}, "5 new latents a hop are odd"),
        ({"first_latents": 6}, "no 7 prompt latents"),
        ({"first_latents": 14}, "within a window of 13"),
        ({"prompt_half": "dirty"}, "'dirty'"),
        ({"prompt_half": "renoised"}, "has per_half_time"),
        ({"schedule": DiffusionSchedule()}, "needs prediction 'v', not 'x0'"),
        ({"planner": PlannerConfig()}, "must be told motion_score None"),
        ({"anchors": (0.5,)}, "6 shares"),
        ({"anchors": (0.0,) * 5 + (2.0,)}, "from 0 to 1"),
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
