"""A training run: time budget, learning-rate schedule, averaged weights, checkpoints, metrics.

A stage has modules and a loss; everything else is the same for all stages, and here.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import random
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from engine.loading.weights import save_component
from engine.training.muon import Muon
from engine.wire.files import write_atomically

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 30.0
EVALUATE_EVERY_S = 240.0
LOG_EVERY_STEPS = 20
EVALUATED_BATCHES = 8
CHECKPOINT = "checkpoint.pt"
WARM_UP_STEPS = 100
GRADIENT_NORM = 1.0  # longer ones are cut
DECAY_FROM = 0.4  # share of the budget after which the learning rate falls linearly
FINAL_LR = 0.03  # share of the learning rate at the end
NARROW = 8  # rows or columns of a matrix that AdamW updates better
AVERAGE_DECAY = 0.998  # of the averaged weights, a step


LossAndFigures = tuple[Tensor, dict[str, float]]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Budget and hyperparameters. `minutes` is the training time of all resumed calls together.

    `signature` names what is trained; a checkpoint with another signature is refused.
    """

    folder: Path
    minutes: float
    batch: int
    lr: float  # of AdamW
    muon_lr: float = 0.0
    seed: int = 0
    signature: str = ""

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")


class TrainingStage(ABC):
    """Modules to train, and their loss."""

    hidden = r"\.blocks\."  # pattern in the names of matrices and convolutions that Muon updates

    def __init__(self, weights: Path, module: nn.Module, **components: nn.Module) -> None:
        """Parameters of `module` with a gradient are trained, and all of it is saved in checkpoints. `components` are
        its parts that are exported to the folder `weights`, by name."""
        self.weights, self.module, self.components = weights, module, components

    @abstractmethod
    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        """Loss of `batch` random samples, and figures to log. `step` counts from 0."""

    def export(self) -> None:
        for name, module in self.components.items():
            save_component(self.weights, name, module)


