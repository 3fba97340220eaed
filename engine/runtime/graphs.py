"""The one door to CUDA graphs and CPU traces: functions that run again without their modules.

A function that is captured takes and gives trees of tensors (`engine.runtime.pytree`). Weights that it holds must stay
where they are. A CUDA graph reads its inputs at fixed places, into which every call copies them; the host then launches
one thing instead of a thousand. A CPU trace copies nothing and holds no memory, so that there may be many.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from engine.runtime.cpu_trace import CpuTrace
from engine.runtime.pytree import leaves, unflatten
from kernels.tools.launch import interpreting

SWITCH = "LANDIFF_GRAPHS"  # environment variable: "off" runs everything eagerly
MOST_GRAPHS, MOST_TRACES = 16, 256  # kept; the one that was not called for longest goes first
WARM_UPS = 2  # runs before a capture: libraries and kernels choose their ways in the first

Outputs = TypeVar("Outputs")
_Kind = tuple[torch.Size, torch.dtype, torch.device]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arguments of a captured function, trees of tensors; None where not given."""

    changing: Any
    lasting: Any = None
    constants: Any = None
    state: Any = None

    @property
    def given(self) -> list[Any]:
        """The function's arguments."""
        trees = (self.changing, self.lasting, self.constants, self.state)
        return [tree for tree in trees if tree is not None]


Captured = Callable[[Inputs], Any]


class Recorder(Protocol):
    """Makes a captured function out of a function and inputs of the shapes that it will get."""

    def key(self, variant: Hashable, state: Any) -> Hashable:
        """The part of a capture's key that variant and state are."""
        ...

    def capture(self, key: Hashable, function: Callable[..., Any], inputs: Inputs) -> Captured: ...


class GraphRecorder(ABC):
    """Captures functions that read and write fixed memory; a subclass says how such work is done again.

    One graph serves all variants, whose constants it takes as inputs, and one state, which it changes where it lies.
    """

    def key(self, variant: Hashable, state: Any) -> Hashable:
        return tuple(leaf.data_ptr() for leaf in leaves(state))

    def capture(self, key: Hashable, function: Callable[..., Any], inputs: Inputs) -> Captured:
        """The function, run with copies of its inputs."""
        return _Graph(key, self, function, inputs)

    @abstractmethod
    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """The work's outputs, at places that the returned call fills anew."""


class CudaRecorder(GraphRecorder):
    """Captures CUDA graphs on one stream. They share a memory pool: no two of them may run at once."""

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


class TraceRecorder:
    """Records CPU traces. A trace serves one variant, with its constants inside, and any state, as an input."""

    def key(self, variant: Hashable, state: Any) -> Hashable:
        return variant

    def capture(self, key: Hashable, function: Callable[..., Any], inputs: Inputs) -> Captured:
        """The function, run once as it is written down; as it is where Triton's interpreter does some of its work."""
        constants = inputs.constants

        def run(changing: Any, lasting: Any, state: Any) -> Any:
            return function(*Inputs(changing, lasting, constants, state).given)

        if interpreting():
            return lambda inputs: run(inputs.changing, inputs.lasting, inputs.state)
        trees = inputs.changing, inputs.lasting, inputs.state
        trace: CpuTrace[Any] = CpuTrace(run, *trees)
        kinds = _kinds(leaves(trees))
        recorded = [trace.recorded()]
        if inputs.state is not None:
            recorded.clear()  # it was a copy that the recording changed

        def play(inputs: Inputs) -> Any:
            if recorded:
                # The call for which it was recorded.
                return recorded.pop()
            given = leaves((inputs.changing, inputs.lasting, inputs.state))
            _check(key, given, kinds)
            return trace.play(given)

        return play


class _Graph:
    """One function of fixed places."""

    def __init__(self, key: Hashable, recorder: GraphRecorder, function: Callable[..., Any], inputs: Inputs) -> None:
        self._key = key
        self._function = function  # what it holds must live as long as the graph
        copied = inputs.changing, inputs.lasting, inputs.constants
        self._places = Inputs(*unflatten(copied, map(torch.clone, leaves(copied))), state=inputs.state)
        self._given: list[Tensor] = []  # the lasting tensors that were copied last
        self._outputs, self._replay = recorder.record(lambda: function(*self._places.given))

    def __call__(self, inputs: Inputs) -> Any:
        self._copy(leaves(inputs.changing), leaves(self._places.changing))
        self._copy(self._whole(inputs), leaves(self._places.constants))
        given = leaves(inputs.lasting)
        if len(given) != len(self._given) or any(a is not b for a, b in zip(given, self._given, strict=True)):
            self._copy(given, leaves(self._places.lasting))
            self._given = given
        self._replay()
        return unflatten(self._outputs, (leaf.clone() for leaf in leaves(self._outputs)))

    def _whole(self, inputs: Inputs) -> list[Tensor]:
        """The constants, filled by a first run where they are those of another variant than at the capture."""
        if len(leaves(inputs.constants)) < len(leaves(self._places.constants)):
            self._function(*inputs.given)
        return leaves(inputs.constants)

    def _copy(self, given: list[Tensor], places: list[Tensor]) -> None:
        _check(self._key, given, _kinds(places))
        for tensor, place in zip(given, places, strict=True):
            place.copy_(tensor)


class Graphs:
    """Captured functions of one stream, by key; without a recorder they run eagerly, which is the same code."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._captures: OrderedDict[Hashable, Captured] = OrderedDict()

    @classmethod
    def on(cls, device: torch.device) -> Graphs:
        """Graphs for a stream of a device; eager if the environment says that nothing shall be captured.

        Raises:
            ValueError: the environment says neither 'on' nor 'off'.
        """
        said = os.environ.get(SWITCH, "on")
        if said not in ("on", "off"):
            raise ValueError(f"{SWITCH}={said!r} is neither 'on' nor 'off'")
        if said == "off" or device.type not in ("cpu", "cuda"):
            return cls(None)
        return cls(CudaRecorder(device) if device.type == "cuda" else TraceRecorder())

    def call(
        self,
        key: Hashable,
        function: Callable[..., Outputs],
        changing: Any,
        lasting: Any = None,
        constants: Any = None,
        variant: Hashable = None,
        state: Any = None,
    ) -> Outputs:
        """The function of the trees that are given, in this order; captured when it is called for the first time.

        Args:
            key: of the function, of everything that it holds, and of the trees' shapes.
            changing: inputs that may be others at every call.
            lasting: inputs that nobody changes in place, mostly the tensors of the call before.
            constants: inputs with the same values at every call of a variant. The function may add to them what it
                makes of them alone (`TimestepCache`): it runs once before it is captured.
            variant: names the constants.
            state: tensors that the function changes in place, such as a key-value cache.

        Returns:
            New memory.

        Raises:
            ValueError: a tensor has another shape, type or device than at the capture; it names both.
        """
        inputs = Inputs(changing, lasting, constants, state)
        if self._recorder is None:
            return function(*inputs.given)
        full_key = key, self._recorder.key(variant, state)
        if full_key not in self._captures:
            if constants is not None:
                function(*inputs.given)
            self._captures[full_key] = self._recorder.capture(full_key, function, inputs)
            logger.debug("captured %s", full_key)
            while len(self._captures) > (MOST_TRACES if isinstance(self._recorder, TraceRecorder) else MOST_GRAPHS):
                self._captures.popitem(last=False)
        self._captures.move_to_end(full_key)
        outputs: Outputs = self._captures[full_key](inputs)
        return outputs


NewGraphs = Callable[[torch.device], Graphs]  # graphs of a stream of a device


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
