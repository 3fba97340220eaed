"""A channel's journal: JSON Lines from which its video can be made again without the planner.

A line is a JSON object with a `kind`. `begin`: a video begins, or goes on in another engine process; it says where, and
what decides the bits of its frames. `chunk`: all that a chunk was made of. `snapshot`: the state behind the chunk
before it is in a file beside the journal. docs/JOURNAL.md has every field.
Lines are written whole. A last line without its end was cut short, and is not there.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.config import EngineConfig, preset
from engine.live.channel_state import Place
from engine.live.plan_writer import PlanPart
from engine.loading.model import Model
from engine.loading.weights import digest
from engine.wire import plain

FORMAT = 1
LINES = 64  # that are read at a time
_TOKEN = np.dtype("<u2")
_WRONG = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # of a line that is damaged


@dataclass(frozen=True, slots=True)
class Environment:
    """What decides a video beside its journal: the same records make the same bits where all of it is the same."""

    preset: str
    width_px: int
    height_px: int
    fps: float
    device: str
    dtype: str  # of matrix products
    torch_version: str
    cpu_capability: str  # by which torch picks its code
    weights: str  # digest

    @classmethod
    def of(cls, model: Model) -> Environment:
        """That of this process."""
        config, device = model.config, model.device
        return cls(
            preset=config.name,
            width_px=config.width_px,
            height_px=config.height_px,
            fps=config.fps,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            dtype=str(model.dtype).removeprefix("torch."),
            torch_version=torch.__version__,
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            weights="" if model.folder is None else digest(model.folder),
        )


@dataclass(frozen=True, slots=True)
class Beginning:
    """A video begins, from nothing or from a snapshot, or goes on."""

    channel: str
    place: Place
    seed: int
    prompt: str
    snapshot: str | None  # file of the state that it begins from
    environment: Environment


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """All that a chunk was made of."""

    place: Place
    frames: int
    shown: int  # number of the first frame that is new: those before it were shown as an earlier chunk has them
    seed: int
    prompt: str
    steps: int
    threads: tuple[tuple[int, int], ...]  # from which unit of the chunk on how many threads computed
    parts: tuple[PlanPart, ...]


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """The state behind the record before is in a file."""

    snapshot: str


Record = Beginning | ChunkRecord | SnapshotRecord


class JournalEncoder:
    """Records to lines; a chunk's seed and prompt are written when they are others than before."""

    def __init__(self, config: EngineConfig) -> None:
        self._offsets = config.tokenizer.offsets
        self._seed, self._prompt = -1, ""
        self._written: dict[int, int] = {}  # tokens of the last chunk's GOPs, by the GOP's first frame

    def line(self, record: Record) -> bytes:
        """One line, with its end."""
        match record:
            case Beginning():
                self._seed, self._prompt, self._written = record.seed, record.prompt, {}
                fields = {"kind": "begin", "format": FORMAT, "channel": record.channel, **asdict(record.place)}
                fields |= {"seed": record.seed, "prompt": record.prompt, "snapshot": record.snapshot}
                fields |= asdict(record.environment)
            case ChunkRecord():
                fields = {"kind": "chunk", **asdict(record.place), "frames": record.frames} | self._changes(record)
                fields |= {"steps": record.steps, "threads": record.threads, **self._tokens(record)}
            case SnapshotRecord():
                fields = {"kind": "snapshot", "snapshot": record.snapshot}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    def _changes(self, record: ChunkRecord) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if record.shown != record.place.frame:
            changes["shown"] = record.shown
        if record.seed != self._seed:
            changes["seed"] = self._seed = record.seed
        if record.prompt != self._prompt:
            changes["prompt"] = self._prompt = record.prompt
        return changes

    def _tokens(self, record: ChunkRecord) -> dict[str, Any]:
        """GOPs as first frame and number of frames, and the tokens that are new end to end."""
        gops, new = [], []
        for part in record.parts:
            gops.append((part.start, self._offsets.index(part.tokens.shape[1])))
            before = self._offsets[max(record.place.latent - part.start, 0)]
            new.append(part.tokens[0, min(before, self._written.get(part.start, 0)) :].cpu().numpy())
        self._written = {part.start: part.tokens.shape[1] for part in record.parts}
        return {"gops": gops, "tokens": base64.b64encode(np.concatenate(new).astype(_TOKEN).tobytes()).decode()}


class Journal:
    """A journal to be read."""

    def __init__(self, path: Path, whole: bool = True) -> None:
        """Reads all of it if `whole`, else its first lines.

        Raises ValueError if the file cannot be read, or is no journal of this engine.
        """
        self.folder = path.parent
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}): give a file that the server wrote") from error
        try:
            first = json.loads(lines[0])
            kind, form, name, height_px = (first[key] for key in ("kind", "format", "preset", "height_px"))
            plain.text(name), plain.whole(height_px, 1)
        except _WRONG as error:
            raise ValueError(f"{path} is no journal, or its first line is damaged: give one of a channel") from error
        if kind != "begin" or form != FORMAT:
            raise ValueError(f"{path} has format {form!r} of a journal; this engine reads {FORMAT}")
        self.config = _config(name, height_px)
        self.records: list[Record] = []  # all that are read
        self.damage: str | None = None  # which line ends them, and what is wrong with it
        self._path, self._lines, self._reading = path, iter(lines), _Reading(self.config)
        while self.read() and whole:
            pass
        if not self.records:
            raise ValueError(f"{self.damage}: give another journal")

    def read(self) -> bool:
        """Reads on for some milliseconds; False at the end, or at a damaged line."""
        lines = list(islice(self._lines, LINES))
        try:
            for line in lines:
                self.records.append(self._reading.record(json.loads(line)))
        except _WRONG as error:
            self.damage = f"line {len(self.records) + 1} of {self._path} is damaged ({plain.one_line(error)})"
        return bool(lines) and self.damage is None

    @property
    def beginning(self) -> Beginning:
        """The record that the video begins with."""
        first = self.records[0]
        assert isinstance(first, Beginning), "its kind was looked at"
        return first