def learning_rate(step: int, spent: float) -> float:
    """Rate relative to its peak, after `spent` (0..1) of the budget: warm-up, flat, then linear to FINAL_LR."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    fall = max(0.0, (spent - DECAY_FROM) / (1 - DECAY_FROM))
    return warm * (1.0 - (1.0 - FINAL_LR) * min(1.0, fall))


def optimisers(stage: TrainingStage, config: RunConfig) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices and convolutions except narrow ones, AdamW for the rest."""
    trained = {name: p for name, p in stage.module.named_parameters() if p.requires_grad}
    hidden = [
        trained.pop(name)
        for name, p in list(trained.items())
        if config.muon_lr and p.ndim in (2, 4) and min(p.shape[:2]) > NARROW and re.search(stage.hidden, name)
    ]
    adamw = torch.optim.AdamW(trained.values(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    return [adamw, Muon(hidden, lr=config.muon_lr)] if hidden else [adamw]


def read_checkpoint(config: RunConfig) -> dict[str, Any] | None:
    """The checkpoint of a run, or None. Raises ValueError if it is damaged or of another run."""
    path = config.folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        # What torch says is long, and advises to run what is in the file.
        raise ValueError(f"{path} is damaged ({type(error).__name__}): delete it, or give --folder") from error
    if saved["signature"] != config.signature:
        other = f"of another run, {saved['signature']!r} and not {config.signature!r}"
        raise ValueError(f"{path} is {other}: move it away or give --folder")
    return saved


class Run:
    """State of a run: step, time, optimisers and averaged weights."""

    def __init__(self, stage: TrainingStage, config: RunConfig) -> None:
        """Resumes from the checkpoint in the folder, if any. Raises ValueError if it is damaged or of another run."""
        self.stage, self.config = stage, config
        self.optimisers = optimisers(stage, config)
        self.trained = {name: p for name, p in stage.module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.step, self.spent_s = 0, 0.0
        config.folder.mkdir(parents=True, exist_ok=True)
        saved = read_checkpoint(config)
        if saved is not None:
            self._load(saved)

    def _load(self, saved: dict[str, Any]) -> None:
        path = self.config.folder / CHECKPOINT
        try:
            self.stage.module.load_state_dict(saved["module"])
            for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is of another model; move it away or give --folder: {error}") from error
        for name, value in self.average.items():
            value.copy_(saved["average"][name])
        self.step, self.spent_s = saved["step"], saved["spent_s"]
        log.info("resumed %s at step %d after %.1f min", path, self.step, self.spent_s / 60)

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        content: dict[str, Any] = {
            "module": self.stage.module.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "step": self.step,
            "spent_s": self.spent_s,
            "signature": self.config.signature,
        }
        path = self.config.folder / CHECKPOINT
        try:
            write_atomically(path, lambda part: torch.save(content, part))
        except (RuntimeError, OSError) as error:
            # torch wraps a full disk in a RuntimeError that does not name the file.
            raise OSError(f"{path} cannot be written, the one before is kept: {error.__cause__ or error}") from error

    def train(self) -> dict[str, float]:
        """Trains until the budget is spent; returns the last evaluation.

        Raises FloatingPointError if the loss is not finite.
        """
        budget_s = self.config.minutes * 60
        saved_s = evaluated_s = last_s = time.monotonic()
        self.stage.module.train()
        with tqdm(total=round(budget_s), initial=round(self.spent_s), unit="s", desc=self.config.folder.name) as bar:
            while self.spent_s < budget_s:
                figures = self.one_step(self.spent_s / budget_s)
                now_s = time.monotonic()
                self.spent_s += now_s - last_s
                bar.update(round(self.spent_s) - bar.n)
                last_s = now_s
                if self.step % LOG_EVERY_STEPS == 0:
                    bar.set_postfix(step=self.step, **figures)
                    self.record("train", figures)
                if now_s - saved_s > CHECKPOINT_EVERY_S:
                    self.save()
                    saved_s = now_s
                if now_s - evaluated_s > EVALUATE_EVERY_S:
                    self.evaluate_and_export()
                    last_s = evaluated_s = time.monotonic()
        self.save()
        return self.evaluate_and_export()

    def one_step(self, spent: float) -> dict[str, float]:
        """Updates the parameters once; returns figures to log."""
        rate = learning_rate(self.step, spent)
        rng = self.seeded(f"step {self.step}")
        loss, figures = self.stage.loss(self.step, rng, self.config.batch)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss {loss.item()} at step {self.step}: lower --lr or resume an earlier run")
        self.stage.module.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.stage.module.parameters(), GRADIENT_NORM)
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = optimiser.defaults["lr"] * rate
            optimiser.step()
        self.step += 1
        with torch.no_grad():  # over few steps at first
            weight = 1 - min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
            for name, value in self.average.items():
                value.lerp_(self.trained[name], weight)
        return {"loss": loss.item(), **figures}

    def seeded(self, what: str) -> random.Random:
        """Seeds torch and a new Python generator from the seed and a purpose."""
        rng = random.Random(f"{self.config.seed} {what}")
        torch.manual_seed(rng.getrandbits(63))
        return rng

    def evaluate_and_export(self) -> dict[str, float]:
        """Evaluates the averaged weights on held-out batches, always the same ones, and exports them."""
        self.swap_average()
        self.stage.module.eval()
        rng = self.seeded("held out")
        with torch.no_grad():
            rows = [
                {"loss": loss.item(), **figures}
                for index in range(EVALUATED_BATCHES)
                for loss, figures in [self.stage.loss(index, rng, self.config.batch, held_out=True)]
            ]
        self.stage.export()
        self.stage.module.train()
        self.swap_average()
        names = dict.fromkeys(name for row in rows for name in row)
        found = {name: [row[name] for row in rows if name in row] for name in names}
        result = {name: sum(values) / len(values) for name, values in found.items()}
        self.record("evaluate", result)
        tqdm.write(f"step {self.step}, {self.spent_s / 60:.1f} min: " + json.dumps(result))
        return result

    def swap_average(self) -> None:
        """Exchanges the trained parameters and their averages."""
        for name, parameter in self.trained.items():
            parameter.data, self.average[name] = self.average[name], parameter.data

    def record(self, kind: str, figures: dict[str, float]) -> None:
        """Appends a line to metrics.jsonl."""
        line = {"kind": kind, "step": self.step, "minutes": round(self.spent_s / 60, 3), **figures}
        with (self.config.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
