"""A video of a known length as a pipeline: plan, latents and frames are made by a process each.

While one chunk is decoded the next one is rendered and the one after that is planned. What goes from process to process
are records of tensors on the host.
Shapes: `T` latent frames, `C` latent channels, `H` x `W` latent size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from engine.live.channel_state import ChannelState, Place, RenderState
from engine.live.generator import Generator
from engine.live.offline import Change, make_due
from engine.live.plan_writer import PlanPart
from engine.live.slices import SliceDecoder
from engine.loading.model import Model
from engine.perceptual.base import VideoState
from engine.runtime.cuda_streams import CudaStreams, Download
from engine.runtime.graphs import Graphs
from engine.runtime.pytree import leaves, unflatten
from engine.text.embedding import TextEmbedding
from engine.wire.frames import FrameBatch

T = TypeVar("T")

_DECODE = "decode"  # CUDA stream


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """What a chunk is rendered from."""

    start: Place
    text: TextEmbedding | None  # None: that of the chunk before
    seed: int
    steps: int
    parts: list[PlanPart]


@dataclass(frozen=True, slots=True)
class RenderedChunk:
    """A chunk's latents."""

    start: Place
    latents: Tensor  # [1, T, C, H, W] float32


def plan_chunks(
    generator: Generator, channel: ChannelState, frames: int, changes: Sequence[Change] = ()
) -> Iterator[PlannedChunk]:
    """Plans of the chunks that the next `frames` frames are in, each as soon as it is written.

    Changes must be of mode `flow`: frames that were made once are not made anew.
    """
    waiting = sorted(changes, key=lambda change: change.frame)
    end = channel.next.frame + frames
    told: TextEmbedding | None = None
    while channel.next.frame < end:
        make_due(generator, channel, waiting, channel.next.frame)
        while generator.needs_plan(channel):
            generator.plan(channel)
        chunk = generator.chunk(channel)
        text = None if channel.text is told else channel.text
        told = channel.text
        yield _on_host(PlannedChunk(chunk.start, text, channel.seed, chunk.steps, chunk.parts))
        generator.pass_over(channel, chunk)


def render_chunks(model: Model, planned: Iterable[PlannedChunk]) -> Iterator[RenderedChunk]:
    """Latents of a video's chunks, from its first on."""
    outlet = _LatentOutlet()
    generator = Generator(model, decoder=outlet)
    state: RenderState | None = None
    for chunk in planned:
        text = None if chunk.text is None else _on_device(chunk.text, model)
        if state is None:
            assert text is not None, "the first chunk brings a text"
            state = generator.start(text, chunk.seed, chunk.steps)
        state.text, state.seed = text or state.text, chunk.seed
        for unit in generator.render_plan(state, _on_device(chunk.parts, model), chunk.steps):
            unit.mark.wait()
        generator.settle()
        yield _on_host(RenderedChunk(chunk.start, outlet.latents))


def decode_chunks(model: Model, rendered: Iterable[RenderedChunk], frames: int) -> Iterator[FrameBatch]:
    """The first `frames` frames of a video's chunks, in order; the last batch is cut to fit."""
    slices = SliceDecoder(model, Graphs.on(model.device), CudaStreams(model.device), _DECODE)
    state, made = model.vae.new_state(), 0
    for chunk in rendered:
        for planes, after in slices.decode(state, _on_device(chunk.latents, model)):
            state = after
            i420 = planes.array()[: frames - made]
            if len(i420):
                yield FrameBatch(made, chunk.start.chunk, i420)
            made += len(i420)


class _LatentOutlet:
    """Takes a chunk's latents in place of the autoencoder, which another process has."""

    latents: Tensor

    def lengths(self, state: VideoState, latents: Tensor) -> list[int]:
        return [latents.shape[1]]

    def decode(self, state: VideoState, latents: Tensor) -> Iterator[tuple[Download, VideoState]]:
        self.latents = latents
        return iter(())


def _on_host(record: T) -> T:
    return unflatten(record, (leaf.cpu() for leaf in leaves(record)))


def _on_device(record: T, model: Model) -> T:
    return unflatten(record, (leaf.to(model.device) for leaf in leaves(record)))
