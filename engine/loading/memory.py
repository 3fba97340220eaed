"""What lives where, and in what type, for a budget of memory: decided and said before anything is loaded."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from engine.config import EngineConfig
from engine.loading.filling import uniform
from engine.loading.footprint import Footprint, footprints
from engine.runtime.fp8 import FP8, fp8_names, store_fp8
from engine.text.published import PublishedTextConfig, t5_xxl
from engine.text.small_t5 import TextConfig

logger = logging.getLogger(__name__)

TEXTS = ("planner_text", "renderer_text")  # the published model's encoders, which come beside the other components
_MARGIN = 1.05  # for the allocator
# What a call needs is counted in float32. Its products are in bfloat16, its norms may not be.
_COMPUTED_SHARE = 0.5 * 1.25
_RESERVE_BYTES = 1_500_000_000  # a CUDA context, workspaces of its libraries
_TEXT_CALL_BYTES = 250_000_000  # 512 tokens through a layer of T5-XXL
# In steps of what is given up: time at a new prompt, time at every hop, exactness of text, plan, picture.
_WAYS = ("text on demand", "vae on demand", "text in fp8", "planner in fp8", "renderer in fp8")


@dataclass(frozen=True, slots=True)
class Part:
    """A component's weights."""

    component: str
    weight_bytes: int
    on_demand: bool = False  # on the host until its turn comes, and again afterwards
    fp8: bool = False  # its blocks' weights


@dataclass(frozen=True, slots=True)
class Phase:
    """A time at which the device holds the most."""

    name: str
    weight_bytes: int
    kept_bytes: int  # caches and states of all stages
    passing_bytes: int  # what this stage needs while it runs

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.kept_bytes + self.passing_bytes + _RESERVE_BYTES


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where each component lives, and the most that each phase holds."""

    budget_bytes: int
    parts: tuple[Part, ...]
    phases: tuple[Phase, ...]

    @property
    def peak_bytes(self) -> int:
        return max(phase.peak_bytes for phase in self.phases)

    @property
    def host_bytes(self) -> int:
        """Weights that the host keeps for components on demand."""
        return sum(part.weight_bytes for part in self.parts if part.on_demand)

    def part(self, component: str) -> Part:
        """KeyError if the plan knows none of that name."""
        return {part.component: part for part in self.parts}[component]

    def dtypes(self, modules: Mapping[str, nn.Module], dtypes: Mapping[str, torch.dtype]) -> dict[str, torch.dtype]:
        """`dtypes` with 8 bits for the weights that the plan stores so, as `filling.fill` takes them."""
        named = {name: module for name, module in modules.items() if self.part(name).fp8}
        return {**dtypes, **{f"{part}.{name}": FP8 for part, module in named.items() for name in fp8_names(module)}}

    def text(self, config: TextConfig | PublishedTextConfig) -> TextConfig | PublishedTextConfig:
        """The text encoders' configuration under this plan: after use they leave the device, or they stay."""
        if isinstance(config, TextConfig):
            return config
        return replace(config, reserve_bytes=sys.maxsize if self.part(TEXTS[0]).on_demand else 0)

    def store_text(self, *encoders: nn.Module) -> None:
        """Stores the published text encoders, in the order of `TEXTS`, as the plan says."""
        for name, encoder in zip(TEXTS, encoders, strict=True):
            if self.part(name).fp8:
                logger.info("%s stored in 8 bits: %.1f %% off in root mean square", name, 100 * store_fp8(encoder))

    def table(self) -> str:
        """The plan for a person to read; GB are 10^9 bytes."""
        lines = [f"memory for {self.budget_bytes / 1e9:g} GB: at most {self.peak_bytes / 1e9:.1f} GB are used"]
        lines.append(f"  {'component':16}{'lives':14}{'blocks in':12}{'GB':>8}")
        for part in self.parts:
            place, kind = ("on demand" if part.on_demand else "on the device"), ("fp8" if part.fp8 else "bf16")
            lines.append(f"  {part.component:16}{place:14}{kind:12}{part.weight_bytes / 1e9:8.2f}")
        lines.append(f"  {'phase':16}{'weights':>10}{'states':>10}{'call':>10}{'reserve':>10}{'GB':>10}")
        for phase in self.phases:
            counts = (phase.weight_bytes, phase.kept_bytes, phase.passing_bytes, _RESERVE_BYTES, phase.peak_bytes)
            lines.append(f"  {phase.name:16}" + "".join(f"{count / 1e9:10.2f}" for count in counts))
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a preset's components take: counted once, for plans with any budget."""

    preset: str
    sizes: Mapping[str, tuple[int, int]]  # bytes of weights, without and with blocks in 8 bits
    calls: Mapping[str, Footprint]  # of each stage

    @classmethod
    def of(cls, config: EngineConfig, modules: Mapping[str, nn.Module], dtypes: Mapping[str, torch.dtype]) -> Needs:
        """Counts modules that are on the meta device.

        Args:
            modules: of the preset.
            dtypes: of their weights where nothing is stored in 8 bits.
        """
        sizes = {name: _sizes(name, module, dtypes) for name, module in modules.items()}
        if config.published:
            text = t5_xxl()
            sizes |= {name: _sizes(name, text, uniform({name: text}, torch.bfloat16)) for name in TEXTS}
        return cls(config.name, sizes, footprints(config, modules))

    def plan(self, budget_bytes: int) -> MemoryPlan:
        """The plan that gives up least.

        Raises:
            ValueError: if even the smallest plan does not fit, with the numbers.
        """
        plans = [_plan(budget_bytes, self, way) for way in _ways(TEXTS[0] in self.sizes)]
        for plan in plans:
            if plan.peak_bytes <= budget_bytes:
                return plan
        smallest = min(plans, key=lambda plan: plan.peak_bytes)
        raise ValueError(
            f"preset {self.preset!r} does not fit {budget_bytes / 1e9:g} GB; the least it takes is "
            f"{math.ceil(smallest.peak_bytes / 1e8) / 10:.1f} GB:\n{smallest.table()}"
        )


