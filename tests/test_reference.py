"""The references themselves, against other ways to compute the same."""

import math

import pytest
import torch
import torch.nn.functional as F
from tolerances import DEVICE, normal, relative_rms

from engine.runtime import layers
from kernels import reference


def assert_equal(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert result.shape == expected.shape
    assert relative_rms(result, expected) < 1e-6


def test_layernorm_modulate() -> None:
    """Text rows and image rows computed apart, each with its own pair, and put together."""
    x, weight, bias = normal(2, 9, 16), normal(16, seed=1), normal(16, seed=2)
    shift, scale = normal(2, 2, 16, seed=3), normal(2, 2, 16, seed=4)
    normed = F.layer_norm(x, (16,), weight, bias, 1e-5)
    text = normed[:, :4] * (1 + scale[:, 1:]) + shift[:, 1:]
    image = normed[:, 4:] * (1 + scale[:, :1]) + shift[:, :1]
    assert_equal(reference.layernorm_modulate(x, weight, bias, shift, scale, 4, 1e-5), torch.cat([text, image], 1))


def test_gated_residual() -> None:
    """Text rows and image rows computed apart, with the control residual on both."""
    x, update, control, gate = normal(2, 9, 16), normal(2, 9, 16, seed=1), normal(2, 9, 16, seed=2), normal(2, 2, 16)
    gates = torch.cat([gate[:, 1:].expand(2, 4, 16), gate[:, :1].expand(2, 5, 16)], 1)
    assert_equal(reference.gated_residual(x, update, gate, 4, control), x + gates * update + control)


def test_rms_norm() -> None:
    """The engine's RMSNorm, alone and after an addition."""
    module = layers.RMSNorm(32).to(DEVICE).requires_grad_(False)
    module.weight.data = normal(32, seed=1)
    x, update = normal(5, 32), normal(5, 32, seed=2)
    assert_equal(reference.rms_norm(x, module.weight, 1e-5), module(x))
    normed, total = reference.add_rms_norm(x, update, module.weight, 1e-5)
    assert_equal(total, x + update)
    assert_equal(normed, module(x + update))


def test_rotate() -> None:
    """The engine's rotation, of all tokens in order and of some by position."""
    x = normal(1, 2, 8, 8)
    angles = layers.rotary_angles(torch.arange(8, device=DEVICE), 8)
    assert_equal(reference.rotate(x, angles.cos(), angles.sin()), layers.rotate(x, angles.cos(), angles.sin()))
    positions = torch.tensor([5, 0, 7], device=DEVICE)
    expected = layers.rotate(x[:, :, :3], angles[positions].cos(), angles[positions].sin())
    assert_equal(reference.rotate(x[:, :, :3], angles.cos(), angles.sin(), positions), expected)


def test_nearest_code() -> None:
    """Distances written out pair by pair; of equal codes the lowest."""
    x, book = normal(20, 8), normal(9, 8, seed=1)
    assert torch.equal(reference.nearest_code(x, book, False), torch.cdist(x, book).argmin(1))
    angles = F.cosine_similarity(x[:, None], book[None], dim=-1)
    assert torch.equal(reference.nearest_code(x, book, True), angles.argmax(1))
    assert torch.equal(reference.nearest_code(book, book.repeat(2, 1), False), torch.arange(9, device=DEVICE))


def test_guided_step_is_the_published_multistep_solver() -> None:
    """A step of DPM++(2M) SDE with guidance, written as the formulas stand."""
    x, before, noise, outputs = normal(7), normal(7, seed=1), normal(7, seed=2), normal(2, 7, seed=3)
    a, a_next, a_quantised, scale, ratio = 0.4, 0.6, 0.41, 5.0, 1.3
    step = math.log(math.sqrt(a_next**2 / (1 - a_next**2))) - math.log(math.sqrt(a**2 / (1 - a**2)))
    skip, out = a_quantised, -math.sqrt(1 - a_quantised**2)
    keep = math.sqrt((1 - a_next**2) / (1 - a**2)) * math.exp(-step)
    pull, mix = math.expm1(-2 * step) * a_next, 1 + 1 / (2 * ratio)
    spread = math.sqrt(1 - a_next**2) * math.sqrt(1 - math.exp(-2 * step))
    table = torch.tensor([[skip, out, scale, keep, pull, mix, mix - 1, spread]], device=DEVICE)
    following, denoised = reference.guided_step(
        x, outputs, table, torch.zeros(1, dtype=torch.int64, device=DEVICE), before, noise
    )
    plain, prompted = out * outputs[0] + skip * x, out * outputs[1] + skip * x
    truth = plain + scale * (prompted - plain)
    assert_equal(denoised, truth)
    assert_equal(following, keep * x - pull * (mix * truth - (mix - 1) * before) + spread * noise)


@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(0, 1.0, 4), (2, 1.0, 2), (0, 0.75, 2), (0, 0.85, 3)])
def test_draws_follow_the_probabilities(top_k: int, top_p: float, kept: int) -> None:
    """Over many draws each kept token comes as often as its renormalised probability says, no other ever."""
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0], device=DEVICE)
    logits = probabilities.log().clamp_min(-50).repeat(1, 40000, 1)
    uniform = torch.rand(40000, 4, generator=torch.Generator().manual_seed(0)).clamp(1e-9, 1 - 1e-7).to(DEVICE)
    drawn = reference.draw_code(logits, -torch.log(-torch.log(uniform)), 1.0, 1.0, top_k, top_p)
    expected = probabilities[:kept] / probabilities[:kept].sum()
    counts = torch.bincount(drawn, minlength=5) / 40000
    assert not counts[kept:].any()
    assert float((counts[:kept] - expected).abs().max()) < 0.01


