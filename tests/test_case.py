"""Comparing results with a case."""

from __future__ import annotations

import pytest
import torch

from engine.published.case import Case, relative_error


def case(**tensors: torch.Tensor) -> Case:
    return Case({"case": "kind"}, torch.device("cpu"), tensors, {})


def test_error_is_relative_to_the_largest_value() -> None:
    """Half a percent of the largest value is an error of 0.005 wherever it is; NaN passes for nothing."""
    expected = torch.tensor([0.0, -200.0, 3.0])
    assert relative_error(expected + torch.tensor([1.0, 0.0, 0.0]), expected) == pytest.approx(0.005)
    one = case(a=expected)
    one.check(a=expected * float("nan"))
    with pytest.raises(ValueError, match="a: error nan"):
        one.verdict()


def test_shapes_must_agree_but_for_ones() -> None:
    """A dimension of 1 more or less does not matter; any other difference raises with both shapes."""
    one = case(a=torch.zeros(1, 2, 3), i=torch.zeros(1, 4, dtype=torch.int64))
    one.check(a=torch.zeros(2, 1, 3), i=torch.zeros(4, dtype=torch.int32))
    assert one.verdict() == "error 0.00e+00 at a, 1 results within tolerance, 1 exact"
    with pytest.raises(ValueError, match=r"\[3, 2\].*\[1, 2, 3\]"):
        one.check(a=torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"\[5\].*\[1, 4\]"):
        one.check(i=torch.zeros(5))


def test_integers_and_draws_must_be_equal() -> None:
    """One index that differs by one fails, and is counted; so does a draw in its last bit."""
    one = case(i=torch.tensor([1, 2, 1_000_000]), draws=torch.ones(2))
    one.check(i=torch.tensor([1, 2, 1_000_001]))
    one.compare("draws", torch.tensor([1, 1 + 1e-6]), one["draws"], exact=True)
    with pytest.raises(ValueError, match="i: 1 entries differ; draws: 1 entries differ"):
        one.verdict()


def test_unread_tensors_are_faults() -> None:
    """A tensor that is neither read nor compared is named; a result that the case lacks compares nothing."""
    one = case(a=torch.zeros(1), b=torch.zeros(1), c=torch.zeros(1))
    one.check(a=torch.zeros(1), d=torch.zeros(1))
    one["b"]
    assert one.errors == {"a": 0.0}
    with pytest.raises(ValueError, match="^no check knows c$"):
        one.verdict()
