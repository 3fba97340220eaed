"""Functions that run again without their modules: captured as CUDA graphs, and on a CPU written down as tapes.

Nothing else knows either. A function that is captured takes and gives trees of tensors (`engine.runtime.pytree`). What
it holds beside its inputs (weights, a cache that it writes in place) must stay where it is. A CUDA graph reads its
inputs at fixed places, into which every call copies them; the host then launches one thing instead of a thousand.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from engine.runtime.cpu_trace import Tape
from engine.runtime.pytree import leaves, planted
from kernels.tools.launch import fuses

SWITCH = "LANDIFF_GRAPHS"  # environment variable: "off" runs everything eagerly
MOST_GRAPHS, MOST_TAPES = 16, 256  # kept; the one that was not called for longest goes first
WARM_UPS = 2  # runs before a capture: libraries and kernels choose their ways in the first

Function = Callable[[Any, Any], Any]  # of changing and lasting inputs
Outputs = TypeVar("Outputs")
_Kind = tuple[torch.Size, torch.dtype, torch.device]

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Makes a captured function out of a function and inputs of the shapes that it will get."""

    def capture(self, key: Hashable, function: Function, changing: Any, lasting: Any) -> Function: ...


class PlacesRecorder(ABC):
    """Of functions that read and write fixed memory; a subclass says how such work is done again."""

    def capture(self, key: Hashable, function: Function, changing: Any, lasting: Any) -> Function:
        """The function, run with copies of its inputs."""
        return _Placed(key, self, function, changing, lasting)

    @abstractmethod
    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """The work's outputs, at places that the returned call fills anew."""


class CudaRecorder(PlacesRecorder):
    """Of one lane of a device. Its graphs share a memory pool: no two of them may run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        # A graph knows the workspace of its matrix products by address. One from before the capture belongs to the
        # stream, and torch gives it back when another graph of that stream goes, or when torch.compile captures one
        # (pytorch/pytorch#193402); one from inside lives in the pool, as long as the graph.
        torch._C._cuda_clearCublasWorkspaces()
        graph = torch.cuda.CUDAGraph()
        # Other threads and streams may go on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = work()
        return outputs, graph.replay


class TapeRecorder:
    """Of functions on a CPU."""

    def capture(self, key: Hashable, function: Function, changing: Any, lasting: Any) -> Function:
        """The function, run once as it is written down; as it is where Triton's interpreter does some of its work."""
        if fuses(torch.empty(0)):
            return function
        tape: Tape[Any] = Tape(function, changing, lasting)
        kinds = _kinds(leaves((changing, lasting)))

        def play(changing: Any, lasting: Any) -> Any:
            given = leaves((changing, lasting))
            _check(key, given, kinds)
            return tape.play(given)

        return play


class _Placed:
    """One function of fixed places."""

    def __init__(
        self, key: Hashable, recorder: PlacesRecorder, function: Function, changing: Any, lasting: Any
    ) -> None:
        self._key = key
        self._function = function  # what it holds must live as long as the graph
        self._changing, self._lasting = (planted(tree, map(torch.clone, leaves(tree))) for tree in (changing, lasting))
        self._given: list[Tensor] = []  # the lasting tensors that were copied last
        self._outputs, self._replay = recorder.record(lambda: function(self._changing, self._lasting))

    def __call__(self, changing: Any, lasting: Any) -> Any:
        self._copy(leaves(changing), leaves(self._changing))
        given = leaves(lasting)
        if len(given) != len(self._given) or any(a is not b for a, b in zip(given, self._given, strict=True)):
            self._copy(given, leaves(self._lasting))
            self._given = given
        self._replay()
        return planted(self._outputs, (leaf.clone() for leaf in leaves(self._outputs)))

    def _copy(self, given: list[Tensor], places: list[Tensor]) -> None:
        _check(self._key, given, _kinds(places))
        for tensor, place in zip(given, places, strict=True):
            place.copy_(tensor)


class Graphs:
    """Captured functions of one lane, by key; without a recorder they run eagerly, which is the same code."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._captures: OrderedDict[Hashable, Function] = OrderedDict()

    @classmethod
    def on(cls, device: torch.device) -> Graphs:
        """For a lane of a device, unless the environment says that nothing shall be captured.

        Raises:
            ValueError: the environment says neither 'on' nor 'off'.
        """
        said = os.environ.get(SWITCH, "on")
        if said not in ("on", "off"):
            raise ValueError(f"{SWITCH}={said!r} is neither 'on' nor 'off'")
        if said == "off" or device.type not in ("cpu", "cuda"):
            return cls(None)
        return cls(CudaRecorder(device) if device.type == "cuda" else TapeRecorder())

    @property
    def captures(self) -> bool:
        return self._recorder is not None

    @property
    def tapes(self) -> bool:
        """Whether a capture is a tape, which keeps no memory and copies nothing."""
        return isinstance(self._recorder, TapeRecorder)

    def call(self, key: Hashable, function: Callable[[Any, Any], Outputs], changing: Any, lasting: Any = ()) -> Outputs:
        """function(changing, lasting), captured when the key is new.

        Args:
            key: of the function, of everything that it holds, and of the tree's shape.
            changing: inputs that may be others at every call.
            lasting: inputs that nobody changes in place, mostly the tensors of the call before: then nothing is copied.

        Returns:
            What the function gives; new memory.

        Raises:
            ValueError: a tensor has another shape, type or device than at the capture; it names both.
        """
        if self._recorder is None:
            return function(changing, lasting)
        if key not in self._captures:
            self._captures[key] = self._recorder.capture(key, function, changing, lasting)
            logger.debug("captured %s", key)
            while len(self._captures) > (MOST_TAPES if self.tapes else MOST_GRAPHS):
                self._captures.popitem(last=False)
        self._captures.move_to_end(key)
        outputs: Outputs = self._captures[key](changing, lasting)
        return outputs


def _kinds(tensors: Sequence[Tensor]) -> list[_Kind]:
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


def _check(key: Hashable, given: Sequence[Tensor], captured: Sequence[_Kind]) -> None:
    kinds = _kinds(given)
    if kinds == captured:
        return
    if len(kinds) != len(captured):
        raise ValueError(f"graph {key}: {len(kinds)} tensors given, it was captured with {len(captured)}")
    for number, (now, then) in enumerate(zip(kinds, captured, strict=True)):
        if now != then:
            raise ValueError(
                f"graph {key}: tensor {number} is {tuple(now[0])} {now[1]} on {now[2]}, at the capture it was "
                f"{tuple(then[0])} {then[1]} on {then[2]}"
            )
