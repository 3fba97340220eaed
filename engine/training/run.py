"""One training run: time budget, learning-rate curve, averaged weights, checkpoints, metrics, plot.

A stage says what is trained and how a step's loss is made; everything else is here, the same for all stages.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from engine.training import sharding
from engine.training.muon import Muon

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 30.0
LOG_EVERY_STEPS = 20
CHECKPOINT = "checkpoint.pt"
WARM_UP_STEPS = 100
GRADIENT_NORM = 1.0  # longer ones are cut
DECAY_FROM = 0.4  # share of the budget after which the learning rate falls linearly
FINAL_LR = 0.03  # share of the learning rate at the end


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How long, where and how fast. `minutes` counts training time over all resumed calls.

    `signature` says what is trained; a checkpoint with another one is refused.
    """

    folder: Path
    minutes: float
    batch: int
    lr: float
    muon_lr: float = 0.0
    seed: int = 0
    device: str = "cpu"
    ema: float = 0.998
    evaluate_every_s: float = 240.0
    signature: str = ""

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")


class Stage(Protocol):
    """What a run trains."""

    module: nn.Module  # all that is saved; parameters that need no gradient are left alone

    def hidden(self) -> list[nn.Parameter]:
        """The matrices and convolutions that Muon updates; may be empty."""

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of step number `step`, whose data depend on the seed and `step` only, and figures to log."""

    def evaluate(self) -> dict[str, float]:
        """Held-out figures of `module` as it is."""

    def export(self) -> None:
        """Write `module` as shipped weights."""


def learning_rate(step: int, spent: float) -> float:
    """Share of the peak rate after `spent` (0..1) of the budget: warm-up, flat, then linear to FINAL_LR."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    fall = max(0.0, (spent - DECAY_FROM) / (1 - DECAY_FROM))
    return warm * (1.0 - (1.0 - FINAL_LR) * min(1.0, fall))


def optimisers(stage: Stage, config: RunConfig) -> list[torch.optim.Optimizer]:
    """Muon for the stage's hidden matrices and AdamW for the rest."""
    hidden = stage.hidden() if config.muon_lr else []
    if hidden and sharding.size() > 1:
        raise ValueError(f"Muon needs whole matrices, but {sharding.size()} processes share them: give --muon-lr 0")
    chosen = {id(p) for p in hidden}
    rest = [p for p in stage.module.parameters() if p.requires_grad and id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)]
    if hidden:
        made.append(Muon(hidden, lr=config.muon_lr))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return made


