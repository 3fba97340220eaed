"""Captured functions: fixed inputs, checked shapes, outputs of their own; on CUDA the same bits as without."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from recorder import FakeRecorder
from tiny import randomize, tiny_model
from torch import Tensor

from engine.live.generator import Generator
from engine.live.offline import generate_frames
from engine.loading.model import Model, assemble
from engine.loading.modules import build
from engine.runtime import graphs
from engine.runtime.graphs import CudaRecorder, Graphs, TraceRecorder
from engine.runtime.pytree import leaves, unflatten


@dataclass(frozen=True)
class Tree:
    value: Tensor | None
    parts: tuple[Tensor, ...] = ()
    named: dict[str, Tensor] = field(default_factory=dict)
    number: int = 0


def _graphs() -> tuple[Graphs, FakeRecorder]:
    recorder = FakeRecorder()
    return Graphs(recorder), recorder


def test_trees_grow_back() -> None:
    """The leaves of records, tuples and dicts, put back, give an equal tree that is not the old one."""
    tree = Tree(None, (torch.zeros(1), torch.ones(2)), {"a": torch.ones(3)}, 7)
    grown = unflatten([tree], iter([leaf + 1 for leaf in leaves([tree])]))[0]
    assert [leaf.tolist() for leaf in leaves(grown)] == [[1], [2, 2], [2, 2, 2]]
    assert (grown.value, grown.number, tree.parts[0].item()) == (None, 7, 0)


def test_inputs_are_copied_to_fixed_places() -> None:
    """The function sees the same memory at every call, filled with that call's inputs, and never the caller's own."""
    made, recorder = _graphs()
    seen: list[tuple[int, ...]] = []

    def function(changing: Tree, lasting: Tensor) -> Tensor:
        assert changing.value is not None
        seen.append((changing.value.data_ptr(), lasting.data_ptr()))
        return changing.value + lasting

    lasting = torch.full((3,), 10.0)
    inputs = [torch.full((3,), float(number)) for number in range(3)]
    assert [made.call("sum", function, Tree(x), lasting)[0].item() for x in inputs] == [10.0, 11.0, 12.0]
    assert len(set(seen)) == 1 and not {place[0] for place in seen} & {x.data_ptr() for x in inputs}
    assert (recorder.records, recorder.replays) == (1, 3)


def test_lasting_inputs_are_copied_when_they_are_others() -> None:
    """Another tensor is noticed, also after the first came back; the same one is not copied again."""
    made, _ = _graphs()
    one, two = torch.ones(2), torch.full((2,), 2.0)
    calls = [made.call("twice", lambda x, y: x * y, one, last)[0].item() for last in (one, two, one, one)]
    assert calls == [1.0, 2.0, 1.0, 1.0]
    with torch.no_grad():
        one += 1  # which nobody may do, and which shows that it was not copied
    assert made.call("twice", lambda x, y: x * y, torch.ones(2), one)[0].item() == 1.0


def test_outputs_are_new_memory() -> None:
    """A later call leaves what an earlier one gave alone."""
    made, _ = _graphs()
    first = made.call("id", lambda x: x * 1, torch.zeros(2))
    second = made.call("id", lambda x: x * 1, torch.ones(2))
    assert (first.sum(), second.sum()) == (0, 2)


@pytest.mark.parametrize("make", [FakeRecorder, TraceRecorder, lambda: None], ids=["graph", "trace", "eager"])
@torch.inference_mode()
def test_constants_are_those_of_the_variant(make: Callable[[], Any]) -> None:
    """Each variant computes with its own constants, and with what the function made of them at its first call."""
    made, squared = Graphs(make()), []

    def function(x: Tensor, constants: dict[str, Tensor]) -> Tensor:
        if "square" not in constants:
            squared.append(constants["one"].item())
            constants["square"] = constants["one"] ** 2
        return x + constants["square"]

    constants = [{"one": torch.full((1,), float(number))} for number in (2, 3)]
    calls = [
        made.call("add", function, torch.full((1,), 10.0 * turn), constants=constants[variant], variant=variant).item()
        for turn in range(2)
        for variant in range(2)
    ]
    assert calls == [4.0, 9.0, 14.0, 19.0]
    assert squared == [2.0, 3.0]


@pytest.mark.parametrize("make", [FakeRecorder, TraceRecorder, lambda: None], ids=["graph", "trace", "eager"])
@torch.inference_mode()
def test_state_is_changed_where_it_lies(make: Callable[[], Any]) -> None:
    """Two states are written by turns, each keeps its own, and none is copied."""
    made, states = Graphs(make()), (torch.zeros(3), torch.zeros(3))

    def write(changing: tuple[Tensor, Tensor], state: Tensor) -> Tensor:
        place, value = changing
        state.index_copy_(0, place, value)
        return state.sum()

    sums = [
        made.call("write", write, (torch.tensor([place]), torch.full((1,), value)), state=states[which]).item()
        for which, place, value in ((0, 0, 1.0), (1, 0, 10.0), (0, 2, 2.0), (1, 1, 20.0))
    ]
    assert sums == [1.0, 10.0, 3.0, 30.0]
    assert [state.tolist() for state in states] == [[1, 0, 2], [10, 20, 0]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.zeros(3), r"tensor 0 is \(3,\) torch.float32 .* \(2,\) torch.float32"),
        (torch.zeros(2, dtype=torch.int64), r"tensor 0 is \(2,\) torch.int64 .* \(2,\) torch.float32"),
        ((torch.zeros(2), torch.zeros(2)), "2 tensors given, it was captured with 1"),
    ],
)
def test_other_shapes_are_refused(other: Any, message: str) -> None:
    """Inputs of another shape, type or number than at the capture are an error that names both."""
    made, _ = _graphs()
    made.call("sum", lambda x: x + 1, torch.zeros(2))
    with pytest.raises(ValueError, match=message):
        made.call("sum", lambda x: x + 1, other)


def test_few_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the graph that was not called for longest is forgotten, and captured again when it is needed."""
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    made, recorder = _graphs()
    for key in ("a", "b", "a", "c", "a", "b"):
        made.call(key, lambda x: x + 1, torch.zeros(1))
    assert recorder.records == 4


