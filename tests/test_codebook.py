"""Nearest code and codes back to features against their references."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tolerances import DEVICE, DTYPES, assert_close, fused, normal, widened

from kernels import codebook
from kernels.tools import launch

SHAPES = [(1, 1, 1), (63, 100, 16), (100, 63, 9), (17, 431, 63), (31, 64, 16)]


@pytest.mark.parametrize("cosine", [False, True], ids=["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nearest_code(shape: tuple[int, int, int], dtype: torch.dtype, cosine: bool) -> None:
    """nearest_code finds the reference's code in every row."""
    rows, codes, width = shape
    x = normal(rows, width + 3, dtype=dtype)[:, :width]
    book = normal(codes, width, seed=1)
    book = (F.normalize(book, dim=-1) if cosine else book).to(dtype)
    expected = codebook.nearest_code_reference(x.float(), book.float(), cosine)
    assert torch.equal(fused(codebook.nearest_code, x, book, cosine), expected)


def test_nearest_code_reference() -> None:
    """Distances written out pair by pair."""
    x, book = normal(20, 8), normal(9, 8, seed=1)
    assert torch.equal(codebook.nearest_code_reference(x, book, False), torch.cdist(x, book).argmin(1))
    angles = F.cosine_similarity(x[:, None], book[None], dim=-1)
    assert torch.equal(codebook.nearest_code_reference(x, F.normalize(book, dim=-1), True), angles.argmax(1))


@pytest.mark.parametrize("cosine", [False, True], ids=["euclidean", "cosine"])
def test_nearest_code_of_equals_is_the_lowest(cosine: bool) -> None:
    """Codes that occur again, in the same block of codes and in later ones, never win."""
    # Halves, of which all products are exact: else their last bits would depend on a code's place.
    places = torch.tensor(list(itertools.combinations(range(16), 4))[::60][:30])
    book = torch.zeros(30, 16).scatter(1, places, 0.5).repeat(5, 1).to(DEVICE)
    for find in (codebook.nearest_code_reference, lambda *operands: fused(codebook.nearest_code, *operands)):
        assert torch.equal(find(book[:30] * 1.25, book, cosine), torch.arange(30, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lookup_project(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """lookup_project projects the codes that the indices name."""
    rows, codes, width = shape
    indices = (torch.arange(2 * rows) * 7 % codes).to(DEVICE).view(2, rows)
    arguments = (
        indices,
        normal(codes, width, dtype=dtype, seed=2),
        normal(100, width, dtype=dtype),
        normal(100, seed=1),
    )
    result = fused(codebook.lookup_project, *arguments)
    assert_close(result, codebook.lookup_project_reference(*widened(*arguments)), dtype)


def test_lookup_outside_the_codebook_is_nan() -> None:
    """An index that no code has gives a row of NaN and leaves the others alone."""
    indices = torch.tensor([3, -1, 10, 9], device=DEVICE)
    result = fused(codebook.lookup_project, indices, normal(10, 16), normal(20, 16), normal(20))
    assert result.isnan().all(1).tolist() == [False, True, True, False]
    assert not result[[0, 3]].isnan().any()


def test_refuses_wrong_operands() -> None:
    """Widths that differ, wrong dtypes and codes too wide for a tile are named."""
    with pytest.raises(ValueError, match=r"x must have shape \(3, 16\)"):
        codebook.nearest_code(normal(3, 8), normal(5, 16), False)
    with pytest.raises(ValueError, match="indices must be torch.int64"):
        codebook.lookup_project(torch.arange(3).int(), normal(5, 16), normal(4, 16), normal(4))
    with pytest.raises(launch.Uncovered, match="at most 128"), launch.recording():
        codebook._nearest_code(normal(3, 200), normal(5, 200), False)