class Averaged:
    """Exponential moving average of a module's trained parameters, short at first."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = module
        self.values = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after `step` steps."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.module.named_parameters():
            if name in self.values:
                self.values[name].lerp_(parameter.detach(), weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's parameters and the average; call again to undo."""
        for name, parameter in self.module.named_parameters():
            if name in self.values:
                kept = parameter.detach().clone()
                parameter.copy_(self.values[name])
                self.values[name].copy_(kept)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a neighbour of `path` and put it in place only when complete, so that a kill leaves no half."""
    partial = path.with_name(path.name + f".{os.getpid()}.part")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def train(stage: Stage, config: RunConfig) -> dict[str, float]:
    """Train until the budget is spent; resume from the folder's checkpoint if there is one.

    Returns:
        The last evaluation.

    Raises:
        FloatingPointError: if the loss is not finite.
        ValueError: if the folder's checkpoint is of another model.
    """
    run = Run(stage, config)
    run.resume()
    return run.to_the_end()


def read_checkpoint(config: RunConfig, mapped: bool = False) -> dict[str, Any] | None:
    """The checkpoint in the run's folder, or None; `mapped` leaves its tensors in the file.

    Raises:
        ValueError: if it is damaged or of another run.
    """
    path = config.folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location=config.device, weights_only=True, mmap=mapped)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        # What torch says is long, and advises to run what is in the file.
        raise ValueError(f"{path} is damaged ({type(error).__name__}): delete it, or give --folder") from error
    if saved.get("signature", config.signature) != config.signature:
        other = f"of another run, {saved['signature']!r} and not {config.signature!r}"
        raise ValueError(f"{path} is {other}: move it away or give --folder")
    return saved


class Run:
    """A run as far as it is: modules, optimisers, averaged weights and their checkpoint."""

    def __init__(self, stage: Stage, config: RunConfig) -> None:
        self.stage, self.config = stage, config
        sharding.shard(stage.module)
        self.optimisers = optimisers(stage, config)
        self.average = Averaged(stage.module, config.ema)
        self.step, self.spent_s = 0, 0.0
        config.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = config.folder / CHECKPOINT
        self.metrics = config.folder / "metrics.jsonl"

    def resume(self) -> None:
        """Load the checkpoint, if any."""
        saved = read_checkpoint(self.config)
        if saved is None:
            return
        try:
            sharding.load_module(self.stage.module, saved["module"])
            for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
                sharding.load_optimiser(optimiser, state)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.checkpoint} is of another model; move it away or give --folder: {error}"
            ) from error
        own = self.average.values
        self.average.values = {name: sharding.scattered(value, own[name]) for name, value in saved["average"].items()}
        self.step, self.spent_s = saved["step"], saved["spent_s"]
        log.info("resumed %s at step %d after %.1f min", self.checkpoint, self.step, self.spent_s / 60)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        content: dict[str, Any] = {
            "module": self.stage.module.state_dict(),
            "optimisers": sharding.gathered([optimiser.state_dict() for optimiser in self.optimisers]),
            "average": sharding.gathered(self.average.values),
            "step": self.step,
            "spent_s": self.spent_s,
            "signature": self.config.signature,
        }
        try:
            write_atomically(self.checkpoint, lambda path: torch.save(content, path))
        except (RuntimeError, OSError) as error:
            # torch wraps a full disk in a RuntimeError that does not name the file.
            raise OSError(f"{self.checkpoint} cannot be written, the one before is kept: {error}") from error

    def to_the_end(self) -> dict[str, float]:
        """The loop."""
        budget_s = self.config.minutes * 60
        saved_s = evaluated_s = last_s = sharding.agreed(time.monotonic())
        figures: dict[str, float] = {}
        title = self.config.folder.name
        with tqdm(total=round(budget_s), initial=round(self.spent_s), unit="s", desc=title, mininterval=1.0) as bar:
            while self.spent_s < budget_s:
                figures = self.one_step(self.spent_s / budget_s) or figures
                now_s = sharding.agreed(time.monotonic())
                self.spent_s += now_s - last_s
                bar.update(round(self.spent_s) - bar.n)
                last_s = now_s
                if self.step % LOG_EVERY_STEPS == 0:
                    bar.set_postfix(step=self.step, **{name: f"{value:.3f}" for name, value in figures.items()})
                    self.record("train", figures)
                if now_s - saved_s > CHECKPOINT_EVERY_S:
                    self.save()
                    saved_s = now_s
                if now_s - evaluated_s > self.config.evaluate_every_s:
                    self.evaluate_and_export()
                    last_s = evaluated_s = sharding.agreed(time.monotonic())
        self.save()
        result = self.evaluate_and_export()
        if sharding.rank() == 0 and find_spec("matplotlib"):
            plot(self.metrics, self.config.folder / "metrics.png")
        return result

    def one_step(self, spent: float) -> dict[str, float]:
        """One update of the parameters; the figures to log."""
        rate = learning_rate(self.step, spent)
        loss, figures = self.stage.loss(sharding.step_of(self.step), self.config.batch)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss {loss.item()} at step {self.step}: lower --lr or resume an earlier run")
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        sharding.settle(self.stage.module, GRADIENT_NORM)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rate
            optimiser.step()
        self.step += 1
        self.average.update(self.step)
        return {"loss": loss.item(), **figures}

    def evaluate_and_export(self) -> dict[str, float]:
        """Held-out figures of the averaged weights, which are then written as shipped weights."""
        training = self.stage.module.training
        self.average.swap()
        self.stage.module.eval()
        with torch.no_grad():
            figures = self.stage.evaluate()
            self.stage.export()
        self.stage.module.train(training)
        self.average.swap()
        self.record("evaluate", figures)
        tqdm.write(f"step {self.step}, {self.spent_s / 60:.1f} min: " + json.dumps(figures))
        return figures

    def record(self, kind: str, figures: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        if sharding.rank():
            return
        line = {"kind": kind, "step": self.step, "minutes": round(self.spent_s / 60, 3), **figures}
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")


def plot(metrics: Path, picture: Path) -> None:
    """Every figure of a metrics file over the minutes, one panel each."""
    from matplotlib.figure import Figure  # only needed here, and slow to import

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    names = sorted({(line["kind"], name) for line in lines for name in line if name not in ("kind", "step", "minutes")})
    figure = Figure(figsize=(5, 2.2 * len(names)), layout="constrained")
    for panel, (kind, name) in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        points = [(line["minutes"], line[name]) for line in lines if line["kind"] == kind and name in line]
        panel.plot(*zip(*points, strict=True))
        panel.set_title(f"{kind}: {name}", fontsize=9)
    write_atomically(picture, lambda path: figure.savefig(path, format="png"))
