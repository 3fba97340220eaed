"""`python -m engine soak --hours H`: hours of one video, made as fast as the machine can, and what becomes of it.

The engine process is the one that serves, with its ring, pipe, journal and state folder; each of its frames is shown at
once, and another prompt is asked for every few minutes. Behind each stretch of video a row is written: memory and
descriptors of that process, bytes of journal and snapshots, frames that were not the next ones, and by the judge how
many words of the prompts are seen. A run that was ended goes on from its state folder.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from engine.arguments import add_weights, checked, seed
from engine.bench.report import commit_of_this_tree, processor
from engine.config import EngineConfig, preset
from engine.evaluation.soak_engine import SoakEngine, SoakError, Target, run_engine
from engine.loading.options import place
from engine.loading.weights import load_component
from engine.semantic.theia import Theia
from engine.training.world import judge
from engine.training.world.captions import Label, caption, random_label
from engine.wire.files import check_target, write_atomically
from engine.wire.kept_state import KeptState
from engine.wire.settings import ChannelSettings, ChannelStart, EngineSettings
from engine.wire.state_folder import JOURNAL, channel_folder, taken

I420 = npt.NDArray[np.uint8]  # a frame, [3H/2, W]
CHANNEL = "soak"
MOST_HOURS = 1000.0
PROMPTS = 6  # take turns: with ten minutes of each, every hour has the same ones and can be held against the first
SETTLE_CHUNKS = 2  # behind a change: the first shows both prompts
FIRST_HOUR = 1.0  # memory is compared from then on: what is kept of the past has its size


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """What is made, and how often it is looked at; minutes are of the video."""

    row_minutes: float = 60.0
    prompt_minutes: float = 10.0
    judge_minutes: float = 1.0  # from one clip that is judged to the next
    seed: int = 0

    def label(self, number: int) -> Label:
        """What is asked for with the prompt of that number: a combination that no training has seen."""
        return random_label(random.Random(f"soak {self.seed} {number % PROMPTS}"), held_out=True)

    def prompt(self, number: int) -> str:
        """A wording of that label."""
        return caption(self.label(number), random.Random(f"soak {self.seed} {number % PROMPTS} words"))


@dataclass(slots=True)
class _Stretch:
    """What was seen since the last row."""

    began_s: float = field(default_factory=time.monotonic)
    memory_mb: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    rgb: list[list[float]] = field(default_factory=list)


class Soak:
    """One run: rows go to the report's file as they are made."""

    def __init__(self, plan: SoakPlan, config: EngineConfig, theia: Theia, state: Path, path: Path) -> None:
        """Goes on with the report that is there. Raises ValueError where that is of another plan, or damaged."""
        self._plan, self._config, self._theia, self._state, self._path = plan, config, theia, state, path
        self._rows: list[dict[str, Any]] = []
        self._run = 0
        if path.exists():
            self._go_on()

    def _go_on(self) -> None:
        try:
            before = json.loads(self._path.read_text(encoding="utf-8"))
            plan, self._rows = before["plan"], list(before["rows"])
            self._run = 1 + max(row["run"] for row in self._rows)
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self._path} is no report of a soak ({error}): give another --json") from error
        if plan != asdict(self._plan):
            raise ValueError(f"{self._path} is of another plan, {plan}: give its options, or another --json")

    def run(self, hours: float, settings: EngineSettings, target: Target = run_engine) -> dict[str, Any]:
        """Makes video up to that many hours of it; returns the report. Raises SoakError, behind the last whole row."""
        with ExitStack() as stack:
            left = stack.enter_context(taken(self._state, self._config.name))
            channel = self._opening(left)
            engine = stack.enter_context(SoakEngine(settings, CHANNEL, channel, target))
            last = round(hours * 3600 * self._config.fps)
            bar = stack.enter_context(tqdm(total=last, initial=channel.start.frame, unit="frame", desc="soak"))
            for end in self._watched(engine, channel):
                bar.update(end - bar.n)
                if end >= last:
                    break
        return self.report()

    def report(self) -> dict[str, Any]:
        """All rows, and how memory grew from the first hour on, in the process that ran last."""
        return {
            "conditions": {"commit": commit_of_this_tree(), "device": processor(), "preset": self._config.name},
            "plan": asdict(self._plan),
            "memory": growth([row for row in self._rows if row["run"] == self._rows[-1]["run"]]) if self._rows else {},
            "rows": self._rows,
        }

    def _opening(self, left: Sequence[KeptState]) -> ChannelSettings:
        """The channel, from the beginning or from where the state folder ends."""
        for kept in left:
            start = ChannelStart(kept.frame, kept.chunk, goes_on=True, from_disk=True)
            return ChannelSettings(kept.prompt, kept.seed, kept.steps, start)
        return ChannelSettings(self._plan.prompt(0), self._plan.seed, self._config.steps)

    def _watched(self, engine: SoakEngine, channel: ChannelSettings) -> Iterator[int]:
        """Watches the engine's frames, judges clips and writes rows; yields the number of the frame behind."""
        begin, per_prompt = channel.start.frame, self._frames(self._plan.prompt_minutes)
        number = begin // per_prompt
        engine.under = begin
        if channel.prompt != self._plan.prompt(number):
            engine.ask(number, self._plan.prompt(number))
        stretch, clip = _Stretch(), list[I420]()
        for batch in engine.frames():
            end = batch.index + batch.frames
            clip = [*clip, *batch.i420][-judge.CLIP_FRAMES :]
            stretch.memory_mb += engine.memory_mb
            engine.memory_mb.clear()
            if self._passed(batch.index, end, self._plan.judge_minutes):
                self._judge(stretch, clip, number, engine.under, end)
            if end // per_prompt > number:
                number = end // per_prompt
                engine.ask(number, self._plan.prompt(number))
            if self._passed(batch.index, end, self._plan.row_minutes):
                self._write(self._row(engine, stretch, end))
                stretch = _Stretch()
            yield end

    def _frames(self, minutes: float) -> int:
        return max(1, round(minutes * 60 * self._config.fps))

    def _passed(self, begin: int, end: int, minutes: float) -> bool:
        """Whether a stretch of so many minutes ended in these frames."""
        return begin // self._frames(minutes) < end // self._frames(minutes)

    def _judge(self, stretch: _Stretch, clip: Sequence[I420], number: int, under: int | None, end: int) -> None:
        """Judges the last frames, if all of them are of the prompt of that number."""
        settled = None if under is None else under + (SETTLE_CHUNKS if under else 0) * self._config.chunk_frames
        if settled is None or len(clip) < judge.CLIP_FRAMES or end - len(clip) < settled:
            return
        pictures = judge.to_rgb(np.stack(clip))
        stretch.right += judge.judge(self._theia, pictures, self._plan.label(number)).values()
        stretch.sharpness.append(judge.sharpness(pictures))
        stretch.rgb.append(judge.mean_colour(pictures))

    def _row(self, engine: SoakEngine, stretch: _Stretch, end: int) -> dict[str, Any]:
        descriptors, threads = engine.figures()
        folder = channel_folder(self._state, CHANNEL)
        seen = bool(stretch.right)
        return {
            "video_hours": round(end / self._config.fps / 3600, 4),
            "frame": end,
            "run": self._run,  # memory of two processes cannot be compared
            "took_s": round(time.monotonic() - stretch.began_s, 1),
            "rss_mb": round(min(stretch.memory_mb), 2),  # what is needed all the time, as in streaming.chaos
            "rss_most_mb": round(max(stretch.memory_mb), 2),
            "descriptors": descriptors,
            "threads": threads,
            "journal_bytes": _bytes(folder / JOURNAL),
            "folder_bytes": sum(map(_bytes, folder.iterdir())),
            "no_journal": engine.no_journal,
            "wrong_frames": engine.wrong_frames,
            "words": judge.share(stretch.right) if seen else None,
            "sharpness": round(float(np.mean(stretch.sharpness)), 3) if seen else None,
            "rgb": np.mean(stretch.rgb, axis=0).round(1).tolist() if seen else None,
        }

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        text = json.dumps(self.report(), indent=1) + "\n"
        write_atomically(self._path, lambda part: part.write_text(text, encoding="utf-8"))


