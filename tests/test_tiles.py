"""Block sizes and the checks that wrappers share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.tools import launch, tiles


@given(st.integers(1, tiles.LARGEST_BLOCK), st.integers(1, 10**6))
def test_row_tile_covers(width: int, rows: int) -> None:
    """A tile holds whole rows, its sides are powers of two, and its programs cover all rows without a spare one."""
    tile = tiles.row_tile(width)
    assert tile.block >= width
    for side in (tile.block, tile.rows, tile.warps):
        assert side & (side - 1) == 0
    assert (tile.programs(rows) - 1) * tile.rows < rows <= tile.programs(rows) * tile.rows


def test_row_tile_refuses_rows_too_wide() -> None:
    """A row that no program can hold is left to the reference."""
    with pytest.raises(launch.Uncovered, match="the widest is 16384"):
        tiles.row_tile(tiles.LARGEST_BLOCK + 1)


@given(st.integers(1, 2**40))
def test_power_of_two(value: int) -> None:
    """power_of_two is the smallest that is not below its argument."""
    power = tiles.power_of_two(value)
    assert power & (power - 1) == 0
    assert power // 2 < value <= power


def test_expectations_name_what_is_wrong() -> None:
    """Each check names the operand, what it must be and what it is."""
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(3, 2\), not \(2, 3\)"):
        tiles.expect_shape("x", x, (3, 2))
    with pytest.raises(ValueError, match=r"x must have 3 dimensions, none empty, not shape \(2, 3\)"):
        tiles.expect_rank("x", x, 3)
    with pytest.raises(ValueError, match=r"x must be torch.float32 or .*, not torch.float64"):
        tiles.expect_dtype("x", x.double())
    with pytest.raises(ValueError, match="one device"):
        tiles.expect_together(x=x, y=torch.zeros(3, device="meta"))
    with pytest.raises(ValueError, match=r"x must have elements, not shape \(0, 3\)"):
        tiles.expect_floats(x=x[:0])


def test_only_gaps_in_a_row_are_copied() -> None:
    """Rows of any stride are taken as they are; strided rows are copied."""
    x = torch.arange(12.0).view(3, 4)
    assert tiles.dense_rows(x[:, :2]).data_ptr() == x.data_ptr()
    assert tiles.dense_rows(x.T).is_contiguous() and torch.equal(tiles.dense_rows(x.T), x.T)
