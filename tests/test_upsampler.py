"""The condition module against the goldens, and its configuration's errors."""

from __future__ import annotations

import pytest
import torch

from engine.perceptual.upsampler import Condition, ConditionConfig
from engine.published import case_models
from tests import golden


@pytest.mark.parametrize("name", ["condition_a", "condition_b"])
def test_condition_equals_reference(name: str) -> None:
    """Condition latents of random and of decoded features equal the reference's."""
    case = golden.load(name)
    condition = case_models.condition(case)[1]
    with torch.inference_mode():
        from_random = condition(case["rand_features"])
        from_tokens = condition(case["features"])
    assert golden.relative_error(from_random, case["semantic_feature_from_features"]) < golden.TOLERANCE
    assert golden.relative_error(from_tokens, case["semantic_feature_from_tokens"]) < golden.TOLERANCE


@pytest.mark.parametrize("name", ["condition_a", "condition_b"])
def test_upsampler_equals_reference(name: str) -> None:
    """The up-sampler alone, and its pixel-shuffle step alone, equal the reference's."""
    case = golden.load(name)
    condition = case_models.condition(case)[1]
    with torch.inference_mode():
        features = case["features"]
        upsampled = condition.upsampler(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        shuffled = condition.upsampler.levels[-1].upsample(torch.pixel_shuffle(case["pixelshuffle_block/in"], 2))
    assert golden.relative_error(upsampled, case["upsampled"]) < golden.TOLERANCE
    assert golden.relative_error(shuffled, case["pixelshuffle_block/out"]) < golden.TOLERANCE


def test_condition_is_per_frame() -> None:
    """A frame's condition does not depend on the frames beside it."""
    torch.manual_seed(0)
    condition = Condition(ConditionConfig(feature_dim=6, width=32, multipliers=(1, 1), blocks=1, groups=8))
    features = torch.randn(2, 3, 6, 2, 4)
    whole = condition(features)
    assert whole.shape == (2, 3, 16, 4, 8)
    torch.testing.assert_close(condition(features[:, 1:2]), whole[:, 1:2])


@pytest.mark.parametrize("known", [0, 1, 3])
def test_first_frames_may_be_known(known: int) -> None:
    """What an earlier call gave for them is taken as it is, whatever the features are."""
    torch.manual_seed(0)
    condition = Condition(ConditionConfig(feature_dim=6, width=32, multipliers=(1, 1), blocks=1, groups=8))
    features = torch.randn(2, 3, 6, 2, 4)
    whole = condition(features)
    features[:, :known] = torch.nan
    torch.testing.assert_close(condition(features, known=whole[:, :known]), whole)


def test_config_refuses_widths_that_do_not_split() -> None:
    """A level whose width is no multiple of the norm groups is refused with both numbers."""
    with pytest.raises(ValueError, match="width 48 .* 32"):
        ConditionConfig(width=48, multipliers=(1.0,))
    with pytest.raises(ValueError, match="empty"):
        ConditionConfig(multipliers=())
    with pytest.raises(ValueError, match="multiple of 4"):
        ConditionConfig(width=6, multipliers=(1.0, 1.0), groups=3)


def test_condition_refuses_other_features() -> None:
    """Features of another width are refused with both widths."""
    condition = Condition(ConditionConfig(feature_dim=6, width=32, multipliers=(1, 1), blocks=1, groups=8))
    with pytest.raises(ValueError, match="7 given, 6 expected"):
        condition(torch.zeros(1, 1, 7, 2, 2))
