"""Tensors of files into modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.loading.filling import fill, place, take
from engine.loading.tensor_files import Source, open_tensors, write_safetensors
from engine.runtime.fp8 import FP8, Fp8Linear

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def module(device: str = "meta") -> nn.Sequential:
    with torch.device(device):
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def source(folder: Path, tensors: dict[str, torch.Tensor], name: str = "m") -> Source:
    path = folder / f"{name}.safetensors"
    write_safetensors(path, tensors)
    return Source(open_tensors(path), {key: f"part.{key}" for key in module().state_dict()}, {})


def numbers() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(7)
        for key, value in module().state_dict().items()
    }


def test_place_keeps_parameters_and_buffers_apart() -> None:
    """A tensor replaces what the module has under that name, as the same kind."""
    with torch.device("meta"):
        module = nn.Sequential(nn.BatchNorm1d(2))
    place(module, "0.weight", torch.ones(2))
    place(module, "0.running_mean", torch.ones(2))
    assert isinstance(module[0].weight, nn.Parameter) and not module[0].weight.requires_grad
    assert not isinstance(module[0].running_mean, nn.Parameter)
    assert torch.equal(module.state_dict()["0.running_mean"], torch.ones(2))
    assert module.state_dict()["0.running_var"].is_meta


def test_types_follow_what_is_asked(tmp_path: Path) -> None:
    """Linear layers take the lower type, all else keeps the module's; whole numbers stay whole."""
    filled = {"part": module()}
    steps: list[tuple[int, int]] = []
    dtypes = {"part.0.weight": torch.bfloat16, "part.0.bias": torch.bfloat16}
    fill(filled, [source(tmp_path, numbers())], CPU, dtypes, lambda done, total: steps.append((done, total)))
    state = filled["part"].state_dict()
    assert state["0.weight"].dtype == state["0.bias"].dtype == torch.bfloat16
    assert state["1.weight"].dtype == torch.float32 and state["1.num_batches_tracked"] == 7
    assert torch.equal(state["0.weight"], numbers()["0.weight"].bfloat16())
    assert steps[-1][0] == steps[-1][1] == sum(value.nbytes for value in numbers().values())


def test_weights_in_eight_bits(tmp_path: Path) -> None:
    """A linear layer is replaced by one that stores 8 bits, and gets its bias."""
    filled = {"part": module()}
    fill(filled, [source(tmp_path, numbers())], CPU, {"part.0.weight": FP8})
    layer = filled["part"][0]
    assert isinstance(layer, Fp8Linear) and layer.get_buffer("stored").dtype == FP8
    assert torch.equal(layer.bias, numbers()["0.bias"])
    expected = nn.functional.linear(torch.ones(1, 4), numbers()["0.weight"], numbers()["0.bias"])
    assert (layer(torch.ones(1, 4)) - expected).abs().max() < 0.1


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Missing, surplus, mis-shaped and non-finite tensors are in one message, and nothing is placed."""
    tensors = numbers()
    del tensors["0.bias"]
    tensors |= {"0.weight": torch.zeros(4, 3), "extra": torch.zeros(1), "1.bias": torch.full((3,), float("nan"))}
    filled = {"part": module()}
    with pytest.raises(ValueError) as caught:
        fill(filled, [source(tmp_path, tensors)], CPU)
    tensors["0.weight"] = torch.zeros(3, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"0.weight is torch.int32, expected a type such as torch.float32"):
        fill(filled, [source(tmp_path, tensors, "whole")], CPU)
    for words in (
        "4 faults", "0.bias is missing, expected [3]", "extra [1] is not part", "0.weight is [4, 3], expected [3, 4]",
        "1.bias holds NaN or infinite numbers, expected finite",
    ):  # fmt: skip
        assert words in str(caught.value)
    assert all(value.is_meta for value in filled["part"].state_dict().values())


def test_later_files_win(tmp_path: Path) -> None:
    """Of two files that hold a tensor the last is read."""
    first, second = numbers(), {key: value + 1 for key, value in numbers().items()}
    filled = {"part": module()}
    fill(filled, [source(tmp_path, first, "a"), source(tmp_path, second, "b")], CPU)
    assert torch.equal(filled["part"][0].weight, second["0.weight"])


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (1500, 1000)])
def test_copies_own_their_memory(shape: tuple[int, ...]) -> None:
    """What is taken does not change with its source, whatever its size."""
    original = torch.ones(shape)
    copy, finite = take(original, CPU, torch.bfloat16)
    original.fill_(2.0)
    assert finite and copy.shape == shape and copy.dtype == torch.bfloat16 and bool((copy == 1).all())


MEASURE = """
import re, sys
from pathlib import Path
import psutil, torch
from torch import nn
from engine.loading.filling import fill
from engine.loading.tensor_files import Source, open_tensors
with torch.device("meta"):
    modules = {name: nn.Linear(2048, 4096) for name in ("a", "b", "c", "d")}
files = [open_tensors(path, None) for path in sorted(Path(sys.argv[1]).iterdir())]
sources = [
    Source(file, {"weight": f"{name}.weight", "bias": f"{name}.bias"}, {})
    for name, file in zip(modules, files, strict=True)
]
before = psutil.Process().memory_info().rss
fill(modules, sources, torch.device("cpu"))
peak = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(peak - before)
"""


def test_the_host_holds_one_file_beside_what_is_placed(tmp_path: Path) -> None:
    """Loading four files of either kind takes no more memory than their weights and the largest file."""
    tensors = {"weight": torch.ones(4096, 2048), "bias": torch.ones(4096)}
    for name in ("a.safetensors", "c.safetensors"):
        write_safetensors(tmp_path / name, tensors)
    for name in ("b.pt", "d.pt"):
        torch.save(tensors, tmp_path / name)
    size = sum(value.nbytes for value in tensors.values())
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True, cwd=ROOT
    )
    slack = 12 << 20
    assert 4 * size - slack < int(run.stdout) < 5 * size + slack
