"""`python -m engine generate` by several processes: rank 0 holds the file, the others render, or plan."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from engine.config import preset
from engine.live.generator import Generator
from engine.live.relay import decode_chunks, plan_chunks, render_chunks
from engine.live.start import Pictures
from engine.loading.model import Model, computing, load, load_renderer
from engine.loading.options import place
from engine.ranks.agreement import RanksDifferError, agree, model_facts
from engine.ranks.group import RankError, RankPlace, joined, receive, send
from engine.ranks.launch import leading_ranks
from engine.ranks.layout import RankLayout
from engine.ranks.renderer import follow, leading
from engine.ranks.team import RenderTeam
from engine.video.generate import changes_of, check, frames_of, tell_unread, write
from engine.video.video_file import VideoFile

# Of the command: what all ranks must be told alike.
_AGREED = ("preset", "prompt", "seconds", "seed", "change", "steps", "memory", "picture", "pipeline")


def run(arguments: argparse.Namespace) -> int:
    """Takes part in the command: as rank 0, which starts the others, or as whatever rank torchrun says.

    Returns:
        The exit status: 1 if another rank failed.

    Raises:
        ValueError: for a mistake of the caller.
    """
    if arguments.reference:
        raise ValueError("--reference is for one process: leave out --ranks")
    if arguments.pipeline and arguments.start:
        raise ValueError("--start is not for a pipeline: leave out --pipeline")
    rank = 0
    try:
        if arguments.ranks is None:
            where = RankPlace.from_environment()
            rank = where.rank
            pictures = check(arguments) if rank == 0 else None
            with joined(where):
                take_part(where, arguments, pictures)
        else:
            RankLayout.of(preset(arguments.preset, arguments.picture), arguments.ranks, arguments.pipeline)
            pictures = check(arguments)
            with leading_ranks(arguments.ranks, take_part, arguments) as where:
                take_part(where, arguments, pictures)
    except RanksDifferError:
        if rank:
            return 2  # rank 0 says it
        raise
    except RankError as error:
        sys.stderr.write(f"generate: {error}\n")
        return 1
    return 0


def take_part(rank: RankPlace, arguments: argparse.Namespace, pictures: Pictures | None = None) -> None:
    """One rank's part of the command; `pictures` are what the video goes on from.

    Raises:
        ValueError: for a mistake of the caller.
        RankError: another rank is gone.
    """
    agree({f"--{name}": getattr(arguments, name) for name in _AGREED})
    config = preset(arguments.preset, arguments.picture)
    layout = RankLayout.of(config, rank.ranks, arguments.pipeline)
    rank.take_device(arguments.device)
    where = place(config, arguments.weights, arguments.device)
    agree(model_facts(config, *where))
    new_team = partial(RenderTeam, layout, where[1], config.renderer.dit.heads)
    if rank.rank == layout.decoder:
        with VideoFile(arguments.out, config.width_px, config.height_px, config.fps) as file:
            model = load(config, *where, memory_gb=arguments.memory, planner=not arguments.pipeline)
            team = new_team()
            if arguments.pipeline:
                _decode(file, arguments, model, layout)
            else:
                with leading(model, team) as led:
                    write(file, arguments, led, pictures)
    elif rank.rank == layout.planner:
        generator = Generator(load(config, *where, memory_gb=arguments.memory))
        new_team()
        _plan(arguments, generator, layout)
    elif rank.rank == layout.rendering[0]:
        model = load(config, *where, memory_gb=arguments.memory, planner=False)
        with leading(model, new_team()) as led:
            _render(led, layout)
        send(None, layout.decoder)
    else:
        renderer = load_renderer(config, *where, memory_gb=arguments.memory)
        follow(renderer, new_team(), partial(computing, *where[1:]))


def _plan(arguments: argparse.Namespace, generator: Generator, layout: RankLayout) -> None:
    config, lead = generator.model.config, layout.rendering[0]
    channel = generator.open(arguments.prompt, arguments.seed, arguments.steps)
    for chunk in plan_chunks(generator, channel, frames_of(arguments, config), changes_of(arguments, config)):
        send(chunk, lead)
    send(None, lead)


def _render(model: Model, layout: RankLayout) -> None:
    for chunk in render_chunks(model, _received(layout.planner)):
        send(chunk, layout.decoder)


def _decode(file: VideoFile, arguments: argparse.Namespace, model: Model, layout: RankLayout) -> None:
    frames = frames_of(arguments, model.config)
    tell_unread(arguments, model)
    rendered = _received(layout.rendering[0])
    file.write_batches(decode_chunks(model, rendered, frames), frames)
    assert next(rendered, None) is None, "all chunks are decoded"


def _received(sender: int) -> Iterator[Any]:
    """What a rank sends, up to its None."""
    while (message := receive(sender)) is not None:
        yield message
