"""Conditioned GroupNorm with SiLU against its reference."""

import pytest
import torch
import torch.nn.functional as functional
from tolerances import DEVICE, DTYPES, assert_close, fused, normal, widened

from kernels import spatial_norm

CASES = {
    "one value a group": (1, 4, (1, 1, 1), (1, 1, 1), 2),
    "first slice": (1, 8, (9, 4, 6), (3, 2, 3), 4),
    "odd frames": (2, 6, (5, 7, 9), (3, 7, 9), 3),
    "later slice": (1, 8, (8, 4, 6), (2, 1, 3), 4),
    "several parts": (1, 2, (3, 43, 63), (3, 43, 63), 1),
}


def operands(case: tuple[int, int, tuple[int, ...], tuple[int, ...], int], dtype: torch.dtype) -> tuple[object, ...]:
    batch, channels, size, latent_size, groups = case
    x = normal(batch, channels, *size, dtype=dtype) + 3
    scale, shift = (normal(batch, channels, *latent_size, dtype=dtype, seed=seed) for seed in (1, 2))
    return x, normal(channels, seed=3), normal(channels, seed=4), scale, shift, groups, 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_spatial_norm_silu(case: tuple[int, int, tuple[int, ...], tuple[int, ...], int], dtype: torch.dtype) -> None:
    """spatial_norm_silu equals its reference for every split of frames over latents."""
    arguments = operands(case, dtype)
    result = fused(spatial_norm.spatial_norm_silu, *arguments)
    assert_close(result, spatial_norm.spatial_norm_silu_reference(*widened(*arguments)), dtype)


def test_the_result_may_go_into_a_larger_tensor() -> None:
    """Frames behind two others are written where they lie, and the two are left alone."""
    arguments = operands(CASES["first slice"], torch.float32)
    expected = spatial_norm.spatial_norm_silu_reference(*arguments)
    for backend in ("triton", "reference"):
        room = normal(1, 8, 11, 4, 6).contiguous(memory_format=torch.channels_last_3d)
        kept = room[:, :, :2].clone()
        spatial_norm.spatial_norm_silu(*arguments, out=room[:, :, 2:], backend=backend)
        assert_close(room[:, :, 2:], expected, torch.float32)
        assert torch.equal(room[:, :, :2], kept)
    with pytest.raises(ValueError, match="out must have its channels last"):
        spatial_norm.spatial_norm_silu(*arguments, out=torch.empty(1, 8, 9, 4, 6, device=DEVICE))


@pytest.mark.parametrize("programs", [1, 3, 1024], ids=["one part", "few parts", "a part a block"])
def test_statistics_do_not_cancel(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around a mean of a thousand that drifts from part to part the spread is right; plain squares would lose it."""
    x = normal(1, 2, 3, 43, 63) + torch.linspace(1000, 1005, 16254, device=DEVICE).view(1, 2, 3, 43, 63)
    monkeypatch.setattr(spatial_norm, "PROGRAMS", programs)
    one, zero = torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE)
    scale, shift = torch.ones(1, 2, 3, 1, 1, device=DEVICE), torch.zeros(1, 2, 3, 1, 1, device=DEVICE)
    result = fused(spatial_norm.spatial_norm_silu, x, one, zero, scale, shift, 1, 1e-6)
    normed = functional.group_norm(x.double(), 1, eps=1e-6)
    assert float((result - functional.silu(normed)).abs().max()) < 5e-4


def test_refuses_wrong_operands() -> None:
    """Groups that do not divide and odd frames over one latent are named before anything runs."""
    x, weight, bias, scale, shift, _, eps = operands(CASES["first slice"], torch.float32)
    with pytest.raises(ValueError, match="groups must divide 8"):
        spatial_norm.spatial_norm_silu(x, weight, bias, scale, shift, 3, eps)
    with pytest.raises(ValueError, match="need at least 2 latents"):
        spatial_norm.spatial_norm_silu(
            x, weight, bias, scale[:, :, :1].contiguous(), shift[:, :, :1].contiguous(), 4, eps
        )


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (3, 3), (5, 3), (9, 3), (4, 2), (8, 2)])
def test_reference(frames: int, latents: int) -> None:
    """Convolutions of 1x1 made before or after the condition is resized give the same."""
    x, condition = normal(1, 8, frames, 6, 10), normal(1, 4, latents, 3, 5, seed=1)
    to_scale, to_shift = normal(8, 4, 1, 1, 1, seed=2), normal(8, 4, 1, 1, 1, seed=3)
    weight, bias = normal(8, seed=4), normal(8, seed=5)
    resized = spatial_norm.resize_nearest(condition, frames, 6, 10)
    places = [0] + [1 + frame * (latents - 1) // (frames - 1) for frame in range(frames - 1)]
    places = places if frames % 2 else [frame * latents // frames for frame in range(frames)]
    assert torch.equal(resized[:, :, :, ::2, ::2], condition[:, :, places])
    normed = functional.group_norm(x, 4, weight, bias, 1e-6)
    conv3d = functional.conv3d
    expected = functional.silu(normed * conv3d(resized, to_scale) + conv3d(resized, to_shift))
    scale, shift = conv3d(condition, to_scale), conv3d(condition, to_shift)
    result = spatial_norm.spatial_norm_silu_reference(x, weight, bias, scale, shift, 4, 1e-6)
    assert_close(result, expected, torch.float32)
