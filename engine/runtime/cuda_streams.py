"""Streams of work on a device, what one lane must know of another, and copies that nobody waits for.

On CUDA planning and rendering run on lanes of their own and overlap: one is bound by memory, the other by arithmetic.
Elsewhere a lane is a plain call and everything is done when it returns.
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
class Mark:
    """A place in a lane's work."""

    event: torch.cuda.Event | None = None

    @property
    def reached(self) -> bool:
        """Whether everything before it is done; never waits."""
        return self.event is None or self.event.query()

    def wait(self) -> None:
        """Returns when everything before it is done."""
        if self.event is not None:
            self.event.synchronize()


@dataclass(frozen=True, slots=True)
class Download:
    """A tensor on its way to the host."""

    tensor: Tensor  # on the host, pinned on CUDA; whole when `mark` is reached
    mark: Mark

    def array(self) -> npt.NDArray[np.uint8]:
        """The values; waits for them."""
        self.mark.wait()
        values: npt.NDArray[np.uint8] = self.tensor.numpy()
        return values


class Lanes:
    """The lanes of one device, by name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: dict[str, torch.cuda.Stream] = {}

    @contextmanager
    def lane(self, name: str) -> Iterator[None]:
        """Work inside is put into the lane."""
        if self._device.type != "cuda":
            yield
            return
        if name not in self._streams:
            # What was loaded on the default stream must be there.
            self._streams[name] = torch.cuda.Stream(self._device)
            self._streams[name].wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._streams[name]):
            yield

    def mark(self) -> Mark:
        """The place that the current lane has got to."""
        if self._device.type != "cuda":
            return Mark()
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return Mark(event)

    def take(self, tensor: Tensor, mark: Mark) -> None:
        """Lets the current lane use a tensor of another one, whole when the mark is reached."""
        if mark.event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(mark.event)
            tensor.record_stream(stream)

    def download(self, tensor: Tensor) -> Download:
        """Starts a copy to the host, in the current lane."""
        if tensor.device.type != "cuda":
            return Download(tensor.cpu(), Mark())
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        return Download(host, self.mark())


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; on CUDA the host does not wait."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