def plan_memory(
    config: EngineConfig, modules: Mapping[str, nn.Module], dtypes: Mapping[str, torch.dtype], budget_bytes: int
) -> MemoryPlan:
    """`Needs.of` and its plan for a device with so much memory."""
    return Needs.of(config, modules, dtypes).plan(budget_bytes)


def _ways(texts: bool) -> list[frozenset[str]]:
    """What may be given up, least first."""
    names = [name for name in _WAYS if texts or not name.startswith("text")]
    # As digits of a number: each way costs more than all before it together.
    return [frozenset(name for place, name in enumerate(names) if bits >> place & 1) for bits in range(1 << len(names))]


def _sizes(name: str, module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> tuple[int, int]:
    """Bytes of a component's weights without and with its blocks in 8 bits."""
    lowered = {f"{name}.{weight}": FP8 for weight in fp8_names(module)}
    return weight_bytes({name: module}, dtypes), weight_bytes({name: module}, {**dtypes, **lowered})


def _plan(budget_bytes: int, needs: Needs, way: frozenset[str]) -> MemoryPlan:
    parts = []
    for name, (plain, lowered) in needs.sizes.items():
        kind = "text" if name in TEXTS else name
        fp8 = f"{kind} in fp8" in way
        parts.append(Part(name, lowered if fp8 else plain, f"{kind} on demand" in way, fp8))
    always = sum(part.weight_bytes for part in parts if not part.on_demand)
    kept = sum(call.kept_bytes for call in needs.calls.values())
    asked = {part.component: part.weight_bytes for part in parts if part.on_demand}
    calls = {name: (call.passing_bytes, asked.get(name, 0)) for name, call in needs.calls.items()}
    # The encoders take their turns.
    if TEXTS[0] in needs.sizes:
        calls["text"] = (_TEXT_CALL_BYTES, max((asked.get(name, 0) for name in TEXTS), default=0))
    phases = tuple(
        Phase(name, always + visiting, round(kept * _COMPUTED_SHARE), round(passing * _COMPUTED_SHARE))
        for name, (passing, visiting) in calls.items()
    )
    return MemoryPlan(budget_bytes, tuple(parts), phases)


def weight_bytes(components: Mapping[str, nn.Module], dtypes: Mapping[str, torch.dtype]) -> int:
    """Bytes of all parameters and buffers in these types, by COMPONENT.NAME; the module's own where none is given."""
    return sum(
        value.numel() * dtypes.get(f"{component}.{name}", value.dtype).itemsize
        for component, module in components.items()
        for name, value in chain(module.named_parameters(), module.named_buffers())
    )


def free_bytes(device: torch.device) -> int:
    """Memory of a device that is free now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def check_memory(
    components: Mapping[str, nn.Module],
    device: torch.device,
    dtypes: Mapping[str, torch.dtype] | None = None,
    text_bytes: int = 0,
) -> None:
    """Says before anything is loaded that the weights will not fit.

    Args:
        dtypes: of the weights, as `weight_bytes` takes them.
        text_bytes: of text encoders that come beside the components.

    Raises:
        ValueError: with what is needed and what is free.
    """
    needed = round((weight_bytes(components, dtypes or {}) + text_bytes) * _MARGIN)
    free = free_bytes(device)
    if needed > free:
        raise ValueError(
            f"the weights need {needed / 1e9:.1f} GB, but {device} has only {free / 1e9:.1f} GB free: free some, take "
            "another device, or give `generate` or the server --memory, which stores some weights in 8 bits"
        )


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module's weights are on the device inside, and the host's own again afterwards; nothing is copied back."""
    tables: list[dict[str, Any]] = [t for part in module.modules() for t in (part._parameters, part._buffers)]
    own = [(table, name, tensor) for table in tables for name, tensor in table.items() if tensor is not None]
    # A tensor that two layers share is copied once.
    copies: dict[int, Tensor] = {}
    try:
        for table, name, tensor in own:
            if id(tensor) not in copies:
                copy = tensor.detach().to(device, non_blocking=True)
                copies[id(tensor)] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy
            table[name] = copies[id(tensor)]
        yield
    finally:
        for table, name, tensor in own:
            table[name] = tensor


class Visitor:
    """An autoencoder whose weights are on the device only while it works. States stay there.

    A CUDA graph of it would read weights that have left, so it refuses to be captured.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Takes a module that is on the host and has `new_state`, `begin_hop`, `encode` and `decode`."""
        self._module: Any = module
        self._device = device

    def new_state(self) -> Any:
        return self._module.new_state()

    def begin_hop(self, state: Any) -> None:
        self._module.begin_hop(state)

    def encode(self, video: Tensor, state: Any) -> Tensor:
        return self._run(self._module.encode, video, state)

    def decode(self, latents: Tensor, state: Any) -> Tensor:
        return self._run(self._module.decode, latents, state)

    def _run(self, call: Callable[[Tensor, Any], Tensor], x: Tensor, state: Any) -> Tensor:
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise ValueError("an autoencoder on demand cannot be captured: give more --memory or turn graphs off")
        with visiting(self._module, self._device):
            return call(x, state)