def _runs(made: Graphs) -> int:
    """How often a function runs that is called four times."""
    runs: list[Tensor] = []
    for number in range(4):
        made.call("count", lambda x: runs.append(x) or x + 1, torch.full((1,), float(number)))
    return len(runs)


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU writes CPU traces unless told not to, and a word that means nothing is refused."""
    assert _runs(Graphs.on(torch.device("cpu"))) == 1
    monkeypatch.setenv(graphs.SWITCH, "off")
    assert _runs(Graphs.on(torch.device("cpu"))) == 4
    monkeypatch.setenv(graphs.SWITCH, "perhaps")
    with pytest.raises(ValueError, match="'perhaps' is neither"):
        Graphs.on(torch.device("cpu"))


def test_captured_steps_make_the_same_video() -> None:
    """Planner, denoising steps and slices, captured, give the frames of the eager engine over several chunks."""
    recorders: list[FakeRecorder] = []

    def fake(device: torch.device) -> Graphs:
        recorders.append(FakeRecorder())
        return Graphs(recorders[-1])

    model, prompts = tiny_model(), ("a red ball", "the blue boat")
    captured, eager = Generator(model, graphs=fake), Generator(model)
    channels = [[generator.open(prompt, 1) for prompt in prompts] for generator in (captured, eager)]
    for frames in (25, 24, 24):
        for one, other in zip(*channels, strict=True):
            given = [batch.i420 for batch in generate_frames(captured, one, frames)]
            expected = [batch.i420 for batch in generate_frames(eager, other, frames)]
            for a, b in zip(given, expected, strict=True):
                assert abs(a.astype(int) - b.astype(int)).max() <= 1
    # Rendering: windows and steps of a first chunk and of others, and slices, one for the first of a chunk; planning: a
    # cache a channel.
    assert [recorder.records for recorder in recorders] == [6, 2]
    assert all(recorder.replays > 10 for recorder in recorders)


def _on_cuda() -> Model:
    model = tiny_model()
    device = torch.device("cuda")
    modules = build(model.config, "cuda")
    for name, module in modules.items():
        randomize(name, module.cpu())
    return assemble(
        model.config, model.text.to(device), {k: m.to(device) for k, m in modules.items()}, device, torch.bfloat16
    )


@contextmanager
def _no_waiting() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_equal_eager_on_cuda() -> None:
    """On CUDA captured frames are the eager ones, bit for bit, over several chunks."""
    model = _on_cuda()
    frames = []
    for make in (Graphs.on, lambda device: Graphs(None)):
        generator = Generator(model, graphs=make)
        frames.append([batch.i420 for batch in generate_frames(generator, generator.open("a red ball", 1), 97)])
    assert all((a == b).all() for a, b in zip(*frames, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_chunk_never_waits_for_the_device() -> None:
    """Once everything is captured, planning and a whole chunk run without any host synchronisation."""
    generator = Generator(_on_cuda())
    channel = generator.open("a red ball", 1)
    list(generate_frames(generator, channel, 25 + 2 * 24))
    with _no_waiting():
        while generator.needs_plan(channel):
            generator.plan(channel)
        for unit in generator.chunk(channel).units:
            while not unit.mark.done:
                pass
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graph_replays() -> None:
    """A recorded function computes with the inputs of each call."""
    made = Graphs(CudaRecorder(torch.device("cuda")))
    calls = [made.call("x", lambda x: (x * 2).sum(), torch.full((5,), i, device="cuda")).item() for i in range(3)]
    assert calls == [0, 10, 20]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_keep_what_their_products_work_in() -> None:
    """A graph still gives its result after torch has let go of all workspaces of its matrix library."""
    weight, x = (torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    made = Graphs(CudaRecorder(torch.device("cuda")))
    first = made.call("product", lambda x: x @ weight, x)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    assert torch.equal(made.call("product", lambda x: x @ weight, x), first)
