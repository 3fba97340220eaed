"""A channel's whole state between two chunks as a plain record, to be stored without code and loaded elsewhere.

`torch.save` writes it and `torch.load(..., weights_only=True)` reads it. What a prompt gives (embeddings, the planner's
prefix) is not stored: the same model makes it again, bit for bit.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.live.channel_state import ChannelState, PastChunk, Place, RenderState
from engine.live.generator import Generator
from engine.live.plan_writer import GOP
from engine.live.rewind import places_of
from engine.perceptual.base import VideoState
from engine.runtime.pytree import leaves
from engine.wire import plain
from engine.wire.files import write_atomically

FORMAT = 4
SUFFIX = ".snapshot"
# Fields of a state that are stored as they are.
_RENDERING = ("features", "context_latents")
_PLAN = ("position", "noise")


def take_snapshot(generator: Generator, state: ChannelState, latents: Sequence[Tensor | None] = ()) -> dict[str, Any]:
    """The record of a state that no chunk is being made of. Tensors are copies on the host.

    `latents`, [1, T, C, H, W] float32, are those of chunks before it, for `chunk_latents`.
    """
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
        "latents": [_copy(one) for one in latents],
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
        prompt, seed, steps = _asked(snapshot)
        gops = [_gop(record, device) for record in snapshot["gops"]]
        # What is planned may go on with another seed than what is rendered.
        state = generator.open(prompt, gops[-1].seed, steps)
        with generator.model.computing():
            state.seed, state.text = seed, generator.model.text.embed(prompt, seed)
        _place_rendering(generator, state, snapshot)
        plan = state.plan
        plan.gops, plan.position = gops, plain.whole(snapshot["plan"]["position"])
        plan.noise = _placed(snapshot["plan"]["noise"], device)
        generator.writer.check(plan, state.next.latent)
        for field in fields(plan.cache):
            # A captured graph may know the cache by its place.
            used = getattr(plan.cache, field.name)[..., : plan.position, :]
            used.copy_(_of_size(field.name, snapshot["plan"]["cache"][field.name], used.shape, used.dtype))
    return state


def restore_rendering(generator: Generator, snapshot: dict[str, Any]) -> RenderState:
    """As `restore`, without the plan, which nothing is computed for."""
    _check(generator, snapshot)
    with _refused(), generator.model.computing():
        prompt, seed, steps = _asked(snapshot)
        state = generator.start(generator.model.text.embed(prompt, seed), seed, steps)
        _place_rendering(generator, state, snapshot)
    return state


def chunk_latents(generator: Generator, snapshot: dict[str, Any]) -> list[Tensor | None]:
    """Latents [1, T, C, H, W] of the chunks before a record, as far as it has them; None in place of one it has not.

    Raises ValueError if the record is of another format, preset or picture, or has something else there.
    """
    _check(generator, snapshot)
    config, device = generator.model.config, generator.model.device
    most, dit = config.first_chunk_length, config.renderer.dit
    like = torch.zeros(1, 0, dit.channels, dit.height, dit.width, device=device)
    with _refused():
        return [
            None if one is None else _frames("latents of a chunk", one, like, most)
            for one in snapshot.get("latents", ())
        ]


def write_snapshot(path: Path, snapshot: dict[str, Any]) -> None:
    """Writes a record to a file, whole or not at all. Raises OSError."""
    write_atomically(path, lambda part: torch.save(snapshot, part))


def read_snapshot(path: Path | io.BytesIO) -> dict[str, Any]:
    """The record in a file, or in memory. Raises ValueError if it is missing, damaged, or no record."""
    try:
        snapshot = torch.load(path, "cpu", weights_only=True)
    # What the restricted unpickler raises for other bytes than its own depends on where they lead it.
    except Exception as error:
        raise ValueError(f"{_named(path)} is missing, damaged or no snapshot ({plain.one_line(error)})") from error
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
    except (LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the snapshot has not what a state needs ({plain.one_line(error)})") from error


def _asked(snapshot: dict[str, Any]) -> tuple[str, int, int]:
    """Prompt, seed and steps."""
    return plain.prompt(snapshot["prompt"]), plain.seed(snapshot["seed"]), plain.steps(snapshot["steps"])


def _gop(record: dict[str, Any], device: torch.device) -> GOP:
    gop = GOP(**_placed(record, device))
    for number in (gop.start, gop.first, gop.count):
        plain.whole(number)
    plain.seed(gop.seed)
    return gop


def _place(record: dict[str, Any]) -> Place:
    return Place(**{name: plain.whole(value) for name, value in record.items()})


def _place_rendering(generator: Generator, state: RenderState, snapshot: dict[str, Any]) -> None:
    """Takes over what is rendered; `state` is of a video that has not begun."""
    empty = replace(state)
    state.next = _place(snapshot["next"])
    state.features, state.context_latents, state.vae = _context(generator, snapshot, empty)
    state.open_from = None if snapshot["open_from"] is None else plain.whole(snapshot["open_from"])
    state.past = [_past_of(generator, record, empty) for record in snapshot["past"]]
    starts = [*(past.start for past in state.past), state.next]
    for past, after in zip(state.past, starts[1:], strict=True):
        *_, end = places_of(past, generator.model.vae)
        if end != after:
            raise ValueError(f"a past chunk ends before {end}, and what follows begins at {after}")


def _context(generator: Generator, record: dict[str, Any], empty: RenderState) -> tuple[Tensor, Tensor, VideoState]:
    """What a chunk begins with."""
    most, device = generator.model.config.context_length, generator.model.device
    features, latents = (_frames(name, record[name], getattr(empty, name), most) for name in _RENDERING)
    vae = type(empty.vae)(**_placed(record["vae"], device))
    generator.model.vae.check_state(vae, *latents.shape[-2:])
    if features.shape[1] != latents.shape[1] or vae.started != (latents.shape[1] > 0):
        raise ValueError(f"the snapshot has {features.shape[1]} features and {latents.shape[1]} latents of context")
    return features, latents, vae


def _past_of(generator: Generator, record: dict[str, Any], empty: RenderState) -> PastChunk:
    features, latents, vae = _context(generator, record, empty)
    most = generator.model.config.first_chunk_length
    new_features = _frames("new features", record["new_features"], empty.features, most)
    new_latents = _frames("new latents", record["new_latents"], empty.context_latents, most)
    if new_features.shape[1] != new_latents.shape[1]:
        raise ValueError(f"a past chunk has {new_features.shape[1]} features and {new_latents.shape[1]} latents")
    threads = plain.threads(record["threads"])
    return PastChunk(_place(record["start"]), features, latents, vae, new_features, new_latents, threads)


def _frames(name: str, value: Tensor, like: Tensor, most: int) -> Tensor:
    """A tensor [1, T, ...] of `like`'s kind with `most` frames at most."""
    if value.ndim < 2 or value.shape[1] > most:
        raise ValueError(f"the snapshot's {name} have size {list(value.shape)}: at most {most} frames are kept")
    return _of_size(name, value, (1, value.shape[1], *like.shape[2:]), like.dtype).to(like.device)


def _of_size(name: str, value: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    if value.shape != tuple(size) or value.dtype != dtype:
        found, own = f"{list(value.shape)} of {value.dtype}", f"{list(size)} of {dtype}"
        raise ValueError(f"the snapshot's {name} have size {found}, this engine's {own}")
    return value


def _past_record(past: PastChunk) -> dict[str, Any]:
    record = _record(replace(past, ends=[])) | {"start": _record(past.start), "vae": _record(past.vae)}
    del record["ends"]
    return record


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
