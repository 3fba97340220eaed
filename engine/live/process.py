"""The engine process: loads the model, warms it up and runs the loop until told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from engine.config import preset
from engine.live.control_pipe import ControlPipe
from engine.live.generator import Generator
from engine.live.interleave import Interleaver
from engine.live.journal_writer import JournalWriter
from engine.live.offline import generate_frames
from engine.loading.model import Model, load, with_small_pictures
from engine.loading.options import largest_picture, place, use_cores
from engine.runtime.heap import return_memory
from engine.runtime.threads import FIXED, ThreadChoice, computing_with
from engine.wire.messages import Failed, JournalStopped, Progress, Ready
from engine.wire.priority import in_background
from engine.wire.ring import RingWriter
from engine.wire.settings import EngineSettings
from engine.wire.state_memory import StateMemory

WARM_UP_CHUNKS = 2  # the first chunk's shapes differ from all others'
LEAST_FACTOR = 1.5  # of real time, for large pictures that nobody asked for
WARM_UP_PROMPT = "a red ball moves slowly to the right over green hills by day"

log = logging.getLogger(__name__)


class LoadError(Exception):
    """The settings do not fit the model or what is here; the text is one line that says what to do."""


def serve(
    settings: EngineSettings, ring: RingWriter, connection: Connection, memory: StateMemory | None = None
) -> None:
    """Serves channels until told to stop; `memory` has the states that the process before left.

    A model that cannot be loaded is told to the server as `Failed`; any other error too, and is then raised.
    """
    # Ctrl-C in a terminal reaches every process; the server tells this one to stop.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_cores()
    began_s = time.monotonic()
    with ControlPipe(connection) as control:
        try:
            with ExitStack() as stack:
                most = max(1, torch.get_num_threads() // settings.ranks)
                if settings.spare:
                    generator, threads = in_background(prepare_spare, settings, control, most, stack)
                else:
                    generator, threads = prepare(settings, control, most, stack)
                writer = stack.enter_context(journals(settings, generator, control))
                interleaver = Interleaver(generator, ring, control, threads, journals=writer, memory=memory)
                open_channels(interleaver)
                if not gc.isenabled():
                    # It was put off. What is there now stays, so that no collection need look through it.
                    gc.freeze()
                    gc.enable()
                config, warm_up_s = generator.model.config, time.monotonic() - began_s
                size = config.width_px, config.height_px, config.fps
                control.send(Ready(*size, warm_up_s, config.name, config.steps, config.picture))
                asyncio.run(interleaver.run())
        except LoadError as error:
            control.send(Failed(str(error)))
        except (BrokenPipeError, ConnectionResetError):
            log.info("the server is gone")
        except Exception as error:
            control.send(Failed(f"{type(error).__name__}: {error}"))
            raise


def prepare(
    settings: EngineSettings, control: ControlPipe, most: int, stack: ExitStack
) -> tuple[Generator, ThreadChoice]:
    """The settings' model, warmed up, for up to `most` threads, with the pictures for which there is time. Other
    ranks end with the stack. Raises LoadError."""
    threads_at_once = settings.warm_up and not settings.spare
    model = load_model(settings, control) if settings.ranks == 1 else load_ranks(settings, control, stack)
    generator = Generator(model)
    threads = choose_threads(generator, most, threads_at_once)
    warm = False
    if settings.picture is None and model.config.picture == "large":
        warm = keeps_time(generator, control)
        if not warm:
            log.info("pictures are small: large ones would take too long here")
            generator = Generator(with_small_pictures(model))
            threads = choose_threads(generator, most, threads_at_once)
    if settings.warm_up and not warm:
        warm_up(generator, control)
    return_memory()  # some 40 MB that loading and recording took for a while
    return generator, threads


def prepare_spare(
    settings: EngineSettings, control: ControlPipe, most: int, stack: ExitStack
) -> tuple[Generator, ThreadChoice]:
    """The same on one core: another engine serves."""
    with computing_with(1):
        return prepare(settings, control, most, stack)


def load_model(settings: EngineSettings, control: ControlPipe) -> Model:
    """The settings' model. Tells how far loading is. Raises LoadError."""

    def tell(share: float) -> None:
        control.send(Progress("loading", share))

    try:
        config = preset(settings.preset)
        folder, device, dtype = place(config, settings.weights, settings.device)
        if device.type == "cuda":
            torch.cuda.set_device(settings.number * settings.ranks % torch.cuda.device_count())
        config = config.with_picture(settings.picture or largest_picture(config, folder))
        return load(config, folder, device, dtype, tell, settings.memory_gb)
    except ValueError as error:
        raise LoadError(str(error)) from error


def load_ranks(settings: EngineSettings, control: ControlPipe, stack: ExitStack) -> Model:
    """The settings' model, whose renderer computes with other processes. Raises LoadError."""
    # What several processes need is not loaded for one.
    model_of_ranks = import_module("engine.live.ranked").model_of_ranks
    try:
        model: Model = stack.enter_context(model_of_ranks(settings, partial(load_model, settings, control)))
    except ValueError as error:
        raise LoadError(str(error)) from error
    return model


@contextmanager
def journals(settings: EngineSettings, generator: Generator, control: ControlPipe) -> Iterator[JournalWriter | None]:
    """What writes the channels' journals, where there is a folder for them."""

    def tell(channel: str, reason: str | None) -> None:
        with suppress(OSError):  # the server is gone, which the main thread notices too
            control.send(JournalStopped(channel, reason))

    if settings.state is None:
        yield None
        return
    writer = JournalWriter(Path(settings.state), generator, tell)
    try:
        yield writer
    finally:
        writer.close()


def choose_threads(generator: Generator, most: int, at_once: bool) -> ThreadChoice:
    """Chooses the number of threads for a CPU, at once or by what work takes; a GPU's does not depend on it."""
    if generator.model.device.type != "cpu":
        return FIXED
    step = generator.rehearsal(WARM_UP_PROMPT)
    threads = ThreadChoice(step, most)
    if at_once:
        # The first run records it.
        step()
        threads.choose()
    return threads


def keeps_time(generator: Generator, control: ControlPipe) -> bool:
    """Whether a chunk of a scratch video takes less than its length over LEAST_FACTOR."""
    # One more than warm: it has nothing to prepare.
    took_s = warm_up(generator, control, WARM_UP_CHUNKS + 1)
    return took_s * LEAST_FACTOR <= generator.model.config.chunk_s


def warm_up(generator: Generator, control: ControlPipe, chunks: int = WARM_UP_CHUNKS) -> float:
    """Makes the first chunks of a scratch video, so that graphs are captured and libraries have chosen their ways.
    Returns the seconds that the last one took."""
    config = generator.model.config
    frames = config.first_chunk_frames + (chunks - 1) * config.chunk_frames
    ends_s = dict[int, float]()
    for batch in generate_frames(generator, generator.open(WARM_UP_PROMPT, seed=0), frames):
        control.send(Progress("warm-up", (batch.index + batch.frames) / frames))
        ends_s[batch.chunk] = time.monotonic()
    return ends_s[chunks - 1] - ends_s[chunks - 2]


def open_channels(interleaver: Interleaver) -> None:
    """Opens the channels that were asked for while the model was loaded. Raises LoadError when one cannot be made."""
    try:
        interleaver.read_inbox()
    except ValueError as error:
        raise LoadError(str(error)) from error
