"""CPU traces: the operators of a function, run again with other inputs, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config, write_weights
from torch import Tensor, nn

from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames
from engine.loading.model import load
from engine.runtime.cpu_trace import CpuTrace
from engine.runtime.graphs import Graphs
from engine.runtime.pytree import leaves


@dataclass(frozen=True)
class Pair:
    first: Tensor
    second: Tensor | None


def _play(trace: CpuTrace, *trees: object) -> object:
    return trace.play(leaves(trees))


@torch.inference_mode()
def test_other_inputs_give_the_functions_own_bits() -> None:
    """Views, several results of one operator, literals and modules' weights, under autocast and outside of it."""
    layer, norm = nn.Linear(8, 12), nn.LayerNorm(8)

    def function(pair: Pair, scale: Tensor) -> Pair:
        with torch.autocast("cpu", torch.bfloat16):
            low, high = layer(norm(pair.first)).chunk(2, dim=-1)
            joined = torch.cat([F.gelu(low, approximate="tanh"), high[:, ::2] * 0.5], dim=-1)
        return Pair(joined.float() * scale, joined.transpose(0, 1)[1:].sum(0, keepdim=True))

    def inputs() -> tuple[Pair, Tensor]:
        return Pair(torch.randn(5, 8), None), torch.randn(())

    trace: CpuTrace[Pair] = CpuTrace(function, *inputs())
    for _ in range(3):
        given = inputs()
        made, expected = _play(trace, *given), function(*given)
        assert isinstance(made, Pair)
        assert all(torch.equal(a, b) for a, b in zip(leaves(made), leaves(expected), strict=True))
        assert len(leaves(made)) == 2 and leaves(made)[1].dtype == torch.bfloat16


@torch.inference_mode()
def test_what_is_held_is_read_and_written_where_it_is() -> None:
    """A cache is filled in place, and a weight that has changed since counts, also through a view of it."""
    cache, weight = torch.zeros(2, 4), torch.ones(2, 4)

    def function(x: Tensor, row: Tensor) -> Tensor:
        cache.index_copy_(0, row, x)
        return (cache * weight.view(2, 4)[:, :2].repeat(1, 2)).sum(1)

    trace: CpuTrace[Tensor] = CpuTrace(function, torch.ones(1, 4), torch.tensor([0]))
    weight.fill_(3)
    made = _play(trace, torch.full((1, 4), 2.0), torch.tensor([1]))
    assert isinstance(made, Tensor) and made.tolist() == [12.0, 24.0]
    assert cache.tolist() == [[1.0] * 4, [2.0] * 4]


@torch.inference_mode()
def test_inputs_are_apart_and_outputs_are_new() -> None:
    """One tensor given for two inputs stands for two; an input or a held tensor that comes back is a copy."""
    held, one = torch.zeros(2), torch.ones(2)
    trace: CpuTrace[list[Tensor]] = CpuTrace(lambda a, b: [a - b, a, b[:1], held], one, one)
    a, b = torch.full((2,), 5.0), torch.full((2,), 2.0)
    difference, *same = trace.play([a, b])
    assert difference.tolist() == [3.0, 3.0] and [part.tolist() for part in same] == [[5, 5], [2], [0, 0]]
    for part in same:
        part.fill_(9)
    assert (a.tolist(), b.tolist(), held.tolist()) == ([5, 5], [2, 2], [0, 0])


@pytest.mark.parametrize("read", [lambda x: x * x.sum().item(), lambda x: -x if bool(x[0] > 0) else x])
def test_a_value_must_not_decide(read) -> None:  # type: ignore[no-untyped-def]
    """A function that reads an input's value is refused instead of being played with an old one."""
    with torch.inference_mode(), pytest.raises(ValueError, match="must not read an input's value"):
        CpuTrace(read, torch.ones(2))


@torch.inference_mode()
def test_what_no_input_changes_may_be_read() -> None:
    """Numbers out of a table that the function holds are as fixed as its literals; what an input went into is not."""
    table = torch.tensor([2.0, 3.0])
    trace: CpuTrace[Tensor] = CpuTrace(lambda x: x * (table[1] + 1).item(), torch.ones(2))
    assert trace.play([torch.full((2,), 5.0)]).tolist() == [20.0, 20.0]
    with pytest.raises(ValueError, match="must not read"):
        CpuTrace(lambda x: x * (table.add_(x)[:1] * 2).item(), torch.ones(2))


@torch.inference_mode()
def test_products_that_autocast_does_not_reach_are_refused() -> None:
    """einsum would stay in float32 in a recording, and so give other bits than eagerly; a matmul does not."""
    weight, x = torch.randn(24, 24), torch.randn(8, 24)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="write it as a matmul"):
            CpuTrace(lambda x: torch.einsum("nc,cp->np", x, weight), x)
        trace: CpuTrace[Tensor] = CpuTrace(lambda x: torch.matmul(x, weight), x)
        expected = torch.matmul(x, weight)
    assert expected.dtype == torch.bfloat16 and torch.equal(trace.play([x]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_videos_from_traces_are_the_eager_ones(tmp_path: Path, dtype: torch.dtype) -> None:
    """Over several chunks, two videos and a new prompt, frames are the same bit for bit."""
    write_weights(tmp_path)
    model, prompts = load(tiny_config(), tmp_path, torch.device("cpu"), dtype), ("a red ball", "the blue boat")
    traced, eager = Generator(model, graphs=Graphs.on), Generator(model, graphs=_eager)
    channels = [[generator.open(prompt, 1) for prompt in prompts] for generator in (traced, eager)]
    for frames in (25, 24, 24):
        for one, other in zip(*channels, strict=True):
            changes = [Change(one.next.frame, "a green car")]
            made = [batch.i420 for batch in generate_frames(traced, one, frames, changes)]
            expected = [batch.i420 for batch in generate_frames(eager, other, frames, changes)]
            assert all((a == b).all() for a, b in zip(made, expected, strict=True))


def _eager(device: torch.device) -> Graphs:
    return Graphs(None)


@torch.inference_mode()
def test_recording_changes_no_input() -> None:
    """An input that the function changes in place is changed once by every play, and by the recording not at all."""
    state = torch.zeros(2)
    trace: CpuTrace[Tensor] = CpuTrace(lambda x: x.add_(1) * 10, state)
    assert state.tolist() == [0, 0]
    assert [trace.play([state]).tolist() for _ in range(2)] == [[10, 10], [20, 20]]
    assert state.tolist() == [2, 2]
