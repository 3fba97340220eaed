"""Golden cases: NAME.json (kind, sizes, run parameters) beside NAME.safetensors (weights, inputs, outputs)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.loading.published_names_semantic import Rules, to_ours

TOLERANCE = 1e-5  # of the relative error in float32
_WEIGHTS = "sd/"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest expected magnitude; NaN where any difference is.

    Raises:
        ValueError: if the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"the result is {list(actual.shape)}, the case expects {list(expected.shape)}")
    if not expected.numel():
        return 0.0
    scale = expected.double().abs().max().clamp(min=1e-12)
    return float((actual.double() - expected.double()).abs().max() / scale)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One result against what a case expects."""

    name: str
    error: float  # relative; of what must be exact, the number of entries that differ
    exact: bool

    @property
    def passed(self) -> bool:
        return self.error == 0 if self.exact else self.error <= TOLERANCE


@dataclass(frozen=True, slots=True)
class Case:
    """A case being checked. It keeps count of which tensors were read, so that none is passed over in silence."""

    name: str
    facts: dict[str, Any]  # the whole json
    device: torch.device
    tensors: dict[str, Tensor]  # inputs and outputs
    weights: dict[str, Tensor]  # under their published names
    comparisons: list[Comparison] = field(default_factory=list)
    read: set[str] = field(default_factory=set)

    @property
    def kind(self) -> str:
        return str(self.facts.get("case"))

    @property
    def config(self) -> dict[str, Any]:
        config = self.facts.get("config")
        if not isinstance(config, dict):
            raise ValueError("the json holds no table of sizes 'config'")
        return config

    @property
    def unread(self) -> list[str]:
        """Tensors that nothing has read or compared."""
        return sorted(self.tensors.keys() - self.read)

    @property
    def missing(self) -> list[str]:
        """Tensors that the json lists and that are not there."""
        return sorted(self.facts.get("tensors", {}).keys() - self.tensors.keys())

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"the case holds no tensor {name!r}")
        self.read.add(name)
        return self.tensors[name]

    def close(self, name: str, actual: Callable[[], Tensor] | Tensor) -> None:
        """Compares a result with the case's tensor of that name, if the case has one; views may differ in shape."""
        if name in self:
            self.near(name, actual() if callable(actual) else actual, self[name])

    def near(self, name: str, actual: Tensor, expected: Tensor) -> None:
        """Compares a result with a value; a dimension of length 1 more or less does not matter."""
        if _squeezed(actual) == _squeezed(expected):
            actual = actual.reshape(expected.shape)
        actual = actual.to(expected.device)
        self.comparisons.append(Comparison(name, relative_error(actual, expected), exact=False))

    def same(self, name: str, actual: Tensor) -> None:
        """Compares whole numbers, or draws, which must be equal, with the case's tensor of that name."""
        expected = self[name]
        if _squeezed(actual) != _squeezed(expected):
            raise ValueError(f"{name}: the result is {list(actual.shape)}, the case expects {list(expected.shape)}")
        differing = int((actual.reshape(expected.shape).to(expected) != expected).sum())
        self.comparisons.append(Comparison(name, float(differing), exact=True))

    def fill(self, module: nn.Module, rules: Rules, published: str = "", ours: str = "") -> None:
        """Loads weights into a module, strictly, and puts it in evaluation mode on the device of the case.

        Args:
            module: what the weights under `published` are for.
            rules: how they are renamed.
            published: put before the case's names to make those that the rules know.
            ours: prefix to take off our names.
        """
        named = {to_ours(published + key, rules).removeprefix(ours): value for key, value in self.weights.items()}
        module.load_state_dict(named, strict=True)
        module.eval().to(self.device)


def _squeezed(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def load_case(path: Path, device: str = "cpu") -> Case:
    """Reads the case whose json this is, onto a device.

    Raises:
        ValueError: if the json is no object or the tensors beside it are missing.
    """
    facts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise ValueError("the json holds no case: an object with the key 'case' is expected")
    beside = path.with_suffix(".safetensors")
    if not beside.is_file():
        raise ValueError(f"{beside.name} is missing beside it")
    tensors = load_file(beside, device)
    prefix = facts.get("state_dict_prefix", _WEIGHTS)
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    rest = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
    return Case(path.stem, facts, torch.device(device), rest, weights)


def seeded(seed: int) -> torch.Generator:
    """The CPU generator that `torch.manual_seed(seed)` gives."""
    return torch.Generator().manual_seed(seed)
