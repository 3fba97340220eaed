"""Block sizes and the checks that every wrapper shares.

Shapes: `R` rows, `D` width of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.tools.launch import Uncovered

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TILE_ELEMENTS = 2048  # elements a program holds of each operand: more would spill, fewer would start too many programs
ELEMENTS_PER_WARP = 512  # 16 to a thread: two 16-byte loads in bf16
LARGEST_BLOCK = 16384  # widest row that one program can hold


@dataclass(frozen=True, slots=True)
class Tile:
    """A program's share: elements of each operand at once, a power of two, and the warps that work on them."""

    elements: int
    warps: int


@dataclass(frozen=True, slots=True)
class RowTile:
    """A program's tile: `rows` whole rows of `block` >= width elements, and the warps that share it."""

    rows: int
    block: int
    warps: int

    def programs(self, rows: int) -> int:
        """Programs that cover so many rows."""
        return -(-rows // self.rows)


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value` >= 1."""
    return 1 << (value - 1).bit_length()


def row_tile(width: int) -> RowTile:
    """The tile for rows of `width` elements.

    Raises:
        Uncovered: a row is wider than one program can hold.
    """
    block = max(power_of_two(width), 16)
    if block > LARGEST_BLOCK:
        raise Uncovered(f"rows of {width} elements do not fit a program; the widest is {LARGEST_BLOCK}")
    elements = max(TILE_ELEMENTS, block)
    return RowTile(elements // block, block, min(max(elements // ELEMENTS_PER_WARP, 1), 16))


def expect_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError unless `tensor` has exactly `shape`."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, not {tuple(tensor.shape)}")


def expect_rank(name: str, tensor: Tensor, rank: int) -> None:
    """Raises ValueError unless `tensor` has `rank` dimensions and elements."""
    if tensor.ndim != rank or tensor.numel() == 0:
        raise ValueError(f"{name} must have {rank} dimensions, none empty, not shape {tuple(tensor.shape)}")


def expect_dtype(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """Raises ValueError unless `tensor` has one of `dtypes`."""
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(map(str, dtypes))}, not {tensor.dtype}")


def expect_floats(**tensors: Tensor) -> None:
    """Raises ValueError unless all tensors have elements, one of `FLOATS` as dtype, and are on one device."""
    for name, tensor in tensors.items():
        expect_dtype(name, tensor)
        if tensor.numel() == 0:
            raise ValueError(f"{name} must have elements, not shape {tuple(tensor.shape)}")
    expect_together(**tensors)


def expect_together(**tensors: Tensor) -> None:
    """Raises ValueError unless all tensors are on one device."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"all operands must be on one device, not {devices}")


def dense_rows(x: Tensor) -> Tensor:
    """`x`, copied if its last dimension is not dense."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()
