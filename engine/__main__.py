"""`python -m engine COMMAND`: arguments to calls; nothing else."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from engine.arguments import add_rendering, checked, seconds, seed
from engine.wire.prompt import check_prompt

# Commands with an argument parser of their own, by the module that has it and its `main`.
MODULES = {
    "check-reference": ("engine.published.check_reference", "compare every golden case of a folder with our modules"),
    "convert": ("engine.loading.convert", "published checkpoints to our layout"),
    "evaluate": ("engine.evaluation.evaluate", "the quality figures of preset mini"),
    "inspect": ("engine.loading.inspect_model", "parameters, bytes and FLOPs of a preset"),
    "reconstruct": ("engine.video.reconstruct", "semantic tokens of a file to a video"),
    "tokenize": ("engine.video.tokenize_video", "a video file to semantic tokens"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, 2 for a mistake of the caller."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in MODULES:
        command: Callable[[Sequence[str]], int] = import_module(MODULES[words[0]][0]).main
        return command(words[1:])
    arguments = parser().parse_args(words)
    try:
        return int(arguments.run(arguments))
    except ValueError as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{arguments.command}: interrupted; nothing was written", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(prog="python -m engine", description="The engine without its server.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, purpose) in MODULES.items():
        commands.add_parser(name, help=purpose)
    _generate_options(commands.add_parser("generate", help="write a video to a file", description="Writes a video."))
    return whole


def _generate_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--prompt", type=checked(check_prompt), required=True, help="what the video begins with")
    length = options.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=checked(seconds), metavar="S", help="length of the video")
    length.add_argument(
        "--reference", action="store_true", help="landiff: one window of 49 frames, drawn as the release draws it"
    )
    options.add_argument("--out", type=Path, required=True, metavar="V.mp4", help="file to write, H.264")
    options.add_argument("--seed", type=checked(seed), default=0, help="same seed, same video (default: 0)")
    options.add_argument(
        "--change",
        type=checked(_change),
        action="append",
        default=[],
        metavar="SECONDS:PROMPT",
        help="a new prompt from the first hop on that begins at SECONDS or later; may be repeated",
    )
    options.add_argument("--preset", default="mini", help="which model (default: mini)")
    options.add_argument("--weights", metavar="DIR|HUB_ID", help="weights to use instead of the preset's own")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    add_rendering(options)
    options.set_defaults(run=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    # Torch loads slowly; a wrong argument should not wait for it.
    from tqdm import tqdm

    from engine.config import preset
    from engine.live.generator import Generator
    from engine.live.offline import Change, film
    from engine.loading.model import load, pick_device, pick_dtype, use_cores, weights_folder
    from engine.published.release import check_release, film_release, release_units
    from engine.video.video_file import VideoFile

    use_cores()
    config = replace(preset(arguments.preset), reuse=arguments.reuse)
    if arguments.reference:
        check_release(config)
        if arguments.change or arguments.reuse:
            raise ValueError("--change and --reuse need an endless video: leave out --reference")
    folder, device = weights_folder(config, arguments.weights), pick_device(arguments.device)
    steps = config.steps if arguments.steps is None else arguments.steps
    with VideoFile(arguments.out, config.width_px, config.height_px, config.fps) as file:
        model = load(config, folder, device, pick_dtype(device), memory_gb=arguments.memory)
        if arguments.reference:
            with tqdm(total=release_units(config, steps), unit="step", desc=arguments.out.name) as bar:
                for chunk in film_release(model, arguments.prompt, arguments.seed, steps, bar.update):
                    file.write(chunk.i420)
            return 0
        frames = max(1, round(arguments.seconds * config.fps))
        changes = [Change(math.ceil(seconds * config.fps), prompt) for seconds, prompt in arguments.change]
        generator = Generator(model, steps)
        channel = generator.open(arguments.prompt, arguments.seed)
        with tqdm(total=frames, unit="frame", desc=arguments.out.name) as bar:
            for chunk in film(generator, channel, frames, changes):
                file.write(chunk.i420)
                bar.update(chunk.frames)
    return 0


def _change(text: str) -> tuple[float, str]:
    at, colon, prompt = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r} is not SECONDS:PROMPT")
    return seconds(at), check_prompt(prompt)


if __name__ == "__main__":
    sys.exit(main())