def test_decode_attention() -> None:
    """torch's own attention over the filled part of the cache."""
    q, keys, values = normal(2, 3, 16), normal(2, 3, 20, 16, seed=1), normal(2, 3, 20, 16, seed=2)
    expected = F.scaled_dot_product_attention(q[:, :, None], keys[:, :, :13], values[:, :, :13])[:, :, 0]
    assert_equal(reference.decode_attention(q, keys, values, torch.tensor([13], device=DEVICE)), expected)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (3, 3), (5, 3), (9, 3), (4, 2), (8, 2)])
def test_spatial_norm_silu(frames: int, latents: int) -> None:
    """The condition resized first, the first frame of an odd number apart, and 1x1 convolutions made after."""
    x, condition = normal(1, 8, frames, 6, 10), normal(1, 4, latents, 3, 5, seed=1)
    to_scale, to_shift = normal(8, 4, 1, 1, 1, seed=2), normal(8, 4, 1, 1, 1, seed=3)
    weight, bias = normal(8, seed=4), normal(8, seed=5)
    if frames > 1 and frames % 2:
        parts = [
            F.interpolate(condition[:, :, :1], (1, 6, 10)),
            F.interpolate(condition[:, :, 1:], (frames - 1, 6, 10)),
        ]
        resized = torch.cat(parts, dim=2)
    else:
        resized = F.interpolate(condition, (frames, 6, 10))
    normed = F.group_norm(x, 4, weight, bias, 1e-6)
    expected = F.silu(normed * F.conv3d(resized, to_scale) + F.conv3d(resized, to_shift))
    scale, shift = F.conv3d(condition, to_scale), F.conv3d(condition, to_shift)
    assert_equal(reference.spatial_norm_silu(x, weight, bias, scale, shift, 4, 1e-6), expected)


def test_rgb_to_i420_is_undone_by_its_inverse() -> None:
    """Flat colours come back from their planes within what 8 bits allow."""
    colours = torch.rand(3, 50, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    planes = reference.rgb_to_i420((colours * 2 - 1)[:, :, None, None].expand(3, 50, 4, 4))
    luma, cb, cr = (planes.flatten(1)[:, place].float() for place in (0, 16, 20))
    luma, cb, cr = (luma - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    back = torch.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb])
    assert float((back - colours).abs().max()) < 0.01
