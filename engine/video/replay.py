"""`python -m engine replay`: a channel's journal to a video file, the same frames as were streamed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.arguments import add_weights, checked, seconds, steps
from engine.live.generator import Generator
from engine.live.journal import Environment, Journal
from engine.live.replay import OTHER_PICTURES, Replay, differences
from engine.loading.model import load
from engine.loading.options import place
from engine.video.video_file import VideoFile, check_video_target
from engine.wire.state_folder import JOURNAL


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises ValueError for a mistake of the caller."""
    told = "Writes the video of a channel's journal: the same frames, bit for bit, without planning them again."
    parser = argparse.ArgumentParser(prog="python -m engine replay", description=told)
    parser.add_argument("journal", type=Path, metavar="J", help="journal.jsonl, or the folder that holds it")
    parser.add_argument("--out", type=Path, required=True, metavar="V.mp4", help="file to write, H.264")
    parser.add_argument(
        "--start", type=checked(_start), default=0.0, metavar="S", help="where to begin (default: at the beginning)"
    )
    parser.add_argument("--seconds", type=checked(seconds), metavar="S", help="how much (default: up to the end)")
    parser.add_argument("--steps", type=checked(steps), metavar="N", help="denoising steps (default: as they were)")
    parser.add_argument(
        "--lossless", action="store_true", help="keep every value of the frames; browsers do not play it"
    )
    add_weights(parser)
    arguments = parser.parse_args(argv)
    path = arguments.journal / JOURNAL if arguments.journal.is_dir() else arguments.journal
    check_video_target(arguments.out, source=path)
    journal = Journal(path)
    config = journal.config
    with VideoFile(arguments.out, config.width_px, config.height_px, config.fps, arguments.lossless) as file:
        model = load(config, *place(config, arguments.weights, arguments.device), planner=False)
        _compare(journal, Environment.of(model))
        replay = Replay(Generator(model), journal, arguments.steps)
        start, end = _range(journal, replay, arguments.start, arguments.seconds)
        file.write_batches(replay.frames(start, end), end - start)
        if not file.frames:
            raise ValueError("the journal has lost all of these frames: give another --start")
    return 0


def _start(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else seconds(text)


def _compare(journal: Journal, own: Environment) -> None:
    """Says what is not as it was. Raises ValueError where the video would be another."""
    found = differences(journal.beginning.environment, own)
    if grave := [words for name, words in found.items() if name in OTHER_PICTURES]:
        raise ValueError(f"the journal is of another model ({'; '.join(grave)}): give its weights with --weights")
    if found:
        sys.stderr.write(f"frames may differ in their last bits: {'; '.join(found.values())}\n")


def _range(journal: Journal, replay: Replay, start_s: float, length_s: float | None) -> tuple[int, int]:
    """Numbers of the first frame and the one behind the last. Raises ValueError for what the journal does not have."""
    fps, begin = journal.config.fps, replay.begin
    start = begin + round(start_s * fps)
    end = replay.end if length_s is None else start + max(1, round(length_s * fps))
    held_s = (replay.end - begin) / fps
    if end > replay.end or (journal.damage and length_s is None):
        reason = journal.damage or "it ends there"
        raise ValueError(f"the journal holds {held_s:g} s of video: {reason}; give a smaller --start and --seconds")
    if start >= end:
        raise ValueError(f"--start {start_s:g} is behind the end of the journal, which holds {held_s:g} s of video")
    return start, end
