"""One CUDA stream each for planning and rendering, events between them, and asynchronous copies.

On CUDA planning and rendering overlap: one is bound by memory, the other by arithmetic. Elsewhere work in a stream is a
plain call, and everything is done when it returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """A place in a stream's work."""

    event: torch.cuda.Event | None = None

    @property
    def done(self) -> bool:
        """True if everything before it is done; never waits."""
        return self.event is None or self.event.query()

    def wait(self) -> None:
        """Returns when everything before it is done."""
        if self.event is not None:
            self.event.synchronize()


@dataclass(frozen=True, slots=True)
class Download:
    """A tensor on its way to the host."""

    tensor: Tensor  # on the host, pinned on CUDA; whole when `event` is done
    event: StreamEvent

    def array(self) -> npt.NDArray[np.uint8]:
        """The values; waits for them."""
        self.event.wait()
        values: npt.NDArray[np.uint8] = self.tensor.numpy()
        return values


class CudaStreams:
    """The streams of one device, by name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: dict[str, torch.cuda.Stream] = {}

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        """Work inside is put into the stream."""
        if self._device.type != "cuda":
            yield
            return
        if name not in self._streams:
            # What was loaded on the default stream must be there.
            self._streams[name] = torch.cuda.Stream(self._device)
            self._streams[name].wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._streams[name]):
            yield

    def record(self) -> StreamEvent:
        """The place that the current stream has got to."""
        if self._device.type != "cuda":
            return StreamEvent()
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return StreamEvent(event)

    def wait(self) -> None:
        """Returns when the work of every stream is done, the default one's too."""
        if self._device.type == "cuda":
            torch.cuda.default_stream(self._device).synchronize()
        for stream in self._streams.values():
            stream.synchronize()

    def take(self, tensor: Tensor, event: StreamEvent) -> None:
        """Lets the current stream use a tensor of another one, whole when the event is done."""
        if event.event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(event.event)
            tensor.record_stream(stream)

    def download(self, tensor: Tensor) -> Download:
        """Starts a copy to the host, in the current stream."""
        if tensor.device.type != "cuda":
            return Download(tensor.cpu(), StreamEvent())
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        return Download(host, self.record())


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; on CUDA the host does not wait."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
