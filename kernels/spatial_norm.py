"""GroupNorm conditioned on latents, with SiLU, of the published VAE's decoder (REFERENCE 4.3).

The condition's 1x1 convolutions commute with nearest-neighbour resizing, so they are made at the latents' size and read
here where they are needed; the resized tensors never exist. Statistics come from one pass that keeps mean and squared
deviation of parts, joined without cancellation. Shapes: `B` batch, `C` channels, `T` frames, `H` x `W` size, lower case
for the latents', `S` parts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import Backend, Bound, Uncovered, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import Tile, expect_floats, expect_rank, expect_shape, power_of_two

TILE = Tile(2048, 4)
PROGRAMS = 1024  # aimed at by the statistics: some eight for each processor of a large device
LARGEST_INT32 = 2**31 - 1
MOST_PARTS = 256  # each program of the second pass reads all parts of its group


@jit
def group_statistics_kernel(
    x: operand, means: operand, deviations: operand, size: operand, part_size: operand, parts: operand, BLOCK: constexpr
) -> None:
    group, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = part.to(tl.int64) * part_size
    end = tl.minimum(first + part_size, size)
    count = 0.0
    mean = 0.0
    deviation = 0.0
    for begin in range(first, end, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        mask = place < end
        values = tl.load(x + group * size + place, mask=mask, other=0.0).to(tl.float32)
        new = tl.minimum(end - begin, BLOCK).to(tl.float32)
        new_mean = tl.sum(values, axis=0) / new
        centred = tl.where(mask, values - new_mean, 0.0)
        gap = new_mean - mean
        deviation += tl.sum(centred * centred, axis=0) + gap * gap * count * new / (count + new)
        mean += gap * new / (count + new)
        count += new
    tl.store(means + group * parts + part, mean)
    tl.store(deviations + group * parts + part, deviation)


@jit
def spatial_norm_kernel(
    x: operand,
    weight: operand,
    bias: operand,
    scale: operand,
    shift: operand,
    means: operand,
    deviations: operand,
    out: operand,
    channels: operand,
    group_channels: operand,
    size: operand,
    part_size: operand,
    parts: operand,
    frames: operand,
    height: operand,
    width: operand,
    latents: operand,
    latent_height: operand,
    latent_width: operand,
    eps: operand,
    APART: constexpr,
    PARTS: constexpr,
    BLOCK: constexpr,
) -> None:
    plane = tl.program_id(0).to(tl.int64)
    channel = plane % channels
    group = plane // group_channels
    total = group_channels.to(tl.int64) * size
    part = tl.arange(0, PARTS)
    begin = part.to(tl.int64) * part_size
    count = tl.where(part < parts, tl.minimum(total - begin, part_size), 0).to(tl.float32)
    part_mean = tl.load(means + group * parts + part, mask=part < parts, other=0.0)
    mean = tl.sum(part_mean * count, axis=0) / total.to(tl.float32)
    gap = part_mean - mean
    spread = tl.load(deviations + group * parts + part, mask=part < parts, other=0.0) + gap * gap * count
    factor = tl.rsqrt(tl.sum(spread, axis=0) / total.to(tl.float32) + eps)
    # Places inside a channel's volume stay in int32: seven divisions each would be slow in int64.
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    frame, row, column = place // (height * width), place // width % height, place % width
    if APART:
        # The first frame has a latent of its own; the others share the rest.
        latent = tl.where(frame == 0, 0, 1 + (frame - 1) * (latents - 1) // (frames - 1))
    else:
        latent = frame * latents // frames
    latent_row, latent_column = row * latent_height // height, column * latent_width // width
    cell = ((plane * latents + latent) * latent_height + latent_row) * latent_width + latent_column
    values = tl.load(x + plane * size + place, mask=mask, other=0.0).to(tl.float32)
    gain = tl.load(weight + channel).to(tl.float32)
    normed = (values - mean) * factor * gain + tl.load(bias + channel).to(tl.float32)
    conditioned = normed * tl.load(scale + cell, mask=mask, other=0.0).to(tl.float32)
    conditioned += tl.load(shift + cell, mask=mask, other=0.0).to(tl.float32)
    result = conditioned * tl.sigmoid(conditioned)
    tl.store(out + plane * size + place, result.to(out.dtype.element_ty), mask=mask)


def spatial_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    groups: int,
    eps: float,
    backend: Backend = "auto",
) -> Tensor:
    """GroupNorm, times scale plus shift read at the nearest latent, SiLU.

    Args:
        x: [B, C, T, H, W] float.
        weight, bias: [C] float.
        scale, shift: [B, C, t, h, w] float: the condition's convolutions at the latents' size. Of an odd T > 1, frame 0
            belongs to latent 0 and the other frames to the other latents.
        groups: divides C.

    Returns:
        [B, C, T, H, W], the dtype of `x`; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_rank("x", x, 5)
    expect_rank("scale", scale, 5)
    batch, channels, frames = x.shape[:3]
    expect_shape("scale", scale, (batch, channels, *scale.shape[2:]))
    expect_shape("shift", shift, scale.shape)
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide {channels} channels, not {groups}")
    if frames > 1 and frames % 2 and scale.shape[2] < 2:
        raise ValueError(f"{frames} frames, an odd number, need at least 2 latents, not {scale.shape[2]}")
    for name, vector in (("weight", weight), ("bias", bias)):
        expect_shape(name, vector, (channels,))
    expect_floats(x=x, weight=weight, bias=bias, scale=scale, shift=shift)
    operands = x, weight, bias, scale, shift
    return dispatch(backend, _spatial_norm_silu, spatial_norm_silu_reference, *operands, groups, eps)


