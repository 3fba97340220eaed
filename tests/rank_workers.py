"""Ranks for tests: processes over loopback, made of one that has loaded everything, and models for them."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import coverage
import torch
from checkpoint import TINY
from tiny import randomize, tiny_config, tiny_model

from engine.config import PRESETS, preset
from engine.live.generator import Generator
from engine.live.process import serve
from engine.live.relay import plan_chunks, render_chunks
from engine.loading import options
from engine.loading.model import Model, assemble, load
from engine.loading.modules import build
from engine.loading.weights import SHIPPED
from engine.perceptual.renderer import DiTRenderer
from engine.ranks.group import SILENCE, RankError, RankPlace, joined, new_store
from engine.ranks.layout import RankLayout
from engine.ranks.renderer import follow, leading
from engine.ranks.team import RenderTeam
from engine.text.embedding import FixedText, TextEmbedding
from engine.video import ranked
from engine.video.generate import parser
from engine.wire.settings import EngineSettings

TESTS = Path(__file__).parent
CPU = torch.device("cpu")
LIMIT_S = 60.0
ENDS_S = 5.0  # from a rank's result to its end


def forked(work: Callable[..., Any], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """A process that has loaded everything and calls `work(*arguments)`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rank_workers"])
    process = context.Process(target=work, args=arguments)
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(TESTS), str(TESTS.parent)])):
        process.start()
    return process


def run(ranks: int, work: Callable[..., Any], *arguments: Any, silence_s: float = LIMIT_S) -> list[Any]:
    """What `work(place, *arguments)` returns in each of so many processes; an exception is returned, not raised."""
    store = new_store(ranks)
    workers = []
    for rank in range(ranks):
        here, there = multiprocessing.Pipe()
        place = RankPlace(rank, ranks, rank, ranks, store.port)
        process = forked(_counted, _data_file(), _work, there, silence_s, place, work, arguments)
        there.close()
        workers.append((process, here))
    try:
        results = [_result(here) for _, here in workers]
        for process, _ in workers:
            process.join(ENDS_S)
        return results
    finally:
        for process, _ in workers:
            process.kill()
            process.join()


def _data_file() -> str | None:
    """Where the lines that run are counted; None where they are not."""
    counting = coverage.Coverage.current()
    return None if counting is None else os.path.abspath(counting.config.data_file)


def _counted(data_file: str | None, work: Callable[..., None], *arguments: Any) -> None:
    """Calls `work(*arguments)`; the lines that it runs are counted with those of the tests, which put them together."""
    if data_file is None:
        work(*arguments)
        return
    counting = coverage.Coverage(data_file, data_suffix=True, config_file=str(TESTS.parent / "pyproject.toml"))
    counting.start()
    try:
        work(*arguments)
    finally:
        counting.stop()
        counting.save()


def _result(here: Connection) -> Any:
    try:
        return here.recv() if here.poll(LIMIT_S) else TimeoutError("no result")
    except EOFError:
        return ChildProcessError("it ended without a word")


def _work(there: Connection, silence_s: float, place: RankPlace, work: Callable[..., Any], arguments: Any) -> None:
    os.environ[SILENCE] = str(silence_s)
    torch.set_num_threads(1)
    try:
        with joined(place):
            result = work(place, *arguments)
    except (RankError, ValueError) as error:
        result = error.with_traceback(None)
        result.__cause__ = result.__context__ = None
    except Exception:
        result = AssertionError(traceback.format_exc())
    there.send(result)


def guided_model(heads: int = 2) -> Model:
    """The published model's stages at tiny size, float32, with random weights and a fixed text."""
    dit = replace(TINY.renderer.dit, heads=heads)
    config = replace(TINY, renderer=replace(TINY.renderer, dit=dit))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = build(config, "cpu")
    for name, module in modules.items():
        randomize(f"guided {name}", module)
    drawn = torch.Generator().manual_seed(6)
    texts = (torch.randn(1, 5, width, generator=drawn) for width in (config.planner.text_dim, dit.text_dim))
    return assemble(config, FixedText(TextEmbedding(*texts)), modules, CPU, torch.float32)


def mini_model() -> Model:
    """The shipped weights in float32."""
    return load(preset("mini"), SHIPPED / "mini", CPU, torch.float32)


MODELS: dict[str, Callable[[], Model]] = {
    "tiny": tiny_model,
    "mini": mini_model,
    "guided": guided_model,
    "guided, 4 heads": lambda: guided_model(4),
}


def difference(place: RankPlace, name: str, steps: int, chunks: int = 2) -> float | None:
    """How far the latents that all ranks make together are from those that one makes alone, relative to the largest.

    None of ranks that follow.
    """
    model = MODELS[name]()
    config = model.config
    planned = []
    if place.rank == 0:
        generator = Generator(model)
        channel = generator.open("a red ball", 3, steps)
        frames = config.first_chunk_frames + (chunks - 1) * config.chunk_frames
        planned = list(plan_chunks(generator, channel, frames))
        alone = [chunk.latents for chunk in render_chunks(model, planned)]
    team = RenderTeam(RankLayout.of(config, place.ranks), CPU, config.renderer.dit.heads)
    if place.rank:
        assert isinstance(model.renderer, DiTRenderer)
        follow(model.renderer, team, model.computing)
        return None
    with leading(model, team) as led:
        together = [chunk.latents for chunk in render_chunks(led, planned)]
    assert len(together) == chunks
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(alone, together, strict=True))


def use_tiny() -> None:
    """`--preset tiny` works in this process, in float32."""
    PRESETS["tiny"] = tiny_config
    options.pick_dtype = lambda device: torch.float32


def take_part(place: RankPlace, words: list[str]) -> None:
    """A rank's part of `python -m engine generate` with these arguments."""
    use_tiny()
    ranked.take_part(place, parser().parse_args(words))


def serve_ranks(there: Connection, ranks: int) -> None:
    """An engine process of so many ranks; nobody takes its frames."""
    from test_interleave import MemoryRing

    serve(EngineSettings("mini", device="cpu", ranks=ranks), MemoryRing(400), there)  # type: ignore[arg-type]
