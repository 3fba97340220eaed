"""Golden cases: NAME.json (configuration, run parameters) beside NAME.safetensors (weights, inputs, outputs)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "data" / "golden"
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Golden:
    """One case."""

    facts: dict[str, Any]  # the whole json
    tensors: dict[str, Tensor]  # inputs and outputs
    weights: dict[str, Tensor]  # under their published names

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.facts["config"]
        return config

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def load(name: str) -> Golden:
    """Reads a case of the folder by its name without ending."""
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    tensors = load_file(FOLDER / f"{name}.safetensors")
    prefix = facts["state_dict_prefix"]
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return Golden(facts, {key: value for key, value in tensors.items() if not key.startswith(prefix)}, weights)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest expected magnitude; shapes must agree."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    scale = expected.double().abs().max().clamp(min=1e-12)
    return float((actual.double() - expected.double()).abs().max() / scale)
