"""Functions captured as CUDA graphs: the host then launches one thing instead of a thousand.

Nothing else knows CUDA graphs. A function that is captured takes and gives trees of tensors: records, tuples and dicts
of them. It reads its inputs at fixed places, into which every call copies them; what it holds beside them (weights, a
cache that it writes in place) must stay where it is.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

SWITCH = "LANDIFF_GRAPHS"  # environment variable: "off" runs everything eagerly
MOST_GRAPHS = 16  # kept; the one that was not called for longest goes first
WARM_UPS = 2  # runs before a capture: libraries and kernels choose their ways in the first

T = TypeVar("T")
Outputs = TypeVar("Outputs")

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Turns work that reads and writes fixed memory into a call that does it again."""

    def record(self, work: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        """The work's outputs, at places that the returned call fills anew."""
        ...


class CudaRecorder:
    """Of one lane of a device. Its graphs share a memory pool: no two of them may run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads and streams may go on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = work()
        return outputs, graph.replay


@dataclasses.dataclass(slots=True)
class _Capture:
    function: Callable[[Any, Any], Any]  # what it holds must live as long as the graph
    changing: Any
    lasting: Any
    given: list[Tensor]  # the lasting tensors that were copied last
    outputs: Any
    replay: Callable[[], None]


class Graphs:
    """Captured functions of one lane, by key; without a recorder they run eagerly, which is the same code."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._captures: OrderedDict[Hashable, _Capture] = OrderedDict()

    @classmethod
    def on(cls, device: torch.device) -> Graphs:
        """For a lane of a device: captured on CUDA, unless the environment says otherwise.

        Raises:
            ValueError: the environment says neither 'on' nor 'off'.
        """
        said = os.environ.get(SWITCH, "on")
        if said not in ("on", "off"):
            raise ValueError(f"{SWITCH}={said!r} is neither 'on' nor 'off'")
        return cls(CudaRecorder(device) if device.type == "cuda" and said == "on" else None)

    @property
    def captures(self) -> bool:
        return self._recorder is not None

    def call(self, key: Hashable, function: Callable[[Any, Any], Outputs], changing: Any, lasting: Any = ()) -> Outputs:
        """function(changing, lasting), captured when the key is new.

        Args:
            key: of the function, of everything that it holds, and of the tree's shape.
            changing: inputs that are copied at every call.
            lasting: inputs that nobody changes in place: copied when they are not the tensors of the call before.

        Returns:
            What the function gives; new memory.

        Raises:
            ValueError: a tensor has another shape, type or device than at the capture; it names both.
        """
        if self._recorder is None:
            return function(changing, lasting)
        capture = self._captures.get(key)
        if capture is None:
            capture = self._captures[key] = self._capture(key, function, changing, lasting)
            while len(self._captures) > MOST_GRAPHS:
                self._captures.popitem(last=False)
        self._captures.move_to_end(key)
        _copy(key, leaves(changing), leaves(capture.changing))
        given = leaves(lasting)
        if len(given) != len(capture.given) or any(a is not b for a, b in zip(given, capture.given, strict=True)):
            _copy(key, given, leaves(capture.lasting))
            capture.given = given
        capture.replay()
        outputs: Outputs = planted(capture.outputs, (leaf.clone() for leaf in leaves(capture.outputs)))
        return outputs

    def _capture(self, key: Hashable, function: Callable[[Any, Any], Outputs], changing: Any, lasting: Any) -> _Capture:
        assert self._recorder is not None
        changing, lasting = (planted(tree, map(torch.clone, leaves(tree))) for tree in (changing, lasting))
        outputs, replay = self._recorder.record(lambda: function(changing, lasting))
        logger.info("captured %s", key)
        return _Capture(function, changing, lasting, [], outputs, replay)


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of records, sequences and dicts, however deep, in their order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for branch in _branches(tree) for leaf in leaves(branch)]


def planted(tree: T, tensors: Iterator[Tensor]) -> T:
    """The same tree with other tensors, taken in the order of `leaves`."""
    grown: Any = tree
    if isinstance(tree, Tensor):
        grown = next(tensors)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        grown = type(tree)(*(planted(getattr(tree, name), tensors) for name in names))
    elif isinstance(tree, dict):
        grown = {key: planted(value, tensors) for key, value in tree.items()}
    elif isinstance(tree, (list, tuple)):
        grown = type(tree)([planted(branch, tensors) for branch in tree])
    return grown  # type: ignore[no-any-return]


def _branches(tree: Any) -> list[Any]:
    if dataclasses.is_dataclass(tree):
        return [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    if isinstance(tree, dict):
        return list(tree.values())
    return list(tree) if isinstance(tree, (list, tuple)) else []


def _copy(key: Hashable, given: list[Tensor], places: list[Tensor]) -> None:
    if len(given) != len(places):
        raise ValueError(f"graph {key}: {len(given)} tensors given, it was captured with {len(places)}")
    for number, (tensor, place) in enumerate(zip(given, places, strict=True)):
        if (tensor.shape, tensor.dtype, tensor.device) != (place.shape, place.dtype, place.device):
            raise ValueError(
                f"graph {key}: tensor {number} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, at the "
                f"capture it was {tuple(place.shape)} {place.dtype} on {place.device}"
            )
    for tensor, place in zip(given, places, strict=True):
        place.copy_(tensor)
