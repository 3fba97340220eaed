"""Comparing results with a case."""

from __future__ import annotations

import pytest
import torch

from engine.published.reference_case import Case, relative_error


def case(**tensors: torch.Tensor) -> Case:
    return Case("case", {"case": "kind"}, torch.device("cpu"), tensors, {})


def test_error_is_relative_to_the_largest_value() -> None:
    """Half a percent of the largest value is an error of 0.005 wherever it is; NaN passes for nothing."""
    expected = torch.tensor([0.0, -200.0, 3.0])
    assert relative_error(expected + torch.tensor([1.0, 0.0, 0.0]), expected) == pytest.approx(0.005)
    looked = case(a=expected)
    looked.close("a", expected * float("nan"))
    assert not looked.comparisons[0].passed


def test_shapes_must_agree_but_for_ones() -> None:
    """A dimension of 1 more or less does not matter; any other difference raises with both shapes."""
    looked = case(a=torch.zeros(1, 2, 3), i=torch.zeros(1, 4, dtype=torch.int64))
    looked.close("a", torch.zeros(2, 1, 3))
    looked.same("i", torch.zeros(4, dtype=torch.int32))
    assert all(comparison.passed for comparison in looked.comparisons)
    with pytest.raises(ValueError, match=r"\[3, 2\].*\[1, 2, 3\]"):
        looked.close("a", torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"\[5\].*\[1, 4\]"):
        looked.same("i", torch.zeros(5))


def test_indices_must_be_equal() -> None:
    """One index that differs by one fails, and is counted."""
    looked = case(i=torch.tensor([1, 2, 1_000_000]))
    looked.same("i", torch.tensor([1, 2, 1_000_001]))
    assert not looked.comparisons[0].passed and looked.comparisons[0].error == 1


def test_unread_tensors_are_remembered() -> None:
    """What is neither read nor compared is listed; asking for what is not there compares nothing."""
    looked = case(a=torch.zeros(1), b=torch.zeros(1), c=torch.zeros(1))
    looked.close("a", torch.zeros(1))
    looked["b"]
    looked.close("d", torch.zeros(1))
    assert looked.unread == ["c"] and len(looked.comparisons) == 1
