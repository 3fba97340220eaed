"""Feature extractor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import TOLERANCE, load, relative_error

from engine.published import case_models
from engine.semantic.theia import Theia, TheiaConfig

SMALL: dict[str, Any] = {
    "hidden": 32,
    "layers": 1,
    "heads": 2,
    "mlp": 64,
    "image_size": 16,
    "patch": 4,
    "canvas": 24,
    "output_shape": (4, 6),
    "feature_dim": 5,
}


def published() -> tuple[Theia, torch.Tensor, torch.Tensor]:
    golden = load("theia_a")
    return case_models.extractor(golden), golden["video_uint8"], golden["features"]


@torch.inference_mode()
def test_equals_the_published_features() -> None:
    """A wide video's features equal the published ones."""
    extractor, video, features = published()
    assert relative_error(extractor(video), features) <= TOLERANCE


@torch.inference_mode()
def test_frames_are_independent() -> None:
    """A frame's features are the same alone and in a video."""
    extractor, video, features = published()
    assert relative_error(extractor(video[:, 1:]), features[:, 1:]) <= TOLERANCE


@torch.inference_mode()
def test_padding_is_grey() -> None:
    """A picture padded by the extractor gives what the same picture padded by hand gives."""
    extractor = Theia(TheiaConfig(**SMALL)).eval()
    video = torch.randint(256, (2, 1, 3, 16, 24), dtype=torch.uint8)
    padded = torch.full((2, 1, 3, 24, 24), 127, dtype=torch.uint8)
    padded[..., :16, :] = video
    assert torch.equal(extractor(video), extractor(padded))


@torch.inference_mode()
def test_grids_larger_than_the_canvas_end_in_zeros() -> None:
    """Where more patches are asked for than the canvas has, zeros fill up the right and the bottom."""
    torch.manual_seed(0)
    extractor = Theia(TheiaConfig(**(SMALL | {"output_shape": (6, 6)}))).eval()
    larger = Theia(TheiaConfig(**(SMALL | {"output_shape": (8, 7)}))).eval()
    larger.load_state_dict(extractor.state_dict())
    video = torch.randint(256, (1, 2, 3, 16, 24), dtype=torch.uint8)
    features = larger(video)
    assert features.shape == (1, 2, 5, 8, 7)
    assert torch.equal(features[..., :6, :6], extractor(video))
    assert not features[..., 6:, :].any() and not features[..., 6:].any()


def test_features_of_chosen_width_train() -> None:
    """With a feature width set a last map gives that many channels, and every weight learns under bfloat16."""
    torch.manual_seed(0)
    extractor = Theia(TheiaConfig(**SMALL))
    video = torch.randint(256, (4, 2, 3, 16, 24), dtype=torch.uint8)
    target = video.float().unflatten(-1, (6, 4)).unflatten(-3, (4, 4)).mean((4, 6)).div(255.0)
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = extractor(video)
        assert features.shape == (4, 2, 5, 4, 6)
        loss = (features[:, :, :3].float() - target).pow(2).mean() + features[:, :, 3:].float().pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in extractor.parameters())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "hidden 32 is not divisible by 5"),
        ({"canvas": 22}, "canvas 22"),
        ({"output_shape": (4, 0)}, r"output_shape \(4, 0\)"),
    ],
)
def test_wrong_configuration_is_refused(changes: dict[str, Any], message: str) -> None:
    """A configuration that cannot work raises and names the numbers."""
    with pytest.raises(ValueError, match=message):
        TheiaConfig(**(SMALL | changes))


def test_wrong_input_is_refused() -> None:
    """A picture larger than the canvas and a video of floats raise."""
    extractor = Theia(TheiaConfig(**SMALL))
    with pytest.raises(ValueError, match="16 x 25 is larger than the canvas of 24"):
        extractor(torch.zeros(1, 1, 3, 16, 25, dtype=torch.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        extractor(torch.zeros(1, 1, 3, 16, 24))
