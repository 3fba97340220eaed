"""A pattern in the picture that machines read back: number and time of the frame, checked. Drawn only when asked for.

`LAYOUT`: 96 bits in rows of square cells from the top left corner of the luma plane, black for 0 and white for 1:
a sync byte, the frame number (32 bits), a millisecond clock (32 bits), a CRC over these two (16 bits), the sync byte
inverted. Cells are large against the block transform of VP8 and H.264, so the bits survive low bit rates.
Shapes: `H` x `W` picture size; an I420 frame is [3H/2, W] uint8.
"""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CELL_PX = 8
SYNC = 0b10100110
BITS = 96
BLACK, WHITE, GREY = 16, 235, 128  # luma of video range; GREY is also neutral chroma
MARGIN_PX = 2  # of a cell's edge that the reader ignores
CLOCK_WRAP_MS = 1 << 32


@dataclass(frozen=True, slots=True)
class Mark:
    """The content of a marker."""

    index: int  # frame number, modulo 2**32
    clock_ms: int  # time.monotonic() in milliseconds when the frame went on air, modulo CLOCK_WRAP_MS


def fits(height: int, width: int) -> bool:
    """True if a picture of this size has room for a marker."""
    columns = width // CELL_PX
    # The lower half of the picture stays free, and chroma planes have whole lines.
    return columns > 0 and -(-BITS // columns) * CELL_PX <= height // 2 and width % 2 == 0 and height % 4 == 0


def lines(width: int) -> int:
    """How many lines a marker takes of a picture of this width."""
    return _grid(width)[1] * CELL_PX


def draw(i420: npt.NDArray[np.uint8], mark: Mark) -> None:
    """Draws `mark` into a frame [3H/2, W] in place. Raises ValueError when the picture is too small."""
    height, width = i420.shape[0] * 2 // 3, i420.shape[1]
    if not fits(height, width):
        raise ValueError(f"a picture of {height}x{width} has no room for a marker of {BITS} cells of {CELL_PX} px")
    columns, rows = _grid(width)
    payload = struct.pack(">II", mark.index % CLOCK_WRAP_MS, mark.clock_ms % CLOCK_WRAP_MS)
    word = struct.pack(">B8sHB", SYNC, payload, binascii.crc_hqx(payload, 0xFFFF), SYNC ^ 0xFF)
    bits = np.zeros(columns * rows, np.uint8)
    bits[:BITS] = np.unpackbits(np.frombuffer(word, np.uint8))
    cells = np.where(bits.reshape(rows, columns) == 1, WHITE, BLACK).astype(np.uint8)
    i420[: rows * CELL_PX, : columns * CELL_PX] = cells.repeat(CELL_PX, 0).repeat(CELL_PX, 1)
    # Neutral chroma below the cells keeps colour edges out of them.
    chroma = i420[height:].reshape(2, height // 2, width // 2)
    chroma[:, : rows * CELL_PX // 2, : columns * CELL_PX // 2] = GREY


def read(y_plane: npt.NDArray[np.uint8]) -> Mark | None:
    """Reads the marker from a luma plane [H, W]; None when there is none or it is damaged."""
    height, width = y_plane.shape
    if not fits(height, width):
        return None
    columns, rows = _grid(width)
    cells = y_plane[: rows * CELL_PX, : columns * CELL_PX].reshape(rows, CELL_PX, columns, CELL_PX)
    inner = slice(MARGIN_PX, CELL_PX - MARGIN_PX)
    means = cells[:, inner, :, inner].mean(axis=(1, 3)).ravel()[:BITS]
    word = np.packbits(means > (BLACK + WHITE) / 2).tobytes()
    sync, payload, crc, inverse = struct.unpack(">B8sHB", word)
    if sync != SYNC or inverse != SYNC ^ 0xFF or crc != binascii.crc_hqx(payload, 0xFFFF):
        return None
    index, clock_ms = struct.unpack(">II", payload)
    return Mark(index, clock_ms)


def _grid(width: int) -> tuple[int, int]:
    """Columns and rows of cells."""
    columns = width // CELL_PX
    return columns, -(-BITS // columns)
