"""Block sizes, as measured on the device or else the usual ones, and the checks that every wrapper shares.

Shapes: `R` rows, `D` width of a row.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.tools import memo
from kernels.tools.launch import Uncovered

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TILE_ELEMENTS = 2048  # elements a program holds of each operand: more would spill, fewer would start too many programs
ELEMENTS_PER_WARP = 512  # 16 to a thread: two 16-byte loads in bf16
LARGEST_BLOCK = 16384  # widest row that one program can hold


SUBJECT = "tiles"  # of `memo`

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program takes on: elements of each operand at once, a power of two, and the warps that share them."""

    elements: int
    warps: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A tile that every kernel takes for now, and the keys of those that asked for one."""

    tile: Tile
    asked: set[str] = field(default_factory=set)


_trial: ContextVar[Trial | None] = ContextVar("trial", default=None)


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


@contextlib.contextmanager
def trying(tile: Tile) -> Iterator[Trial]:
    """Inside, all kernels take `tile`, whatever was measured."""
    trial = Trial(tile)
    token = _trial.set(trial)
    try:
        yield trial
    finally:
        _trial.reset(token)


@functools.cache
def measured(device: torch.device) -> dict[str, Tile]:
    """The tiles that `python -m kernels.tune` found on this device, read once."""
    found: dict[str, Tile] = {}
    for key, sides in memo.recall(SUBJECT, device).items():
        try:
            found[key] = Tile(int(sides["elements"]), int(sides["warps"]))
        except (KeyError, TypeError, ValueError):
            logger.warning("tile %s of %s is not one and is passed over: %r", key, memo.device_key(device), sides)
    return found


def tile(kernel: str, size: int, device: torch.device, usual: Tile) -> Tile:
    """What is fastest for a kernel at sizes of this class, up to the next power of two; `usual` if never measured."""
    key = f"{kernel}/{power_of_two(size)}"
    trial = _trial.get()
    if trial is not None:
        trial.asked.add(key)
        return trial.tile
    return measured(device).get(key, usual)


def row_tile(kernel: str, width: int, device: torch.device) -> RowTile:
    """The tile for rows of `width` elements.

    Raises:
        Uncovered: a row is wider than one program can hold.
    """
    block = max(power_of_two(width), 16)
    if block > LARGEST_BLOCK:
        raise Uncovered(f"rows of {width} elements do not fit a program; the widest is {LARGEST_BLOCK}")
    usual = max(TILE_ELEMENTS, block)
    chosen = tile(kernel, width, device, Tile(usual, min(max(usual // ELEMENTS_PER_WARP, 1), 16)))
    return RowTile(max(chosen.elements // block, 1), block, chosen.warps)


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


def expect_together(**tensors: Tensor) -> None:
    """Raises ValueError unless all tensors are on one device and their last dimensions are dense."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"all operands must be on one device, not {devices}")
    for name, tensor in tensors.items():
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be dense in its last dimension, not of stride {tensor.stride(-1)}")
