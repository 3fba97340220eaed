"""Streams on a CPU, where everything is done at once; `test_graphs` has what they do on CUDA."""

from __future__ import annotations

import numpy as np
import torch

from engine.runtime.cuda_streams import CudaStreams, StreamEvent, upload

CPU = torch.device("cpu")


def test_a_cpu_is_always_done() -> None:
    """On a CPU work in a stream is done when it was called, and nothing waits."""
    streams = CudaStreams(CPU)
    with streams.stream("plan"):
        made = torch.ones(2) + 1
        event = streams.record()
    assert event == StreamEvent() and event.done
    event.wait()
    with streams.stream("render"):
        streams.take(made, event)
        assert (made * 2).tolist() == [4, 4]


def test_downloads_are_the_values() -> None:
    """A download holds what the tensor held, and is complete."""
    planes = torch.arange(6, dtype=torch.uint8).view(2, 3)
    download = CudaStreams(CPU).download(planes)
    assert download.event.done
    assert np.array_equal(download.array(), planes.numpy())


def test_uploads_are_the_values() -> None:
    """What is uploaded to the host's own device stays what it is."""
    noise = torch.randn(3)
    assert torch.equal(upload(noise, CPU), noise)