def _bytes(path: Path) -> int:
    """Size of a file that the engine may replace or delete meanwhile; 0 where it is not there."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How a process's memory grew from FIRST_HOUR of its video on: MB an hour with its standard error, and in all.

    Empty for fewer than three rows.
    """
    began = rows[0]["video_hours"] if rows else 0.0
    later = [row for row in rows if row["video_hours"] - began >= FIRST_HOUR] if len(rows) > 2 else []
    if len(later) < 3:
        return {}
    hours, sizes = (np.asarray([row[name] for row in later], float) for name in ("video_hours", "rss_mb"))
    centred = hours - hours.mean()
    slope = float(centred @ sizes / (centred @ centred))
    rest = sizes - sizes.mean() - slope * centred
    error = float(np.sqrt(rest @ rest / (len(later) - 2) / (centred @ centred)))
    grew = float(sizes[-1] - sizes[0])
    return {"mb_an_hour": round(slope, 4), "standard_error": round(error, 4), "grew_mb": round(grew, 2)}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 1 where the engine did not go on. Raises ValueError for a mistake of the caller."""
    told = "Makes hours of one video with the engine that serves, and watches memory, files and quality."
    parser = argparse.ArgumentParser(prog="python -m engine soak", description=told)
    parser.add_argument("--hours", type=float, required=True, metavar="H", help="of video, since it began")
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="report; its state folder is F.state")
    parser.add_argument("--row-minutes", type=float, default=60.0, help="of video, for a row (default: 60)")
    parser.add_argument("--prompt-minutes", type=float, default=10.0, help="of video under a prompt (default: 10)")
    parser.add_argument("--judge-minutes", type=float, default=1.0, help="of video, for a judged clip (default: 1)")
    parser.add_argument("--seed", type=checked(seed), default=0, help="of prompts and video (default: 0)")
    add_weights(parser)
    arguments = parser.parse_args(argv)
    minutes = arguments.row_minutes, arguments.prompt_minutes, arguments.judge_minutes
    if not 0 < arguments.hours <= MOST_HOURS or not all(0 < one <= 60 * MOST_HOURS for one in minutes):
        parser.error(f"hours and minutes must be above 0, and {MOST_HOURS:g} hours at most")
    check_target(arguments.json, ".json")
    torch.set_num_threads(1)
    # The judge knows no other preset's pictures.
    config = preset("mini")
    folder, _, _ = place(config, arguments.weights, arguments.device)
    theia = Theia(config.theia).eval()
    load_component(folder, "theia", theia)
    state = arguments.json.with_suffix(".state")
    soak = Soak(SoakPlan(*minutes, arguments.seed), config, theia, state, arguments.json)
    settings = EngineSettings(config.name, arguments.weights, arguments.device, state=str(state))
    try:
        report = soak.run(arguments.hours, settings)
    except SoakError as error:
        sys.stderr.write(f"soak: {error}; what was made is in {arguments.json}, and the same command goes on\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"soak: interrupted; whole rows are in {arguments.json}, and the same command goes on\n")
        return 130
    sys.stdout.write(json.dumps({name: report[name] for name in ("conditions", "plan", "memory")}, indent=1) + "\n")
    return 0
