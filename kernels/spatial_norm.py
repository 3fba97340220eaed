"""GroupNorm conditioned on latents, with SiLU, of the published VAE's decoder (REFERENCE 4.3), channels last in memory.

The condition's 1x1 convolutions commute with nearest-neighbour resizing, so they are made at the latents' size and read
here where they are needed; the resized tensors never exist. Statistics come from one pass that keeps mean and squared
deviation of parts, joined without cancellation. The result may go straight to where the next convolution reads it.
Shapes: `B` batch, `C` channels, `T` frames, `H` x `W` size, lower case for the latents', `S` parts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import Backend, Bound, Uncovered, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import Tile, expect_floats, expect_rank, expect_shape, power_of_two

TILE = Tile(2048, 4)
PROGRAMS = 1024  # aimed at by the statistics: some eight for each processor of a large device
LARGEST_INT32 = 2**31 - 1
MOST_PARTS = 256  # the second kernel reads all parts of a group at once
LARGEST_JOIN = 16384  # parts times channels of a group


@jit
def channel_statistics_kernel(
    x: operand,
    means: operand,
    deviations: operand,
    channels: operand,
    size: operand,
    part_size: operand,
    parts: operand,
    ROWS: constexpr,
    BLOCK: constexpr,
) -> None:
    batch, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    first = part * part_size
    end = tl.minimum(first + part_size, size)
    count = 0.0
    mean = tl.zeros((BLOCK,), tl.float32)
    deviation = tl.zeros((BLOCK,), tl.float32)
    for begin in range(first, end, ROWS):
        place = begin + tl.arange(0, ROWS)
        mask = (place[:, None] < end) & inside[None, :]
        source = x + (batch * size + place[:, None]) * channels + column[None, :]
        values = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        new = tl.minimum(end - begin, ROWS).to(tl.float32)
        new_mean = tl.sum(values, axis=0) / new
        centred = tl.where(mask, values - new_mean[None, :], 0.0)
        gap = new_mean - mean
        deviation += tl.sum(centred * centred, axis=0) + gap * gap * count * new / (count + new)
        mean += gap * new / (count + new)
        count += new
    slot = (batch * parts + part) * channels + column
    tl.store(means + slot, mean, mask=inside)
    tl.store(deviations + slot, deviation, mask=inside)


@jit
def join_statistics_kernel(
    means: operand,
    deviations: operand,
    weight: operand,
    centres: operand,
    gains: operand,
    channels: operand,
    group_channels: operand,
    size: operand,
    part_size: operand,
    parts: operand,
    eps: operand,
    PARTS: constexpr,
    BLOCK: constexpr,
) -> None:
    batch, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, own = tl.arange(0, PARTS), tl.arange(0, BLOCK)
    channel = group * group_channels + own
    mask = (part[:, None] < parts) & (own[None, :] < group_channels)
    count = tl.where(mask, tl.minimum(size - part * part_size, part_size)[:, None], 0).to(tl.float32)
    total = size.to(tl.float32) * group_channels
    slot = (batch * parts + part[:, None]) * channels + channel[None, :]
    part_mean = tl.load(means + slot, mask=mask, other=0.0)
    mean = tl.sum(tl.sum(part_mean * count, axis=1), axis=0) / total
    gap = part_mean - mean
    spread = tl.load(deviations + slot, mask=mask, other=0.0) + gap * gap * count
    factor = tl.rsqrt(tl.sum(tl.sum(spread, axis=1), axis=0) / total + eps)
    gain = factor * tl.load(weight + channel, mask=own < group_channels, other=0.0).to(tl.float32)
    tl.store(centres + batch * channels + channel, mean + tl.zeros((BLOCK,), tl.float32), mask=own < group_channels)
    tl.store(gains + batch * channels + channel, gain, mask=own < group_channels)


@jit
def spatial_norm_kernel(
    x: operand,
    bias: operand,
    scale: operand,
    shift: operand,
    centres: operand,
    gains: operand,
    out: operand,
    out_batch: operand,
    channels: operand,
    size: operand,
    frames: operand,
    height: operand,
    width: operand,
    latents: operand,
    latent_height: operand,
    latent_width: operand,
    APART: constexpr,
    ROWS: constexpr,
    BLOCK: constexpr,
) -> None:
    batch = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < channels
    # Places stay in int32: seven divisions each would be slow in int64.
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    frame, row, line = place // (height * width), place // width % height, place % width
    if APART:
        # The first frame has a latent of its own; the others share the rest.
        latent = tl.where(frame == 0, 0, 1 + (frame - 1) * (latents - 1) // (frames - 1))
    else:
        latent = frame * latents // frames
    latent_row, latent_line = row * latent_height // height, line * latent_width // width
    cell = ((batch * latents + latent) * latent_height + latent_row) * latent_width + latent_line
    mask = (place[:, None] < size) & inside[None, :]
    offset = place[:, None].to(tl.int64) * channels + column[None, :]
    values = tl.load(x + batch * size * channels + offset, mask=mask, other=0.0).to(tl.float32)
    vector = batch * channels + column
    centre = tl.load(centres + vector, mask=inside, other=0.0)
    gain = tl.load(gains + vector, mask=inside, other=0.0)
    normed = (values - centre[None, :]) * gain[None, :]
    normed += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    source = cell[:, None] * channels + column[None, :]
    conditioned = normed * tl.load(scale + source, mask=mask, other=0.0).to(tl.float32)
    conditioned += tl.load(shift + source, mask=mask, other=0.0).to(tl.float32)
    result = conditioned * tl.sigmoid(conditioned)
    tl.store(out + batch * out_batch + offset, result.to(out.dtype.element_ty), mask=mask)


def spatial_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    groups: int,
    eps: float,
    out: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """GroupNorm, times scale plus shift read at the nearest latent, SiLU.

    Args:
        x: [B, C, T, H, W] float.
        weight, bias: [C] float.
        scale, shift: [B, C, t, h, w] float: the condition's convolutions at the latents' size. Of an odd T > 1, frame 0
            belongs to latent 0 and the other frames to the other latents.
        groups: divides C.
        out: [B, C, T, H, W] to write to: frames of a tensor whose channels are last in memory.

    Returns:
        `out`, or else [B, C, T, H, W] in the dtype of `x`; new memory, channels last.

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
    if out is not None:
        expect_shape("out", out, x.shape)
        if not out[:1].is_contiguous(memory_format=torch.channels_last_3d):
            raise ValueError(f"out must have its channels last in memory, not strides {out.stride()}")
    expect_floats(x=x, weight=weight, bias=bias, scale=scale, shift=shift)
    operands = x, weight, bias, scale, shift
    return dispatch(backend, _spatial_norm_silu, spatial_norm_silu_reference, *operands, groups, eps, out)


