"""A channel's whole state between two chunks as a plain record, to be stored without code and loaded elsewhere.

`torch.save` writes it and `torch.load(..., weights_only=True)` reads it. What a prompt gives (embeddings, the planner's
prefix) is not stored: the same model makes it again, bit for bit.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.live.channel_state import ChannelState, PastChunk, Place, RenderState
from engine.live.generator import Generator
from engine.live.plan_writer import GOP
from engine.perceptual.base import VideoState
from engine.runtime.pytree import leaves
from engine.wire.files import write_atomically

FORMAT = 4
SUFFIX = ".snapshot"
# Fields of a state that are stored as they are.
_RENDERING = ("features", "context_latents")
_PLAN = ("position", "noise")


def take_snapshot(generator: Generator, state: ChannelState) -> dict[str, Any]:
    """The record of a state that no chunk is being made of. Tensors are copies on the host."""
    generator.settle()
    plan = state.plan
    used = {field.name: getattr(plan.cache, field.name)[..., : plan.position, :] for field in fields(plan.cache)}
    return {
        "format": FORMAT,
        "preset": generator.model.config.name,
        "picture": generator.model.config.picture,
        "prompt": state.prompt,
        "seed": state.seed,
        "steps": state.steps,
        "next": _record(state.next),
        **{name: _copy(getattr(state, name)) for name in _RENDERING},
        "vae": _record(state.vae),
        "open_from": state.open_from,
        "past": [_past_record(past) for past in state.past],
        "gops": [_record(gop) for gop in plan.gops],
        "plan": {name: _copy(getattr(plan, name)) for name in _PLAN} | {"cache": _copy(used)},
    }


def snapshot_bytes(state: ChannelState) -> int:
    """Memory that the tensors of such a record take, but for the planner's cache."""
    past = [replace(chunk, ends=[]) for chunk in state.past]
    parts = [getattr(state, name) for name in _RENDERING], state.vae, past
    return sum(tensor.nbytes for tensor in leaves(parts))


def restore(generator: Generator, snapshot: dict[str, Any]) -> ChannelState:
    """The state that a record was taken of; it goes on bit for bit on a device of the same kind.

    Raises:
        ValueError: The record is of another format, preset or picture, or has not what a state needs.
    """
    _check(generator, snapshot)
    with _refused():
        device = generator.model.device
        gops = [GOP(**_placed(gop, device)) for gop in snapshot["gops"]]
        # What is planned may go on with another seed than what is rendered.
        state = generator.open(snapshot["prompt"], gops[-1].seed, snapshot["steps"])
        with generator.model.computing():
            state.seed, state.text = snapshot["seed"], generator.model.text.embed(snapshot["prompt"], snapshot["seed"])
        _place_rendering(generator, state, snapshot)
        plan = state.plan
        plan.gops = gops
        for name in _PLAN:
            setattr(plan, name, _placed(snapshot["plan"][name], device))
        for name, tensor in snapshot["plan"]["cache"].items():
            # A captured graph may know the cache by its place.
            getattr(plan.cache, name)[..., : plan.position, :].copy_(tensor)
    return state


def restore_rendering(generator: Generator, snapshot: dict[str, Any]) -> RenderState:
    """As `restore`, without the plan, which nothing is computed for."""
    _check(generator, snapshot)
    with _refused(), generator.model.computing():
        text = generator.model.text.embed(snapshot["prompt"], snapshot["seed"])
        state = generator.start(text, snapshot["seed"], snapshot["steps"])
        _place_rendering(generator, state, snapshot)
    return state


def write_snapshot(path: Path, snapshot: dict[str, Any]) -> None:
    """Writes a record to a file, whole or not at all. Raises OSError."""
    write_atomically(path, lambda part: torch.save(snapshot, part))


def read_snapshot(path: Path | io.BytesIO) -> dict[str, Any]:
    """The record in a file, or in memory. Raises ValueError if it is missing, damaged, or no record."""
    try:
        snapshot = torch.load(path, "cpu", weights_only=True)
    except (OSError, EOFError, ValueError, RuntimeError, LookupError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{_named(path)} is missing, damaged or no snapshot ({reason})") from error
    if not isinstance(snapshot, dict):
        raise ValueError(f"{_named(path)} is no snapshot: it holds a {type(snapshot).__name__}")
    return snapshot


def _named(path: Path | io.BytesIO) -> str:
    return str(path) if isinstance(path, Path) else "what is in memory"


def _check(generator: Generator, snapshot: dict[str, Any]) -> None:
    config = generator.model.config
    own = {"format": FORMAT, "preset": config.name, "picture": config.picture}
    for name, value in own.items():
        # Those before there were large pictures do not say so.
        had = snapshot.get(name, "small" if name == "picture" else None)
        if had != value:
            raise ValueError(f"the snapshot has {name} {had!r}; this engine goes on from {value!r}")


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the snapshot has not what a state needs ({error})") from error


def _place_rendering(generator: Generator, state: RenderState, snapshot: dict[str, Any]) -> None:
    device = generator.model.device
    state.next = Place(**snapshot["next"])
    for name in _RENDERING:
        value, empty = snapshot[name].to(device), getattr(state, name)
        if value.shape[2:] != empty.shape[2:]:
            sizes = f"{list(value.shape[2:])}, this engine's {list(empty.shape[2:])}"
            raise ValueError(f"the snapshot's {name} have size {sizes}")
        setattr(state, name, value)
    state.vae = type(state.vae)(**_placed(snapshot["vae"], device))
    state.open_from = snapshot["open_from"]
    state.past = [_past_of(record, type(state.vae), device) for record in snapshot["past"]]


def _past_record(past: PastChunk) -> dict[str, Any]:
    record = _record(replace(past, ends=[])) | {"start": _record(past.start), "vae": _record(past.vae)}
    del record["ends"]
    return record


def _past_of(record: dict[str, Any], vae: type[VideoState], device: torch.device) -> PastChunk:
    placed = _placed(record, device)
    return PastChunk(**placed | {"start": Place(**placed["start"]), "vae": vae(**placed["vae"])})


def _record(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, tensors copied."""
    return {field.name: _copy(getattr(value, field.name)) for field in fields(value)}


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return value


def _placed(value: Any, device: torch.device) -> Any:
    """The value with its tensors on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _placed(part, device) for key, part in value.items()}
    return value
