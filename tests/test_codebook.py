"""Nearest code and codes back to features against their references."""

import pytest
import torch
from tolerances import DEVICE, DTYPES, assert_close, fused, normal, widened

from kernels import codebook, reference
from kernels.tools import launch

SHAPES = [(1, 1, 1), (63, 100, 16), (100, 63, 9), (17, 431, 63), (31, 64, 16)]


@pytest.mark.parametrize("cosine", [False, True], ids=["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nearest_code(shape: tuple[int, int, int], dtype: torch.dtype, cosine: bool) -> None:
    """nearest_code finds the reference's code in every row."""
    rows, codes, width = shape
    x = normal(rows, width + 3, dtype=dtype)[:, :width]
    book = normal(codes, width, dtype=dtype, seed=1)
    assert torch.equal(fused(codebook.nearest_code, x, book, cosine), reference.nearest_code(x, book, cosine))


@pytest.mark.parametrize("cosine", [False, True], ids=["euclidean", "cosine"])
def test_nearest_code_of_equals_is_the_lowest(cosine: bool) -> None:
    """Codes that occur again, in the same block of codes and in later ones, never win."""
    book = normal(30, 16).repeat(5, 1)
    result = fused(codebook.nearest_code, book[:30] * 1.01, book, cosine)
    assert torch.equal(result, torch.arange(30, device=DEVICE))


def test_metrics_differ() -> None:
    """A long code in the same direction is nearest by angle, a short one beside it by distance."""
    x, book = torch.tensor([[1.0, 0.0]], device=DEVICE), torch.tensor([[9.0, 0.0], [0.9, 0.1]], device=DEVICE)
    assert fused(codebook.nearest_code, x, book, True).tolist() == [0]
    assert fused(codebook.nearest_code, x, book, False).tolist() == [1]


@pytest.mark.parametrize("cosine", [False, True], ids=["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lookup_project(shape: tuple[int, int, int], dtype: torch.dtype, cosine: bool) -> None:
    """lookup_project projects the codes that the indices name."""
    rows, codes, width = shape
    weight, bias = normal(100, width, dtype=dtype), normal(100, seed=1)
    indices = (torch.arange(rows) * 7 % codes).to(DEVICE)
    arguments = (weight, bias, normal(codes, width, dtype=dtype, seed=2), indices, cosine)
    assert_close(fused(codebook.lookup_project, *arguments), reference.lookup_project(*widened(*arguments)), dtype)


def test_lookup_outside_the_codebook_is_nan() -> None:
    """An index that no code has gives a row of NaN and leaves the others alone."""
    indices = torch.tensor([3, -1, 10, 9], device=DEVICE)
    result = fused(codebook.lookup_project, normal(20, 16), normal(20), normal(10, 16), indices, False)
    assert result.isnan().all(1).tolist() == [False, True, True, False]
    assert not result[[0, 3]].isnan().any()


def test_refuses_wrong_operands() -> None:
    """Widths that differ, wrong dtypes and codes too wide for a tile are named."""
    with pytest.raises(ValueError, match=r"x must have shape \(3, 16\)"):
        codebook.nearest_code(normal(3, 8), normal(5, 16), False)
    with pytest.raises(ValueError, match="indices must be torch.int64"):
        codebook.lookup_project(normal(4, 16), normal(4), normal(5, 16), torch.arange(3).int(), False)
    with pytest.raises(ValueError, match="codebook must be dense"):
        codebook.nearest_code(normal(3, 8), normal(8, 8).T, False)
    with pytest.raises(launch.Uncovered, match="at most 128"), launch.recording():
        codebook._nearest_code(normal(3, 200), normal(5, 200), False)
