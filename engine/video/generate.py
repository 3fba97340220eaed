"""`python -m engine generate`: a prompt to a video file."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from engine.arguments import add_model, add_picture, add_ranks, add_rendering, checked, seconds, seed
from engine.config import EngineConfig, preset
from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames
from engine.live.start import Pictures, Starter, most_pictures
from engine.loading.model import Model, load
from engine.loading.options import place
from engine.published.release import check_release, generate_release, release_units
from engine.video.start_clip import last_pictures
from engine.video.video_file import VideoFile, check_video_target
from engine.wire.prompt import check_prompt


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises ValueError for a mistake of the caller."""
    arguments = parser().parse_args(argv)
    if arguments.ranks not in (None, 1) or (arguments.ranks is None and under_torchrun()):
        # What several processes need is not loaded for one.
        return int(import_module("engine.video.ranked").run(arguments))
    if arguments.pipeline:
        raise ValueError("--pipeline is for several processes: give --ranks")
    # First of all, so that a place that cannot be written is named before weights are fetched or read.
    pictures = check(arguments)
    config = preset(arguments.preset, arguments.picture)
    folder, device, dtype = place(config, arguments.weights, arguments.device)
    with VideoFile(arguments.out, config.width_px, config.height_px, config.fps) as file:
        write(file, arguments, load(config, folder, device, dtype, memory_gb=arguments.memory), pictures)
    return 0


def check(arguments: argparse.Namespace) -> Pictures | None:
    """Looks at the files that the command reads and writes.

    Returns:
        The pictures that the video goes on from, if it does.

    Raises:
        ValueError or OSError: one cannot be read or written, or options do not go together.
    """
    check_video_target(arguments.out, source=arguments.start)
    config = preset(arguments.preset, arguments.picture)
    if arguments.reference:
        check_release(config)
        if arguments.change or arguments.start:
            option = "--change" if arguments.change else "--start"
            raise ValueError(f"{option} needs an endless video: leave out --reference")
    size = config.height_px, config.width_px, config.fps, most_pictures(config)
    return None if arguments.start is None else last_pictures(arguments.start, *size)


def write(file: VideoFile, arguments: argparse.Namespace, model: Model, pictures: Pictures | None) -> None:
    """Makes the video with a loaded model."""
    tell_unread(arguments, model)
    config = model.config
    steps = arguments.steps or config.steps
    if arguments.reference:
        with tqdm(total=release_units(config, steps), unit="step", desc=arguments.out.name) as bar:
            for batch in generate_release(model, arguments.prompt, arguments.seed, steps, bar.update):
                file.write(batch.i420)
        return
    generator = Generator(model)
    begin = arguments.prompt, arguments.seed, steps
    channel = generator.open(*begin) if pictures is None else Starter(generator).begin(pictures, *begin)
    frames = frames_of(arguments, config)
    file.write_batches(generate_frames(generator, channel, frames, changes_of(arguments, config)), frames)


def tell_unread(arguments: argparse.Namespace, model: Model) -> None:
    """Says which words of the prompts have no effect."""
    for prompt in (arguments.prompt, *(prompt for _, prompt in arguments.change)):
        if unread := model.text.unread(prompt):
            sys.stderr.write(f"without effect in {prompt!r}: {', '.join(unread)}\n")


def frames_of(arguments: argparse.Namespace, config: EngineConfig) -> int:
    """Length of the video in frames."""
    seconds_asked: float = arguments.seconds
    return max(1, round(seconds_asked * config.fps))


def changes_of(arguments: argparse.Namespace, config: EngineConfig) -> list[Change]:
    """The changes of prompt, each at its frame."""
    return [Change(math.ceil(at_s * config.fps), prompt) for at_s, prompt in arguments.change]


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m engine generate", description="Writes a video.")
    options.add_argument("--prompt", type=checked(check_prompt), required=True, help="what the video begins with")
    length = options.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=checked(seconds), metavar="S", help="length of the video")
    told = "landiff: one window of 49 frames, drawn as the release draws it"
    length.add_argument("--reference", action="store_true", help=told)
    options.add_argument("--out", type=Path, required=True, metavar="V.mp4", help="file to write, H.264")
    options.add_argument("--seed", type=checked(seed), default=0, help="same seed, same video (default: 0)")
    options.add_argument(
        "--change",
        type=checked(_change),
        action="append",
        default=[],
        metavar="SECONDS:PROMPT",
        help="a new prompt from the first chunk on that begins at SECONDS or later; may be repeated",
    )
    told = "picture or video that the video goes on from; of a long one the last 6 s count"
    options.add_argument("--start", type=Path, metavar="F", help=told)
    add_model(options)
    add_rendering(options)
    add_picture(options)
    add_ranks(options, "one, or as many as torchrun starts")
    told = "with 3 ranks or more: one plans, one decodes, and the others render meanwhile"
    options.add_argument("--pipeline", action="store_true", help=told)
    return options


def _change(text: str) -> tuple[float, str]:
    at, colon, prompt = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r} is not SECONDS:PROMPT")
    return seconds(at), check_prompt(prompt)
