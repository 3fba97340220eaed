"""`python -m engine generate`: a prompt to a video file."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from engine.arguments import add_model, add_picture, add_rendering, checked, seconds, seed
from engine.config import preset
from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames
from engine.live.start import Starter, most_pictures
from engine.loading.model import load
from engine.loading.options import place
from engine.published.release import check_release, generate_release, release_units
from engine.video.start_clip import last_pictures
from engine.video.video_file import VideoFile, check_video_target
from engine.wire.prompt import check_prompt


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises ValueError for a mistake of the caller."""
    parser = argparse.ArgumentParser(prog="python -m engine generate", description="Writes a video.")
    parser.add_argument("--prompt", type=checked(check_prompt), required=True, help="what the video begins with")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=checked(seconds), metavar="S", help="length of the video")
    told = "landiff: one window of 49 frames, drawn as the release draws it"
    length.add_argument("--reference", action="store_true", help=told)
    parser.add_argument("--out", type=Path, required=True, metavar="V.mp4", help="file to write, H.264")
    parser.add_argument("--seed", type=checked(seed), default=0, help="same seed, same video (default: 0)")
    parser.add_argument(
        "--change",
        type=checked(_change),
        action="append",
        default=[],
        metavar="SECONDS:PROMPT",
        help="a new prompt from the first chunk on that begins at SECONDS or later; may be repeated",
    )
    told = "picture or video that the video goes on from; of a long one the last 6 s count"
    parser.add_argument("--start", type=Path, metavar="F", help=told)
    add_model(parser)
    add_rendering(parser)
    add_picture(parser)
    arguments = parser.parse_args(argv)
    # First of all, so that a place that cannot be written is named before weights are fetched or read.
    check_video_target(arguments.out, source=arguments.start)
    config = preset(arguments.preset, arguments.picture)
    if arguments.reference:
        check_release(config)
        if arguments.change or arguments.start:
            option = "--change" if arguments.change else "--start"
            raise ValueError(f"{option} needs an endless video: leave out --reference")
    size = config.height_px, config.width_px, config.fps, most_pictures(config)
    pictures = None if arguments.start is None else last_pictures(arguments.start, *size)
    folder, device, dtype = place(config, arguments.weights, arguments.device)
    steps = arguments.steps or config.steps
    with VideoFile(arguments.out, config.width_px, config.height_px, config.fps) as file:
        model = load(config, folder, device, dtype, memory_gb=arguments.memory)
        for prompt in (arguments.prompt, *(prompt for _, prompt in arguments.change)):
            if unread := model.text.unread(prompt):
                sys.stderr.write(f"without effect in {prompt!r}: {', '.join(unread)}\n")
        if arguments.reference:
            with tqdm(total=release_units(config, steps), unit="step", desc=arguments.out.name) as bar:
                for batch in generate_release(model, arguments.prompt, arguments.seed, steps, bar.update):
                    file.write(batch.i420)
        else:
            generator = Generator(model)
            begin = arguments.prompt, arguments.seed, steps
            channel = generator.open(*begin) if pictures is None else Starter(generator).begin(pictures, *begin)
            frames = max(1, round(arguments.seconds * config.fps))
            changes = [Change(math.ceil(at_s * config.fps), prompt) for at_s, prompt in arguments.change]
            file.write_batches(generate_frames(generator, channel, frames, changes), frames)
    return 0


def _change(text: str) -> tuple[float, str]:
    at, colon, prompt = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r} is not SECONDS:PROMPT")
    return seconds(at), check_prompt(prompt)
