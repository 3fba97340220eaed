"""Several processes of one training: the same learning as one process, and files that one process can go on with."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.training import run, sharding
from engine.training.run import RunConfig

ROOT = Path(__file__).parents[1]


class Blocks(nn.Module):
    """Two blocks between two maps, and a buffer that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2))
        self.last = nn.Linear(8, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x)
        return out


class Sum:
    """A stage that fits the sum of four numbers."""

    def __init__(self, whole_steps: bool) -> None:
        """`whole_steps` sees in one process what two processes see together."""
        torch.manual_seed(0)
        self.module: nn.Module = Blocks()
        self.whole_steps = whole_steps

    def hidden(self) -> list[nn.Parameter]:
        return []

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        numbers = [2 * step, 2 * step + 1] if self.whole_steps else [step]
        draws = [torch.randn(batch, 4, generator=torch.Generator().manual_seed(number)) for number in numbers]
        x = torch.cat(draws)
        self.module.get_buffer("seen").add_(step)
        return (self.module(x)[:, 0] - x.sum(1)).square().mean(), {}

    def evaluate(self) -> dict[str, float]:
        return {"seen": float(self.module.get_buffer("seen"))}

    def export(self) -> None:
        pass


def config(folder: Path) -> RunConfig:
    return RunConfig(folder=folder, minutes=60, batch=8, lr=0.01)


def steps(made: "run.Run", count: int) -> None:
    """Some steps, and a checkpoint."""
    for _ in range(count):
        made.one_step(0.0)
    made.spent_s = 12.5
    made.save()


def two(folder: Path, body: str) -> list[str]:
    """Runs a program in two processes as torchrun starts them, and gives what each printed."""
    program = folder / "program.py"
    program.write_text(
        f"import sys\nsys.path[:0] = {[str(Path(__file__).parent), str(ROOT)]!r}\n"
        "import dataclasses\nfrom pathlib import Path\nfrom engine.training import run, sharding\n"
        "from test_sharding import Sum, config, steps\nsharding.begin('cpu')\n"
        # A file each: in one stream their lines run into each other.
        + f"sys.stdout = open({str(folder)!r} + f'/said_{{sharding.rank()}}.txt', 'w')\n"
        + textwrap.dedent(body)
        # Without the interpreter's own end, in which gloo's threads now and then abort a process that is done.
        + "\nsys.stdout.close()\nsharding.end()\nimport os\nos._exit(0)\n"
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    result = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-3000:]
    return [(folder / f"said_{rank}.txt").read_text() for rank in range(2)]


@pytest.mark.timeout(300)
def test_two_processes_learn_as_one_does_and_it_can_go_on(tmp_path: Path) -> None:
    """Four steps of two processes give the weights of four steps of one with both halves; both resume each other's."""
    said = two(
        tmp_path,
        f"""
        made = run.Run(Sum(False), config(Path({str(tmp_path / "two")!r})))
        kinds = {{type(parameter).__name__ for parameter in made.stage.module.blocks.parameters()}}
        steps(made, 4)
        again = run.Run(Sum(False), config(Path({str(tmp_path / "two")!r})))
        again.resume()
        assert again.step == 4 and again.spent_s == 12.5
        steps(again, 1)
        stage = Sum(False)
        stage.hidden = lambda: [block[0].weight for block in stage.module.blocks]
        try:
            run.optimisers(stage, dataclasses.replace(config(Path(".")), muon_lr=0.01))
        except ValueError as error:
            print(error)
        print(sharding.rank(), kinds, sharding.agreed(7.0 + sharding.rank()))
        """,
    )
    for rank, text in enumerate(said):
        assert f"{rank} {{'DTensor'}} 7.0\n" in text
        assert "2 processes share them: give --muon-lr 0" in text
    one = run.Run(Sum(True), config(tmp_path / "one"))
    steps(one, 5)
    saved = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two")]
    for name, value in saved[0]["module"].items():
        if name != "seen":
            torch.testing.assert_close(saved[1]["module"][name], value, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(saved[1]["average"][name], saved[0]["average"][name], atol=1e-5, rtol=1e-4)
    # The first process' buffer, which saw the even numbers.
    assert float(saved[1]["module"]["seen"]) == 0 + 2 + 4 + 6 + 8
    alone = run.Run(Sum(False), config(tmp_path / "two"))
    alone.resume()
    assert alone.step == 5
    torch.testing.assert_close(alone.stage.module.state_dict(), saved[1]["module"])


def test_alone_nothing_changes() -> None:
    """One process has its own clock, its own steps and plain parameters."""
    module = Blocks()
    sharding.shard(module)
    assert type(module.blocks[0][0].weight) is nn.Parameter
    assert (sharding.agreed(3.5), sharding.step_of(9), sharding.size(), sharding.rank()) == (3.5, 9, 1, 0)
    module(torch.ones(2, 4)).sum().backward()
    module.last.weight.grad = torch.full((1, 8), 100.0)
    sharding.settle(module, 1.0)
    norm = sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None)
    assert norm == pytest.approx(1.0, abs=1e-3)
