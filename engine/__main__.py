"""`python -m engine COMMAND`: finds the command's module, and says in one line what went wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Command: module with a `main` that takes its arguments, and purpose. Modules load torch, so only one is imported.
COMMANDS = {
    "generate": ("engine.video.generate", "write a video to a file"),
    "replay": ("engine.video.replay", "the journal of a channel to the same video"),
    "tokenize": ("engine.video.tokenize_video", "a video file to semantic tokens"),
    "reconstruct": ("engine.video.reconstruct", "semantic tokens of a file to a video"),
    "convert": ("engine.loading.convert", "published checkpoints to our layout"),
    "inspect": ("engine.loading.inspect", "parameters and bytes of a preset"),
    "check-reference": ("engine.published.check_reference", "compare every golden case of a folder with our modules"),
    "evaluate": ("engine.evaluation.evaluate", "the quality figures of preset mini"),
    "soak": ("engine.evaluation.soak", "hours of one video, and what becomes of memory, files and quality"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 2 for a mistake of the caller, 130 for an interrupt."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = _parser().parse_args(words[:1]).command
    try:
        return int(import_module(COMMANDS[command][0]).main(words[1:]))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{command}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{command}: interrupted; nothing was written\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description="The engine without its server.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose)
    return parser


if __name__ == "__main__":
    sys.exit(main())
