"""Golden cases: NAME.json (kind, sizes, run parameters) beside NAME.safetensors (weights, inputs, outputs)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.loading.published_names_semantic import Rules, to_ours

M = TypeVar("M", bound=nn.Module)

TOLERANCE = 1e-5  # of the relative error in float32
_WEIGHTS = "sd/"


@dataclass(frozen=True, slots=True)
class Case:
    """A case being checked. It records which tensors were read, so that none is left out silently."""

    facts: dict[str, Any]  # the whole json
    device: torch.device
    tensors: dict[str, Tensor]  # inputs and outputs
    weights: dict[str, Tensor]  # under their published names
    errors: dict[str, float] = field(default_factory=dict)  # of compared results, relative
    differing: dict[str, int] = field(default_factory=dict)  # of results that must be equal, entries that are not
    read: set[str] = field(default_factory=set)

    @property
    def config(self) -> Any:
        """The table of sizes."""
        return self.facts["config"]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"the case holds no tensor {name!r}")
        self.read.add(name)
        return self.tensors[name]

    def check(self, prefix: str = "", /, **results: Tensor) -> None:
        """Compares results with the tensors PREFIX + NAME, as far as the case has them; ValueError as `compare`."""
        for name, actual in results.items():
            if prefix + name in self:
                self.compare(prefix + name, actual, self[prefix + name])

    def compare(self, name: str, actual: Tensor, expected: Tensor, exact: bool = False) -> None:
        """Integers and booleans must be equal, floats only if `exact`. Dimensions of length 1 are ignored.

        Raises:
            ValueError: if the shapes differ.
        """
        if actual.squeeze().shape != expected.squeeze().shape:
            raise ValueError(f"{name}: the result is {list(actual.shape)}, the case expects {list(expected.shape)}")
        actual = actual.reshape(expected.shape).to(expected.device)
        if exact or not expected.is_floating_point():
            self.differing[name] = int((actual != expected).sum())
        else:
            self.errors[name] = relative_error(actual, expected)

    def verdict(self) -> str:
        """The largest error and the numbers of results.

        Raises:
            ValueError: naming wrong results, tensors that the json lists and the file lacks, and tensors that no check
                has read.
        """
        faults = [f"{name}: error {error:.2e}" for name, error in self.errors.items() if not error <= TOLERANCE]
        faults += [f"{name}: {count} entries differ" for name, count in self.differing.items() if count]
        if missing := sorted(self.facts.get("tensors", {}).keys() - self.tensors.keys()):
            faults.append(f"listed, but not there: {', '.join(missing)}")
        if unread := sorted(self.tensors.keys() - self.read):
            faults.append(f"no check knows {', '.join(unread)}")
        if not self.errors and not self.differing:
            faults.append("nothing to compare")
        if faults:
            raise ValueError("; ".join(faults))
        worst, name = max(((error, name) for name, error in self.errors.items()), default=(0.0, "none"))
        return f"error {worst:.2e} at {name}, {len(self.errors)} results within tolerance, {len(self.differing)} exact"

    def fill(self, module: M, rules: Rules, prefix: str = "") -> M:
        """The module with the weights, which must be all of its own, in evaluation mode on the device of the case.

        Args:
            rules: of renaming.
            prefix: put before the case's names to make those that the rules know.
        """
        module.load_state_dict({to_ours(prefix + key, rules): value for key, value in self.weights.items()})
        return module.eval().to(self.device)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest expected magnitude; NaN where any difference is.

    Raises:
        ValueError: if the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"the result is {list(actual.shape)}, the case expects {list(expected.shape)}")
    scale = expected.double().abs().max().clamp(min=1e-12)
    return float((actual.double() - expected.double()).abs().max() / scale)


def load_case(path: Path, device: str = "cpu") -> Case:
    """Reads the case of a path without its ending, onto a device.

    Raises:
        OSError: if one of its two files is missing.
        ValueError: if the json holds no object.
    """
    facts = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise ValueError("the json holds no case: an object with the key 'case' is expected")
    tensors = load_file(path.with_name(path.name + ".safetensors"), device)
    prefix = facts.get("state_dict_prefix", _WEIGHTS)
    weights = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
    return Case(facts, torch.device(device), tensors, weights)
