"""Records the ATen operators of one call and replays them without module overhead: a CUDA graph's CPU counterpart.

A small model's operators take some tens of microseconds each, and the Python between them up to a third of the time. A
CPU trace is a Python function of the operators that one call ran; with other inputs it gives the same bits as the
traced function. As with CUDA graphs, a call must not decide anything by an input's value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.runtime.pytree import leaves, unflatten

Outputs = TypeVar("Outputs")


class CpuTrace(Generic[Outputs]):
    """A recorded function of trees of tensors."""

    def __init__(self, function: Callable[..., Outputs], *trees: Any) -> None:
        """Runs the function once.

        Raises:
            ValueError: it reads an input's value, or calls einsum.
        """
        self._function = function  # what it holds must live as long as the CPU trace
        # Copies: the recording must change no input in place, and a tensor given twice is two inputs.
        inputs = [leaf.clone() for leaf in leaves(trees)]
        with _Recorder(inputs) as recorder:
            outputs = function(*unflatten(trees, iter(inputs)))
        made = leaves(outputs)
        self._recorded: list[Outputs] = [unflatten(outputs, iter(recorder.own(made)))]
        self._play = recorder.function(made)
        self._outputs = unflatten(outputs, iter([torch.empty(0)] * len(made)))  # for its shape

    def recorded(self) -> Outputs:
        """The function's outputs for the trees that it was recorded with; to be asked for once."""
        return self._recorded.pop()

    def play(self, inputs: Iterable[Tensor]) -> Outputs:
        """The function's outputs for other leaves of its trees; new memory."""
        # The casts of autocast are among the recorded operators.
        with torch.autocast("cpu", enabled=False):
            return unflatten(self._outputs, iter(self._play(*inputs)))


class _Recorder(TorchDispatchMode):
    """Writes a line of Python for every operator that gives a new tensor or changes one."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inputs = [f"input_{number}" for number in range(len(inputs))]
        self._names = {id(tensor): name for tensor, name in zip(inputs, self._inputs, strict=True)}
        self._moving = set(self._inputs)  # names of what depends on an input
        self._lines: list[tuple[str, str, set[str]]] = []  # names made, the call, tensors that it reads
        self._held: dict[str, Any] = {}  # tensors that were there before, operators, and arguments of other kinds
        self._seen: list[Any] = list(inputs)  # alive as long as they are known by their ids
        self._old = {tensor.untyped_storage().data_ptr() for tensor in inputs if tensor.numel()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; to be shut off from torch's compiler it would be loaded, 1.5 s and 150 MB."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.einsum.default:
            # torch 2.13: in inference mode it arrives whole, and autocast does not reach the products within.
            raise ValueError("what is recorded must not call einsum, which stays in float32: write it as a matmul")
        made = func(*args, **kwargs)
        self._seen.append((args, kwargs, made))
        several = isinstance(made, (tuple, list))
        results = list(made) if several else [made]
        read: set[str] = set()
        words = [self._word(value, read) for value in args]
        words += [f"{name}={self._word(value, read)}" for name, value in kwargs.items()]
        moves = not self._moving.isdisjoint(read)
        if not all(isinstance(result, Tensor) for result in results):
            if moves:
                raise ValueError(f"{func} gives {made!r}: what is recorded must not read an input's value")
        elif func.is_view and not moves and read <= self._held.keys():
            # As lasting as what it looks at.
            for result in results:
                self._word(result, set())
        elif func._schema.is_mutable or any(id(result) not in self._names for result in results):
            # What changes a tensor in place gives that tensor, which has a name.
            names = [self._names.setdefault(id(result), f"made_{len(self._names)}") for result in results]
            self._lines.append((", ".join(names) + "," * several, f"{self._hold(func._op)}({', '.join(words)})", read))
            if moves:
                self._moving.update(names)
        return made

    def function(self, outputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """The recorded lines as a function of the inputs that gives `outputs`."""
        needed: set[str] = set()
        words = [self._word(output, needed) + ".clone()" * self._is_old(output) for output in outputs]
        body = [f"return [{', '.join(words)}]"]
        for names, call, read in reversed(self._lines):
            # Memory is free for others as soon as no later line reads it.
            body += [f"{name} = None" for name in sorted(read - needed) if name.startswith("made_")]
            body.append(f"{names} = {call}")
            needed |= read
        parameters = [*self._inputs, *(f"{name}={name}" for name in self._held)]
        source = "\n    ".join([f"def play({', '.join(parameters)}):", *reversed(body)])
        space = dict(self._held)
        exec(compile(source, "<CPU trace>", "exec"), space)  # noqa: S102 - written above, of nothing that came from outside
        self._seen.clear()
        play: Callable[..., Sequence[Tensor]] = space["play"]
        return play

    def own(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs in memory that nothing else uses."""
        return [output.clone() if self._is_old(output) else output for output in outputs]

    def _is_old(self, tensor: Tensor) -> bool:
        """True if its memory was there before the trace was played."""
        return tensor.numel() > 0 and tensor.untyped_storage().data_ptr() in self._old

    def _word(self, value: Any, read: set[str]) -> str:
        """An argument as Python text."""
        if isinstance(value, Tensor):
            if id(value) not in self._names:
                self._names[id(value)] = self._hold(value)
                if value.layout == torch.strided and value.numel():
                    self._old.add(value.untyped_storage().data_ptr())
            read.add(self._names[id(value)])
            return self._names[id(value)]
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(self._word(part, read) for part in value)}]"
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        return self._hold(value)

    def _hold(self, value: Any) -> str:
        name = f"held_{len(self._held)}"
        self._held[name] = value
        return name
