"""Weights of a deterministic multistep solver for any Gaussian path, made for few steps.

On a path x = alpha clean + sigma noise the exact answer is x'/sigma' = x/sigma + integral of clean(u) du, u = alpha /
sigma. Here `clean` is replaced by the polynomial through the last estimates, over the path's time s = alpha / (alpha +
sigma). DPM-Solver++ takes log u instead, which is infinite at a start without any signal (zero terminal SNR): it has to
begin with two steps of first order, this solver with one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LARGEST_ORDER = 3  # estimates that a step combines; polynomials through more swing too far


def check_order(order: int) -> None:
    """Raises ValueError for an order that there is no solver of."""
    if not 1 <= order <= LARGEST_ORDER:
        raise ValueError(f"solver order {order} is not in 1..{LARGEST_ORDER}")


def multistep_weights(
    alphas: Sequence[float], sigmas: Sequence[float], order: int, look_ahead: bool
) -> list[tuple[float, ...]]:
    """The numbers of every step of a run from noise to clean.

    Args:
        alphas, sigmas: of the S + 1 levels; sigma is 0 at the last alone.
        order: estimates to combine, where there are so many.
        look_ahead: whether the last step too goes on along the polynomial; else it takes the latest estimate as it is.

    Returns:
        For each of the S steps the factor of x, then one for each estimate, the latest first.
    """
    times = [alpha / (alpha + sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]
    steps: list[tuple[float, ...]] = []
    for index in range(len(alphas) - 1):
        nodes = [times[place] for place in range(index, max(index - order, -1), -1)]
        keep = sigmas[index + 1] / sigmas[index]
        if len(nodes) == 1 or (sigmas[index + 1] == 0 and not look_ahead):
            steps.append((keep, alphas[index + 1] - keep * alphas[index]))
        elif sigmas[index + 1] == 0:
            # All of x is clean at the end: the polynomial's value there.
            steps.append((0.0, *(alphas[-1] * part for part in _solved(nodes, [1.0] * len(nodes)))))
        else:
            steps.append((keep, *(sigmas[index + 1] * part for part in _integrals(times[index + 1], nodes))))
    return steps


def _integrals(end: float, nodes: Sequence[float]) -> list[float]:
    """Integrals over u, from the first node to the end, of the polynomials that are 1 at one node and 0 at others."""
    start = nodes[0]
    along = end / (1 - end) - start / (1 - start)
    logarithm = math.log((1 - end) / (1 - start))
    # Of 1, s and s^2 over du = ds / (1 - s)^2.
    moments = (along, along + logarithm, end - start + 2 * logarithm + along)
    return _solved(nodes, moments[: len(nodes)])


def _solved(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weights of values at the nodes that are right for 1, s, s^2, ..., of which the answers are `moments`."""
    powers = np.vander(np.array(nodes), len(nodes), increasing=True).T
    return [float(weight) for weight in np.linalg.solve(powers, np.array(moments))]
