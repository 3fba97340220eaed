#!/usr/bin/env bash
# On a processor with AVX2 and without AVX-512, 3x3 convolutions in float32 are quicker as Winograd's F(4 x 4, 3 x 3)
# written in torch's own matrix products than by torch's convolution (oneDNN's direct one), although every tile goes to
# memory and back five times. NNPACK, which torch carries with a Winograd of its own, is slower than both. ONNX Runtime
# is about as quick as Winograd, OpenVINO as torch.
#
# Seen with torch 2.13.0, onnxruntime 1.32.0, openvino 2026.4.1, two cores of an AMD EPYC, 2026-12-01:
#   2 x 128 x 32 x 48: torch 50.75 ms, winograd 45.47 ms, nnpack 78.75 ms, onnxruntime 45.86 ms, openvino 52.23 ms
#   7 x 96 x 16 x 24: torch 30.60 ms, winograd 23.37 ms, nnpack 38.30 ms, onnxruntime 24.71 ms, openvino 30.29 ms
# The machine had half of its speed then; an hour before, at its own, torch took 1.7 to 1.8 times Winograd's time (with
# SiLU between the convolutions).
#
# Fails where the answers differ by more than 3e-5 or Winograd is slower than torch's convolution in both places.
set -euo pipefail

if grep -q avx512f /proc/cpuinfo; then
    export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install -q torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
"$folder/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import onnx.helper as make
import onnxruntime
import openvino
import torch
import torch.nn.functional as F
from onnx import TensorProto

torch.set_grad_enabled(False)
torch.manual_seed(0)
THREADS = torch.get_num_threads()
B = torch.tensor(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float64,
)
G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
A = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)
READ, GIVE = torch.kron(B, B).float(), torch.kron(A, A).float()


def winograd(weight):
    made = torch.einsum("ai,bj,ocij->abco", G, G, weight.double()).flatten(0, 1).float().contiguous()

    def convolve(x):  # [N, C, H, W], channels last in memory
        tiles = F.pad(x.movedim(1, -1), (0, 0, 1, 1, 1, 1)).unfold(1, 6, 4).unfold(2, 6, 4).movedim(3, -1)
        read = READ @ tiles.reshape(-1, 36, x.shape[1])
        given = (GIVE @ torch.bmm(read.transpose(0, 1), made).transpose(0, 1)).view(*tiles.shape[:3], 4, 4, -1)
        return given.transpose(2, 3).flatten(1, 2).flatten(2, 3).movedim(-1, 1)

    return convolve


def graph(weights):
    kept = [make.make_tensor(f"w{i}", TensorProto.FLOAT, w.shape, w.flatten().tolist()) for i, w in enumerate(weights)]
    names = [f"x{i}" for i in range(len(weights) + 1)]
    nodes = [
        make.make_node("Conv", [before, one.name], [after], pads=[1, 1, 1, 1])
        for before, one, after in zip(names, kept, names[1:])
    ]
    channels = weights[0].shape[0]
    ends = [
        make.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "h", "w"]) for name in (names[0], names[-1])
    ]
    model = make.make_model(make.make_graph(nodes, "all", ends[:1], ends[1:], kept), ir_version=9)
    model.opset_import[0].version = 17
    return model.SerializeToString()


def onnx_runtime(weights):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(graph(weights), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x0": x.numpy()})[0])


def open_vino(weights):
    core = openvino.Core()
    limits = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(graph(weights)), "CPU", limits)
    return lambda x: torch.from_numpy(model([x.numpy()])[0])


def each(layer):
    def of(weights):
        layers = [layer(weight) for weight in weights]

        def answer(x):
            for one in layers:
                x = one(x)
            return x

        return answer

    return of


WAYS = {
    "torch": each(lambda weight: lambda x: F.conv2d(x, weight, padding=1)),
    "winograd": each(winograd),
    "nnpack": each(lambda weight: lambda x: torch._nnpack_spatial_convolution(x, weight, None, padding=[1, 1])),
    "onnxruntime": onnx_runtime,
    "openvino": open_vino,
}
slower = []
for count, channels, height, width in ((2, 128, 32, 48), (7, 96, 16, 24)):
    x = torch.randn(count, channels, height, width)
    # Several in a row, as in a network: the weights of one do not stay in the cache.
    weights = [torch.randn(channels, channels, 3, 3) / (3 * channels**0.5) for _ in range(6)]
    exact = x.double()
    for weight in weights:
        exact = F.conv2d(exact, weight.double(), padding=1)
    ways = {name: way(weights) for name, way in WAYS.items()}
    inputs = {name: x for name in ways} | {"winograd": x.contiguous(memory_format=torch.channels_last)}
    for name, answer in ways.items():
        error = float((answer(inputs[name]).double() - exact).norm() / exact.norm())
        assert error < 3e-5, f"{name}: relative error {error:.1e}"
    times = {name: [] for name in ways}
    for _ in range(25):
        for name, answer in ways.items():
            time.sleep(0.05)  # threads of the one before may spin on
            begin_s = time.perf_counter()
            answer(inputs[name])
            times[name].append(1000 * (time.perf_counter() - begin_s))
    medians = {name: statistics.median(values[3:]) for name, values in times.items()}
    told = ", ".join(f"{name} {median:.2f} ms" for name, median in medians.items())
    print(f"{count} x {channels} x {height} x {width}: {told}; torch / winograd {medians['torch'] / medians['winograd']:.2f}")
    slower.append(medians["winograd"] > medians["torch"])
sys.exit("Winograd is slower now" if all(slower) else 0)
PYTHON
