"""The line from prompt to frames, chunk after chunk, cut into units of work.

Shapes: `T` latent or semantic frames, `C` latent channels, `H` x `W` latent size, `D` feature channels, `h` x `w` their
grid, `L` text tokens, `K` text width.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import torch
from torch import Tensor

from engine.live import rewind
from engine.live.channel_state import ChannelState, PastChunk, Place, RenderState
from engine.live.chunk import Chunk as Chunk
from engine.live.chunk import Unit as Unit
from engine.live.plan_writer import PlanPart, PlanWriter, decode
from engine.live.slices import LatentsDecoder, SliceDecoder
from engine.live.windows import WindowRenderer
from engine.loading.model import Model
from engine.perceptual.base import VideoState, frames_of
from engine.runtime.cuda_streams import CudaStreams, StreamEvent
from engine.runtime.graphs import Graphs, NewGraphs
from engine.semantic.tokenizer import FeatureFrames
from engine.text.embedding import TextEmbedding
from engine.wire.frames import FrameBatch

PASSES_PER_UNIT = 2  # of the planner; each decides some tokens
_PLAN, _RENDER = "plan", "render"  # CUDA streams


class Generator:
    """Makes chunks of any number of channels with one model."""

    def __init__(self, model: Model, graphs: NewGraphs = Graphs.on, decoder: LatentsDecoder | None = None) -> None:
        """`graphs` makes the graphs of a CUDA stream, `decoder` frames of latents: the autoencoder if None."""
        config = model.config
        self.model = model
        self._graphs, self._streams = graphs(model.device), CudaStreams(model.device)
        self._windows = WindowRenderer(model, self._graphs, self._streams, _RENDER)
        self._slices = decoder or SliceDecoder(model, self._graphs, self._streams, _RENDER)
        self.writer = PlanWriter(model, config.sampling, graphs(model.device))

    def open(
        self, prompt: str, seed: int, steps: int | None = None, first_chunk: int = 0, first_frame: int = 0
    ) -> ChannelState:
        """A new video whose chunks and frames are numbered from the given ones; chunks key the noise with the seed.

        Args:
            steps: denoising steps of its chunks; the preset's own if None.

        Raises:
            ValueError: the solver has no such number of steps.
        """
        with self.model.computing(), self._streams.stream(_PLAN):
            text = self.model.text.embed(prompt, seed)
            plan = self.writer.begin(text.planner, seed, first_chunk * self.model.config.chunk_length)
        state = self.start(text, seed, steps)
        place = Place(first_chunk, first_frame, first_chunk * self.model.config.chunk_length)
        return ChannelState(
            text, seed, state.steps, place, state.features, state.context_latents, state.vae, prompt, plan
        )

    def start(self, text: TextEmbedding, seed: int, steps: int | None = None) -> RenderState:
        """A new video for `render`; arguments as for `open`."""
        config, device = self.model.config, self.model.device
        steps = config.steps if steps is None else steps
        self._windows.check_steps(steps)
        dit, tokenizer = config.renderer.dit, config.tokenizer
        features = torch.zeros(1, 0, tokenizer.feature_dim, *tokenizer.grid, device=device)
        context_latents = torch.zeros(1, 0, dit.channels, dit.height, dit.width, device=device)
        return RenderState(text, seed, steps, Place(), features, context_latents, self.model.vae.new_state())

    def go_on(self, state: RenderState, prompt: str, before: Iterable[PlanPart]) -> ChannelState:
        """A channel that goes on from what is rendered, and from a plan up to there or further; `prompt` is its text's.

        The plan goes on behind `before`.
        """
        with self.model.computing(), self._streams.stream(_PLAN):
            plan = self.writer.begin(state.text.planner, state.seed, state.next.latent, before)
        return ChannelState(**{one.name: getattr(state, one.name) for one in fields(state)}, prompt=prompt, plan=plan)

    def change(self, state: ChannelState, prompt: str, at: Place, seed: int | None = None) -> None:
        """A new prompt, and a new seed if one is given, from the chunk that begins at `at`.

        That is the running chunk's end, or `state.next` between chunks.
        """
        state.prompt, state.seed = prompt, state.plan.gops[-1].seed if seed is None else seed
        with self.model.computing(), self._streams.stream(_PLAN):
            state.text = self.model.text.embed(prompt, state.seed)
            self.writer.cut(state.plan, at.latent, state.text.planner, state.seed)

    def replan(self, state: ChannelState, latent: int, seed: int) -> None:
        """Drops the plan from a frame on, that is in no chunk yet; chunks that begin there or later take the seed."""
        with self.model.computing(), self._streams.stream(_PLAN):
            self.writer.cut(state.plan, latent, self.model.text.embed(state.prompt, seed).planner, seed)

    def rewind(self, state: RenderState, frame: int) -> Place:
        """Goes back to the start of the slice with `frame`, with the context that was there: the next chunk begins so.

        No chunk is being made. Of a channel's plan what follows is still there, for `change` to drop.

        Raises:
            ValueError: what was made there is not kept (`RenderState.open_from`).
        """
        place = rewind.place_before(state, self.model.vae, frame)
        later = [past for past in state.past if past.start.latent >= place.latent]
        state.past = state.past[: len(state.past) - len(later)]
        if place == state.next:
            return place
        state.condition = None
        if later and later[0].start == place:
            past = later[0]
            state.features, state.context_latents, state.vae = past.features, past.context_latents, past.vae
        else:
            past, length = state.past[-1], self.model.config.context_length
            done = place.latent - past.start.latent
            kept = replace(past, new_features=past.new_features[:, :done], new_latents=past.new_latents[:, :done])
            state.past[-1] = kept
            state.vae = rewind.end_of(kept, self._slices)
            with self._rendering():
                features = torch.cat([kept.features, kept.new_features], dim=1)
                latents = torch.cat([kept.context_latents, kept.new_latents], dim=1)
                state.features, state.context_latents = features[:, -length:].clone(), latents[:, -length:].clone()
        state.next = place
        return place

    def planned(self, state: ChannelState) -> int:
        """Number of the first semantic frame that is not planned yet."""
        return self.writer.end(state.plan)

    def begun(self, state: ChannelState, at: Place) -> bool:
        """Whether the plan of the chunk from `at` on, where the prompt last changed, is being written."""
        return self.writer.begun(state.plan, at.latent)

    def needs_plan(self, state: ChannelState) -> bool:
        """True if the next chunk cannot begin yet, since its plan is not written."""
        return self.planned(state) < self.after(state).latent

    def after(self, state: RenderState, place: Place | None = None) -> Place:
        """The end of the chunk that begins at `place`; None stands for `state.next`."""
        config, now = self.model.config, place or state.next
        first = state.features.shape[1] == 0 and now == state.next
        new = config.first_chunk_length if first else config.chunk_length
        return Place(
            now.chunk + 1, now.frame + frames_of(new, not first, self.model.vae.frames_per_latent), now.latent + new
        )

    def frame_of(self, state: RenderState, latent: int) -> int:
        """Number of the first video frame of a semantic frame, be it behind or ahead; not of a video's first one."""
        known = self.after(state)
        return known.frame + self.model.vae.frames_per_latent * (latent - known.latent)

    def latent_of(self, state: RenderState, frame: int) -> int:
        """The semantic frame that a video frame belongs to."""
        known = self.after(state)
        return known.latent + (frame - known.frame) // self.model.vae.frames_per_latent

    def plan(self, state: ChannelState) -> Unit:
        """Plans some tokens further."""
        with self.model.computing(), self._streams.stream(_PLAN):
            tokens = sum(self.writer.write(state.plan) for _ in range(PASSES_PER_UNIT))
        return Unit("plan", tokens=tokens)

    def planned_features(self, state: ChannelState, start: int, end: int) -> FeatureFrames:
        """Features of frames `start` to `end` - 1, which must be planned."""
        with self.model.computing(), self._streams.stream(_PLAN):
            return self.writer.features(state.plan, start, end)

    def chunk(self, state: ChannelState, steps: int | None = None) -> Chunk:
        """The next chunk, whose frames must be planned; in `state.steps` if not given. One of a state at a time."""
        end, steps = self.after(state), state.steps if steps is None else steps
        seed = self.writer.seed_at(state.plan, state.next.latent)
        if seed != state.seed:
            with self.model.computing(), self._streams.stream(_PLAN):
                state.seed, state.text = seed, self.model.text.embed(state.prompt, seed)
        parts = self.writer.parts(state.plan, state.next.latent, end.latent)
        return Chunk(state.next, end, steps, parts, self._planned_units(state, parts, steps))

    def render(self, state: RenderState, planned: FeatureFrames) -> Iterator[Unit]:
        """The next chunk, unit by unit, from given features of its frames."""
        yield from self._units(state, self.after(state), planned, self._streams.record(), state.steps)

    def render_plan(
        self, state: RenderState, parts: list[PlanPart], steps: int, latents: Tensor | None = None
    ) -> abc.Generator[Unit, None, Tensor]:
        """The next chunk, unit by unit, from what it reads of a plan: the same bits as when it was planned.

        Args:
            latents: of the chunk, [1, T, C, H, W] float32, if they were rendered before: they are decoded alone.

        Returns:
            The chunk's latents.
        """
        end = self.after(state)
        with self.model.computing(), self._streams.stream(_PLAN):
            planned = decode(self.model, parts, state.next.latent)
            mark = self._streams.record()
        return (yield from self._units(state, end, planned, mark, steps, latents))

    def pass_over(self, state: ChannelState, chunk: Chunk) -> None:
        """Counts a chunk as made, which another process makes of its `parts`; only the plan goes on here."""
        chunk.units.close()
        state.next, state.features = chunk.end, state.features.new_zeros(1, 1, *state.features.shape[2:])
        self.writer.drop(state.plan, chunk.end.latent)

    def settle(self) -> None:
        """Returns when all that was launched is done."""
        self._streams.wait()

    def rehearsal(self, prompt: str) -> Callable[[], None]:
        """A denoising step of a scratch chunk without a plan, for timing."""
        config = self.model.config
        with self.model.computing():
            state = self.start(self.model.text.embed(prompt), seed=0)
        features = state.features.new_zeros(1, config.first_chunk_length, *state.features.shape[2:])
        return self._windows.rehearsal(state, features)

    def practise(self, state: RenderState, steps: int) -> Iterator[Unit]:
        """Renders a chunk like all behind a video's first, under its text and without a plan; nobody gets it."""
        config, scratch = self.model.config, self.start(state.text, seed=0, steps=steps)
        with self._rendering():
            before, both = config.context_length, config.context_length + config.chunk_length
            features = state.features.new_zeros(1, both, *state.features.shape[2:])
            scratch.features = features[:, :before]
            scratch.context_latents = state.context_latents.new_zeros(1, before, *state.context_latents.shape[2:])
        yield from self._windows.render(scratch, features, steps)

    def _planned_units(
        self, state: ChannelState, parts: list[PlanPart], steps: int
    ) -> abc.Generator[Unit, None, Tensor]:
        end = self.after(state)
        latents = yield from self.render_plan(state, parts, steps)
        self.writer.drop(state.plan, min([end.latent, *(past.start.latent for past in state.past)]))
        return latents

    def _units(
        self,
        state: RenderState,
        end: Place,
        planned: FeatureFrames,
        mark: StreamEvent,
        steps: int,
        latents: Tensor | None = None,
    ) -> abc.Generator[Unit, None, Tensor]:
        """Text and `planned` features are whole when `mark` is done."""
        length = self.model.config.context_length
        with self._rendering():
            for tensor in (state.text.renderer, planned.features):
                self._streams.take(tensor, mark)
            features = torch.cat([state.features, planned.features], dim=1)
        new, condition = (
            (latents, None) if latents is not None else (yield from self._windows.render(state, features, steps))
        )
        before = state.features, state.context_latents, state.vae
        past = PastChunk(state.next, *before, planned.features, new, torch.get_num_threads())
        rewind.keep(state, past, end)
        vae = yield from self._decode(past)
        with self._rendering():
            known = torch.cat([state.context_latents, new], dim=1)
            # The one place where a video advances.
            state.next, state.vae = end, vae
            state.features, state.context_latents = features[:, -length:].clone(), known[:, -length:].clone()
            state.condition = None if condition is None else condition[:, -length:].clone()
        return new

    def _decode(self, chunk: PastChunk) -> abc.Generator[Unit, None, VideoState]:
        """A chunk's latents to frames, slice by slice; returns the autoencoder's state behind them."""
        frame, after = chunk.start.frame, chunk.vae
        for planes, after in self._slices.decode(chunk.vae, chunk.new_latents):
            rewind.keep_end(chunk, after)
            while not planes.event.done:
                yield Unit("vae", mark=planes.event)
            batch = FrameBatch(frame, chunk.start.chunk, planes.array())
            frame += batch.frames
            yield Unit("vae", batch)
        return chunk.ends[-1] if chunk.ends else after

    @contextmanager
    def _rendering(self) -> Iterator[None]:
        with self.model.computing(), self._streams.stream(_RENDER):
            yield
