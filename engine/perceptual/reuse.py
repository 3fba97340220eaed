"""Steps that take the layers' work of an earlier step: an approximation for runs of many steps, off by default.

What the layers add to the tokens of new frames changes slowly where the time does. As long as its embedding has moved
little since the layers last ran, base network and control branch are left out: what they added then is added to the
tokens of now, and the head runs as always. Which steps do so follows from the schedule alone, before any video, so that
nothing waits for the device and the same run always decides alike. The idea is TeaCache's (arXiv 2411.19108), which
looks at the video's tokens too.

`python -m engine.bench.curve` measures the error; docs/BENCHMARKS.md has it for `mini`. Of the published weights it is
not known. Shapes: `S` steps, `Z` time embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def reused_steps(embedded: Tensor, rows: Sequence[int], reach: float) -> tuple[bool, ...]:
    """Which of a run's steps leave the layers out.

    The first and the last never do, nor does one that computes other rows than the step before it.

    Args:
        embedded: [S, Z] time embeddings of the steps.
        rows: of each step, 2 where it is guided.
        reach: how far the embedding may move, relative to itself and summed over steps, until the layers run again;
            0 lets them always run.
    """
    sizes = embedded.abs().mean(dim=1)
    moves = ((embedded[1:] - embedded[:-1]).abs().mean(dim=1) / sizes[:-1]).tolist()
    reused, moved = [False], 0.0
    for index, move in enumerate(moves, 1):
        moved += move
        same = rows[index] == rows[index - 1] and index < len(rows) - 1
        reused.append(same and moved < reach)
        if not reused[-1]:
            moved = 0.0
    return tuple(reused)
