"""`python -m engine.bench.runtimes`: `mini`'s convolutions by the engine, by torch alone and by other runtimes.

Blocks as those of the decoder's finer level and of the renderer's head, with random weights, in float32 on a CPU. First
each must give the exact answer; then they take turns in one process. `pip install onnx onnxruntime openvino` for the
others; those that are missing are left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.bench.contenders import race, summary
from engine.bench.report import commit_of_this_tree, processor
from engine.loading.options import use_cores
from engine.perceptual.mini.vae import TinyVAEBlock
from engine.runtime.packing import pack
from engine.wire.files import check_target, write_atomically

# Pictures of a call, channels, rows and columns; three blocks of two 3x3 convolutions each.
PLACES = {"decoder": (2, 128, 32, 48), "head": (7, 96, 16, 24)}
BLOCKS = 3
ROUNDS = 25
ALLOWED_ERROR = 1e-5  # relative, of the root mean squares
PAUSE_S = 0.05  # before each turn: threads of the one before may spin on for a while
OURS = "ours"
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino")

Answer = Callable[[Tensor], Tensor]


def ours(blocks: nn.Module) -> Answer:
    """As the engine computes them."""
    packed = copy.deepcopy(blocks)
    pack(packed, 1)
    return packed


def direct(blocks: nn.Module) -> Answer:
    """torch's own way, which is oneDNN's."""
    return blocks


def channels_last(blocks: nn.Module) -> Answer:
    """The same, of pictures and weights whose channels come last."""
    last = copy.deepcopy(blocks).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: last(x.contiguous(memory_format=torch.channels_last))


def onnx_runtime(blocks: nn.Module) -> Answer:
    """ONNX Runtime with as many threads. Raises ImportError where it is missing."""
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_graph(blocks), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def openvino(blocks: nn.Module) -> Answer:
    """OpenVINO likewise. Raises ImportError where it is missing."""
    core = import_module("openvino").Core()
    limits = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    compiled = core.compile_model(core.read_model(_graph(blocks)), "CPU", limits)
    return lambda x: torch.from_numpy(compiled([x.numpy()])[0])


RUNTIMES = (ours, direct, channels_last, onnx_runtime, openvino)


def _graph(blocks: nn.Module) -> bytes:
    """The blocks as an ONNX model, for any number of pictures of any size. Raises ImportError without onnx."""
    helper, kinds = import_module("onnx.helper"), import_module("onnx").TensorProto
    nodes: list[Any] = []
    weights: list[Any] = []
    last = "x"

    def add(kind: str, *inputs: str, **how: Any) -> str:
        name = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **how))
        return name

    for block in blocks.children():
        assert isinstance(block, TinyVAEBlock)
        hidden = last
        for layer in (block.first, block.second):
            names = [f"{kind}{len(weights)}" for kind in ("weight", "bias")]
            for name, value in zip(names, (layer.weight, layer.bias), strict=True):
                assert isinstance(value, Tensor)
                weights.append(helper.make_tensor(name, kinds.FLOAT, value.shape, value.detach().flatten().tolist()))
            hidden = add("Mul", hidden, add("Sigmoid", hidden))
            hidden = add("Conv", hidden, *names, pads=[1, 1, 1, 1])
        last = add("Add", last, hidden)
    channels = weights[0].dims[1]
    ends = [helper.make_tensor_value_info(name, kinds.FLOAT, ["n", channels, "h", "w"]) for name in ("x", last)]
    model = helper.make_model(helper.make_graph(nodes, "blocks", ends[:1], ends[1:], weights), ir_version=9)
    model.opset_import[0].version = 17
    return bytes(model.SerializeToString())


@torch.no_grad()
def compare(rounds: int, not_measured: list[str]) -> dict[str, Any]:
    """Milliseconds of each at each place, and how many times less ours takes, turn by turn.

    What is missing is said in `not_measured`.

    Raises:
        ArithmeticError: an answer is wrong.
    """
    found: dict[str, Any] = {}
    for place, (count, channels, height, width) in PLACES.items():
        torch.manual_seed(0)
        blocks = nn.Sequential(*(TinyVAEBlock(channels) for _ in range(BLOCKS))).requires_grad_(False).eval()
        x = torch.randn(count, channels, height, width)
        exact = copy.deepcopy(blocks).double()(x.double())
        answers: dict[str, Answer] = {}
        for runtime in RUNTIMES:
            try:
                answers[runtime.__name__] = runtime(blocks)
            except ImportError as error:
                not_measured.append(f"{place}: {error}")
        for name, answer in answers.items():
            apart = float((answer(x).double() - exact).norm() / exact.norm())
            if not apart <= ALLOWED_ERROR:
                raise ArithmeticError(f"{name} differs by {apart:.1e} from the exact answer of the {place}'s blocks")
        turns = {name: _paused(answer, x) for name, answer in answers.items()}
        times = {name: parts["answer"] for name, parts in race(turns, rounds, torch.device("cpu")).items()}
        found[place] = {
            name: {"ms": summary(values), "times_ours": summary(values / times[OURS])} for name, values in times.items()
        }
    return found


def _paused(answer: Answer, x: Tensor) -> Callable[[], dict[str, float]]:
    def turn() -> dict[str, float]:
        time.sleep(PAUSE_S)
        begin_s = time.perf_counter()
        answer(x)
        return {"answer": time.perf_counter() - begin_s}

    return turn


def main(argv: Sequence[str] | None = None) -> int:
    """Races and writes; returns the exit status: 1 an answer is wrong, 2 bad arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m engine.bench.runtimes", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="F.json", help="write the figures there")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each (default: {ROUNDS})")
    arguments = parser.parse_args(words)
    if arguments.rounds < 1:
        parser.error(f"{arguments.rounds} rounds asked for, at least 1 is needed")
    try:
        if arguments.json:
            check_target(arguments.json, ".json")
        use_cores()
        not_measured: list[str] = []
        report: dict[str, Any] = {
            "command": " ".join(["python -m engine.bench.runtimes", *words]), "commit": commit_of_this_tree(),
            "device": processor(), "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {found.name: found.version for found in distributions() if found.name in PACKAGES},
            "places": compare(arguments.rounds, not_measured),
            "not_measured": not_measured,
        }  # fmt: skip
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        sys.stdout.write(text)
        if arguments.json:
            write_atomically(arguments.json, lambda part: part.write_text(text, encoding="utf-8"))
    except (ArithmeticError, ValueError, OSError) as error:
        sys.stderr.write(f"runtimes: {error}\n")
        return 1 if isinstance(error, ArithmeticError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
