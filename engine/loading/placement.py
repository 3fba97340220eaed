"""Placements for a budget of device memory, and the check that weights fit into free memory.

GB are 10^9 bytes. The table is counted, not measured: docs/PUBLISHED_MODEL.md says how.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import psutil
import torch
from torch import nn

from engine.runtime.fp8 import FP8, fp8_names

logger = logging.getLogger(__name__)

_MARGIN = 1.05  # for the allocator


@dataclass(frozen=True, slots=True)
class Placement:
    """A way to run a preset with less memory."""

    needs_gb: float  # most that is in use at any time
    text_on_demand: bool = False  # the published text encoders leave the device after each new prompt
    fp8: tuple[str, ...] = ()  # of "text", "planner", "renderer": their blocks are stored in 8 bits

    def dtypes(self, modules: Mapping[str, nn.Module], dtypes: Mapping[str, torch.dtype]) -> dict[str, torch.dtype]:
        """`dtypes`, by COMPONENT.NAME, with 8 bits for the weights that are stored so."""
        named = [(name, module) for name, module in modules.items() if name in self.fp8]
        return {**dtypes, **{f"{part}.{name}": FP8 for part, module in named for name in fp8_names(module)}}

    def __str__(self) -> str:
        text = "text encoders on demand" if self.text_on_demand else "everything stays on the device"
        return f"{self.needs_gb:g} GB: {text}, {', '.join(self.fp8) or 'none'} in 8 bits"


EVERYTHING_STAYS = Placement(0.0)  # where no budget is given
PLACEMENTS = {
    "mini": (Placement(1.6),),
    "landiff": (
        Placement(45.6),
        Placement(27.4, text_on_demand=True),
        Placement(26.5, text_on_demand=True, fp8=("text",)),
        Placement(24.0, text_on_demand=True, fp8=("text", "renderer")),
        Placement(22.0, text_on_demand=True, fp8=("text", "planner", "renderer")),
    ),
}
"""By preset; less exactness and more time at a new prompt from top to bottom."""


def choose_placement(preset: str, budget_gb: float) -> Placement:
    """The first placement of a preset that fits the budget.

    Raises:
        ValueError: with all of them, if none does.
    """
    for placement in PLACEMENTS[preset]:
        if placement.needs_gb <= budget_gb:
            logger.info("placement for --memory %g: %s", budget_gb, placement)
            return placement
    known = "\n".join(f"  {placement}" for placement in PLACEMENTS[preset])
    raise ValueError(f"preset {preset!r} does not fit --memory {budget_gb:g}; there are\n{known}")


def weight_bytes(components: Mapping[str, nn.Module], dtypes: Mapping[str, torch.dtype]) -> int:
    """Bytes of all parameters and buffers in these types, by COMPONENT.NAME; the module's own where none is given."""
    return sum(
        value.numel() * dtypes.get(f"{component}.{name}", value.dtype).itemsize
        for component, module in components.items()
        for name, value in chain(module.named_parameters(), module.named_buffers())
    )


def check_load(
    modules: Mapping[str, nn.Module],
    device: torch.device,
    dtypes: Mapping[str, torch.dtype],
    encoder_bytes: Sequence[int],
    placed: bool,
) -> None:
    """Compares a whole model with the memory that is free. Raises ValueError as `check_memory` does.

    Args:
        encoder_bytes: of the published text encoders, which are read onto the host and take turns on a device.
        placed: whether a placement was chosen, which counts the encoders in the form in which they come to the device.
    """
    if device.type == "cpu":
        check_memory(modules, device, dtypes, sum(encoder_bytes))
        return
    check_memory(modules, device, dtypes, 0 if placed else max(encoder_bytes, default=0))
    check_memory({}, torch.device("cpu"), text_bytes=sum(encoder_bytes))


def check_memory(
    components: Mapping[str, nn.Module],
    device: torch.device,
    dtypes: Mapping[str, torch.dtype] | None = None,
    text_bytes: int = 0,
) -> None:
    """Compares weights with the memory that is free, before anything is loaded.

    Args:
        dtypes: of the weights, as `weight_bytes` takes them.
        text_bytes: of text encoders that come beside the components.

    Raises:
        ValueError: with both numbers, if they do not fit.
    """
    needed = round((weight_bytes(components, dtypes or {}) + text_bytes) * _MARGIN)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"the weights need {needed / 1e9:.1f} GB, but {device} has only {free / 1e9:.1f} GB free: free some, take "
            "another device, or give `generate` or the server --memory, which stores some weights in 8 bits"
        )