def spatial_norm_silu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    groups: int,
    eps: float,
    out: Tensor | None = None,
) -> Tensor:
    scale, shift = resize_nearest(scale, *x.shape[2:]), resize_nearest(shift, *x.shape[2:])
    conditioned = F.group_norm(x, groups, weight, bias, eps) * scale + shift
    return F.silu(conditioned) if out is None else silu_into(conditioned, out)


def silu_into(x: Tensor, out: Tensor) -> Tensor:
    """SiLU of `x`, written to `out`."""
    result: Tensor = torch.ops.aten.silu.out(x, out=out)
    return result


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
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, out: Tensor | None
) -> Tensor:
    x, scale, shift = (part.contiguous(memory_format=torch.channels_last_3d) for part in (x, scale, shift))
    batch, channels, frames, height, width = x.shape
    group_channels, size = channels // groups, frames * height * width
    block = max(power_of_two(channels), 16)
    rows = max(TILE.elements // block, 1)
    wanted = min(max(PROGRAMS // batch, 1), MOST_PARTS, max(LARGEST_JOIN // power_of_two(group_channels), 1))
    part_size = -(-size // (wanted * rows)) * rows
    parts = -(-size // part_size)
    if size > LARGEST_INT32 - TILE.elements or block > LARGEST_JOIN:
        raise Uncovered(f"places are counted in int32 and channels fit a program: {size} and {channels} are more")
    means, deviations = (torch.empty(batch, parts, channels, device=x.device) for _ in range(2))
    centres, gains = (torch.empty(batch, channels, device=x.device) for _ in range(2))
    result = torch.empty_like(x) if out is None else out
    start(
        channel_statistics_kernel,
        (batch, parts),
        *(x, means, deviations, channels, size, part_size, parts),
        warps=TILE.warps,
        ROWS=rows,
        BLOCK=block,
    )
    start(
        join_statistics_kernel,
        (batch, groups),
        *(means, deviations, weight, centres, gains, channels, group_channels, size, part_size, parts, eps),
        warps=TILE.warps,
        PARTS=power_of_two(parts),
        BLOCK=power_of_two(group_channels),
    )
    start(
        spatial_norm_kernel,
        (-(-size // rows), batch),
        *(x, bias, scale, shift, centres, gains, result, result.stride(0), channels, size),
        *(frames, height, width, *scale.shape[2:]),
        warps=TILE.warps,
        APART=frames > 1 and frames % 2 == 1,
        ROWS=rows,
        BLOCK=block,
    )
    return result


def spatial_norm_silu_bound(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> Bound:
    """x read twice, since statistics need all of it before the first result, and written once; 13 operations."""
    vectors = weight.nbytes + bias.nbytes
    return Bound(3 * x.nbytes + scale.nbytes + shift.nbytes + vectors, 13 * x.numel())
