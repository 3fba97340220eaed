"""Lanes on a CPU, where everything is done at once; `test_graphs` has what they do on CUDA."""

from __future__ import annotations

import numpy as np
import torch

from engine.runtime.cuda_streams import Lanes, Mark, upload

CPU = torch.device("cpu")


def test_a_cpu_is_always_done() -> None:
    """On a CPU work in a lane is done when it was called, and nothing waits."""
    lanes = Lanes(CPU)
    with lanes.lane("plan"):
        made = torch.ones(2) + 1
        mark = lanes.mark()
    assert mark == Mark() and mark.reached
    mark.wait()
    with lanes.lane("render"):
        lanes.take(made, mark)
        assert (made * 2).tolist() == [4, 4]


def test_downloads_are_the_values() -> None:
    """A download holds what the tensor held, and is complete."""
    planes = torch.arange(6, dtype=torch.uint8).view(2, 3)
    download = Lanes(CPU).download(planes)
    assert download.mark.reached
    assert np.array_equal(download.array(), planes.numpy())


def test_uploads_are_the_values() -> None:
    """What is uploaded to the host's own device stays what it is."""
    noise = torch.randn(3)
    assert torch.equal(upload(noise, CPU), noise)