def spatial_norm_silu_reference(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> Tensor:
    scale, shift = resize_nearest(scale, *x.shape[2:]), resize_nearest(shift, *x.shape[2:])
    return F.silu(F.group_norm(x, groups, weight, bias, eps) * scale + shift)


def resize_nearest(x: Tensor, frames: int, height: int, width: int) -> Tensor:
    """[B, C, T, H, W] in another size; an odd number of frames keeps its first apart, as the first latent is one frame.

    Returns:
        [B, C, frames, height, width].
    """
    if frames > 1 and frames % 2:
        first = F.interpolate(x[:, :, :1], (1, height, width))
        return torch.cat([first, F.interpolate(x[:, :, 1:], (frames - 1, height, width))], dim=2)
    return F.interpolate(x, (frames, height, width))


def _spatial_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> Tensor:
    x, scale, shift = x.contiguous(), scale.contiguous(), shift.contiguous()
    batch, channels, frames, height, width = x.shape
    group_channels, size = channels // groups, frames * height * width
    if size > LARGEST_INT32 - TILE.elements:
        raise Uncovered(f"a channel's volume is counted in int32, {size} is more")
    total = group_channels * size
    wanted = min(max(PROGRAMS // (batch * groups), 1), MOST_PARTS)
    part_size = -(-total // (wanted * TILE.elements)) * TILE.elements
    parts = -(-total // part_size)
    means, deviations = (torch.empty(batch * groups, parts, device=x.device) for _ in range(2))
    out = torch.empty_like(x)
    start(
        group_statistics_kernel,
        (batch * groups, parts),
        *(x, means, deviations, total, part_size, parts),
        warps=TILE.warps,
        BLOCK=TILE.elements,
    )
    start(
        spatial_norm_kernel,
        (batch * channels, -(-size // TILE.elements)),
        *(x, weight, bias, scale, shift, means, deviations, out, channels, group_channels, size, part_size, parts),
        *(frames, height, width, *scale.shape[2:], eps),
        warps=TILE.warps,
        APART=frames > 1 and frames % 2 == 1,
        PARTS=power_of_two(parts),
        BLOCK=TILE.elements,
    )
    return out


def spatial_norm_silu_bound(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> Bound:
    """x read twice, since statistics need all of it before the first result, and written once; 13 operations."""
    vectors = weight.nbytes + bias.nbytes
    return Bound(3 * x.nbytes + scale.nbytes + shift.nbytes + vectors, 13 * x.numel())