def _config(name: str, height_px: object) -> EngineConfig:
    """A preset with pictures of that height, or with small ones: then `replay.differences` names both."""
    config = preset(name)
    if config.enlarger is not None and config.with_picture("large").height_px == height_px:
        return config.with_picture("large")
    return config


class _Reading:
    """Lines to records: what a line leaves out is as in those before."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._offsets = config.tokenizer.offsets
        self._seed, self._prompt = 0, ""
        self._none = torch.zeros(1, 0, dtype=torch.int64)
        self._known: dict[int, Tensor] = {}  # tokens of the last chunk's GOPs, by the GOP's first frame
        self._next = Place()

    def record(self, fields: dict[str, Any]) -> Record:
        match fields["kind"]:
            case "begin":
                return self._begin(fields)
            case "chunk":
                return self._chunk(fields)
            case "snapshot":
                return SnapshotRecord(plain.file_name(fields["snapshot"]))
        raise ValueError(f"kind {fields['kind']!r} is not known")

    def _begin(self, fields: dict[str, Any]) -> Beginning:
        self._seed, self._prompt, self._known = plain.seed(fields["seed"]), plain.prompt(fields["prompt"]), {}
        self._next = _place(fields)
        names = Environment.__dataclass_fields__
        environment = Environment(**{name: fields[name] for name in names})
        if environment.preset != self._config.name:
            raise ValueError(f"preset {environment.preset!r} in a journal of {self._config.name!r}")
        snapshot = None if fields["snapshot"] is None else plain.file_name(fields["snapshot"])
        return Beginning(plain.text(fields["channel"]), self._next, self._seed, self._prompt, snapshot, environment)

    def _chunk(self, fields: dict[str, Any]) -> ChunkRecord:
        place, frames = _place(fields), plain.whole(fields["frames"], 1)
        _check_order(place, self._next)
        self._seed = plain.seed(fields.get("seed", self._seed))
        self._prompt = plain.prompt(fields.get("prompt", self._prompt))
        threads = tuple((plain.whole(unit), plain.threads(count)) for unit, count in fields["threads"])
        if not threads or threads[0][0]:
            raise ValueError(f"threads {threads} do not begin with unit 0")
        parts = self._parts(place.latent, fields["gops"], fields["tokens"])
        self._known = {part.start: part.tokens for part in parts}
        self._next = Place(place.chunk + 1, place.frame + frames, self._end(parts[-1]))
        shown = plain.whole(fields.get("shown", place.frame), place.frame)
        steps = plain.steps(fields["steps"])
        return ChunkRecord(place, frames, shown, self._seed, self._prompt, steps, threads, parts)

    def _parts(self, latent: int, gops: list[list[int]], tokens: str) -> tuple[PlanPart, ...]:
        """What the chunk from `latent` on reads of each GOP: tokens that are known, and new ones."""
        new = np.frombuffer(base64.b64decode(tokens, validate=True), _TOKEN).astype(np.int64)
        if new.max(initial=0) >= self._config.tokenizer.quantizer.codebook_size:
            raise ValueError(f"token {new.max()} is in no codebook of preset {self._config.name!r}")
        parts: list[PlanPart] = []
        place = latent
        for start, frames in gops:
            before = self._known.get(start, self._none)
            known = min(self._offsets[max(latent - start, 0)], before.shape[1])
            count = self._offsets[plain.whole(frames, 1)] - known
            if start > place or plain.whole(start) + frames <= place or count > len(new):
                raise ValueError(f"GOPs {gops} and {len(new)} tokens make no chunk from latent {latent} on")
            parts.append(PlanPart(start, torch.cat([before[:, :known], torch.from_numpy(new[None, :count])], dim=1)))
            new, place = new[count:], start + frames
        if len(new) or not parts:
            raise ValueError(f"GOPs {gops} have {len(new)} tokens too few")
        return tuple(parts)

    def _end(self, part: PlanPart) -> int:
        return part.start + self._offsets.index(part.tokens.shape[1])


def _check_order(place: Place, after: Place) -> None:
    """Raises ValueError unless a chunk can begin at `place`: behind the one before, or where the video went back to."""
    back = (place.chunk, place.frame) < (after.chunk + 1, after.frame) and place.latent < after.latent
    if place != after and not back:
        raise ValueError(f"a chunk begins at {place}; the next one is {after}")


def _place(fields: dict[str, Any]) -> Place:
    return Place(*(plain.whole(fields[name]) for name in ("chunk", "frame", "latent")))
