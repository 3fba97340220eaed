"""Pictures as encoders want them: RGB of the VAE's last convolution to I420 planes, in one pass.

BT.601, limited range, chroma averaged over 2x2 pixels. Shapes: `T` frames, `H` x `W` picture size, both even.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import Tile, expect_dtype, expect_rank, expect_shape

TILE = Tile(512, 4)  # elements are squares of 2x2 pixels
_LUMA = ((65.481, 128.553, 24.966),)
_CHROMA = ((-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))


@jit
def load_channel(source: operand, mask: operand) -> operand:
    value = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    return tl.minimum(tl.maximum((value + 1.0) * 0.5, 0.0), 1.0)


@jit
def to_byte(value: operand) -> operand:
    return tl.floor(value + 0.5).to(tl.uint8)


@jit
def i420_kernel(
    rgb: operand,
    out: operand,
    height: operand,
    width: operand,
    rgb_channel: operand,
    rgb_frame: operand,
    rgb_row: operand,
    rgb_column: operand,
    BLOCK: constexpr,
) -> None:
    frame = tl.program_id(0).to(tl.int64)
    square = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    half_width = width // 2
    squares = height // 2 * half_width
    mask = square < squares
    row, column = (square // half_width * 2).to(tl.int64), square % half_width * 2
    picture = out + frame * (squares * 6)
    red_sum = tl.zeros((BLOCK,), tl.float32)
    green_sum = tl.zeros((BLOCK,), tl.float32)
    blue_sum = tl.zeros((BLOCK,), tl.float32)
    for corner in tl.static_range(4):
        y, x = row + corner // 2, column + corner % 2
        source = rgb + frame * rgb_frame + y * rgb_row + x.to(tl.int64) * rgb_column
        red = load_channel(source, mask)
        green = load_channel(source + rgb_channel, mask)
        blue = load_channel(source + 2 * rgb_channel, mask)
        luma = 16.0 + 65.481 * red + 128.553 * green + 24.966 * blue
        tl.store(picture + y * width + x, to_byte(luma), mask=mask)
        red_sum, green_sum, blue_sum = red_sum + red, green_sum + green, blue_sum + blue
    red, green, blue = red_sum * 0.25, green_sum * 0.25, blue_sum * 0.25
    cb = 128.0 - 37.797 * red - 74.203 * green + 112.0 * blue
    cr = 128.0 + 112.0 * red - 93.786 * green - 18.214 * blue
    tl.store(picture + squares * 4 + square, to_byte(cb), mask=mask)
    tl.store(picture + squares * 5 + square, to_byte(cr), mask=mask)


def rgb_to_i420(rgb: Tensor, backend: Backend = "auto") -> Tensor:
    """Planes Y, U, V of each frame, one after the other.

    Args:
        rgb: [3, T, H, W] float, H and W even, nominally in [-1, 1] and clamped to it; any strides, since
            convolutions may return channels last.

    Returns:
        [T, 3H/2, W] uint8; new memory on the same device.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    expect_rank("rgb", rgb, 4)
    frames, height, width = rgb.shape[1:]
    expect_shape("rgb", rgb, (3, frames, height, width))
    expect_dtype("rgb", rgb)
    if height % 2 or width % 2:
        raise ValueError(f"I420 needs an even height and width, not {height}x{width}")
    return dispatch(backend, _rgb_to_i420, rgb_to_i420_reference, rgb)


def rgb_to_i420_reference(rgb: Tensor) -> Tensor:
    # Each plane is one product with its weights, whatever runs around it casts: a pass each is what a CPU saves by it.
    with torch.autocast("cpu" if rgb.is_meta else rgb.device.type, enabled=False):  # there is none for meta tensors
        rgb = rgb.float().clamp(-1, 1).contiguous()
        frames, height, width = rgb.shape[1:]
        luma = _bytes(rgb, _LUMA, 16.0).view(frames, -1)
        cb, cr = _bytes(F.avg_pool2d(rgb, 2), _CHROMA, 128.0).view(2, frames, -1)
    return torch.cat([luma, cb, cr], dim=1).view(frames, height * 3 // 2, width)


def _bytes(rgb: Tensor, weights: tuple[tuple[float, float, float], ...], offset: float) -> Tensor:
    """Channels [3, ...] in -1..1 as 0..1, summed by each row of weights, plus an offset, rounded: uint8 [R, N]."""
    half = torch.tensor(weights, device=rgb.device) / 2
    bias = half.sum(dim=1, keepdim=True) + (offset + 0.5)  # all that is positive is rounded by being cut off
    return torch.addmm(bias, half, rgb.flatten(1)).to(torch.uint8)


def _rgb_to_i420(rgb: Tensor) -> Tensor:
    frames, height, width = rgb.shape[1:]
    out = torch.empty(frames, height * 3 // 2, width, dtype=torch.uint8, device=rgb.device)
    start(
        i420_kernel,
        (frames, -(-(height * width // 4) // TILE.elements)),
        *(rgb, out, height, width, rgb.stride(0), rgb.stride(1), rgb.stride(2), rgb.stride(3)),
        warps=TILE.warps,
        BLOCK=TILE.elements,
    )
    return out


def rgb_to_i420_bound(rgb: Tensor) -> Bound:
    """RGB read once, 12 bits a pixel written; 15 operations a pixel."""
    pixels = rgb.numel() // 3
    return Bound(rgb.nbytes + pixels * 3 // 2, 15 * pixels)
