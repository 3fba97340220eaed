"""The straight line as code: prompt to frames, hop after hop, cut into units of work.

A `ChannelState` is everything a video needs to go on; between two hops it can be kept, copied and resumed. Shapes:
`T` latent or semantic frames, `C` latent channels, `H` x `W` latent size, `D` feature channels, `h` x `w` their grid,
`L` text tokens, `K` text width.
"""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import FRAMES_PER_LATENT
from engine.live.denoiser import Denoiser, Window
from engine.live.plan_writer import Plan, PlanWriter
from engine.loading.model import Model, VideoState
from engine.perceptual.cogvideox.vae import slice_lengths
from engine.perceptual.frames import to_planes
from engine.runtime.cuda_streams import Download, Lanes, Mark
from engine.runtime.graphs import Graphs
from engine.runtime.pytree import leaves, planted
from engine.wire.frames import FeatureFrames, FrameChunk, TextEmbedding

CODES_PER_UNIT = 8
_PLAN, _RENDER = "plan", "render"  # lanes


@dataclass(slots=True)
class RenderState:
    """A video between two hops, as far as rendering goes. Constant in size."""

    text: TextEmbedding
    seed: int
    hop: int  # number of the next hop
    frame: int  # number of the next hop's first video frame
    latent: int  # number of the next hop's first latent and semantic frame
    features: Tensor  # [1, T, D, h, w] float32 of the prompt half; T = 0 before the first hop
    prompt_half: Tensor  # [1, T, C, H, W] float32, the last latents rendered
    vae: VideoState


@dataclass(slots=True)
class ChannelState(RenderState):
    """One endless video between two hops, which plans itself."""

    prompt: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work that was done."""

    stage: str  # "plan", "render" or "vae"
    chunk: FrameChunk | None = None  # frames it finished
    mark: Mark = Mark()  # the next unit of the hop finds its work done when this is reached


class Generator:
    """Makes hops of any number of channels with one model."""

    def __init__(
        self, model: Model, steps: int | None = None, graphs: Callable[[torch.device], Graphs] = Graphs.on
    ) -> None:
        """`steps` denoising steps a hop, the preset's own if None; `graphs` makes those of a lane."""
        config = model.config
        self.model = model
        self.steps = config.steps if steps is None else steps
        self._graphs = graphs(model.device)
        self._lanes = Lanes(model.device)
        self._denoiser = Denoiser(model, self.steps, self._graphs)
        self._writer = PlanWriter(model, config.sampling, graphs(model.device))
        self._anchors = torch.tensor(config.anchors, device=model.device).view(1, -1, 1, 1, 1)

    @property
    def layer_runs(self) -> int:
        """Steps of a hop that run all layers."""
        return self._denoiser.layer_runs

    def open(self, prompt: str, seed: int, first_frame: int = 0, first_hop: int = 0) -> ChannelState:
        """A new video whose frames and hops are numbered from the given ones; hops key the noise with the seed."""
        latent = first_hop * self.model.config.new_latents
        with self.model.computing(), self._lanes.lane(_PLAN):
            text = self.model.text.embed(prompt)
            plan = self._writer.begin(text.planner, seed, latent)
        return ChannelState(text, seed, first_hop, first_frame, latent, *self._nothing(), prompt, plan)

    def start(self, text: TextEmbedding, seed: int) -> RenderState:
        """A new video for `render`."""
        return RenderState(text, seed, 0, 0, 0, *self._nothing())

    def change(self, channel: ChannelState, prompt: str) -> int:
        """A new prompt from the next hop on. Returns the number of the first video frame under it."""
        with self.model.computing(), self._lanes.lane(_PLAN):
            channel.prompt, channel.text = prompt, self.model.text.embed(prompt)
            self._writer.cut(channel.plan, channel.latent, channel.text.planner)
        return channel.frame

    def ahead(self, channel: ChannelState) -> int:
        """Semantic frames that are planned and belong to no hop yet."""
        return self._writer.end(channel.plan) - channel.latent

    def needs_plan(self, channel: ChannelState) -> bool:
        """Whether the next hop cannot begin yet."""
        return self.ahead(channel) < self.new_latents(channel)

    def new_latents(self, channel: RenderState) -> int:
        """Latent and semantic frames of the next hop."""
        config = self.model.config
        return config.new_latents if channel.features.shape[1] else config.first_latents

    def plan(self, channel: ChannelState) -> Unit:
        """Plans some codes further."""
        with self.model.computing(), self._lanes.lane(_PLAN):
            for _ in range(CODES_PER_UNIT):
                self._writer.write(channel.plan)
        return Unit("plan")

    def hop(self, channel: ChannelState) -> Iterator[Unit]:
        """The next hop, unit by unit. The plan must cover it; the channel waits until the last unit is done."""
        with self.model.computing(), self._lanes.lane(_PLAN):
            end = channel.latent + self.new_latents(channel)
            planned = self._writer.features(channel.plan, channel.latent, end)
            windows = self._open_windows(channel, planned)
        self._writer.drop(channel.plan, channel.latent)
        yield from self._film(channel, *windows)

    def render(self, state: RenderState, planned: FeatureFrames) -> Iterator[Unit]:
        """The next hop, unit by unit, from given features of its `new_latents` frames."""
        yield from self._film(state, *self._open_windows(state, planned))

    def _film(self, channel: RenderState, window: Window, anchor: Window | None) -> Iterator[Unit]:
        new = yield from self._denoise(window)
        if anchor is not None:
            alone = yield from self._denoise(anchor)
            with self._rendering():
                new = torch.lerp(new, alone[:, 1:], self._anchors)
        with self._rendering():
            latents = torch.cat([channel.prompt_half, new], dim=1)
            channel.prompt_half = latents[:, -self.model.config.prompt_latents :].clone()
        frame = window.frame
        for number, part in enumerate(new.split(slice_lengths(new.shape[1], channel.vae.started), dim=1)):
            with self._rendering():
                planes = self._decode(channel, part, begins=number == 0)
            while not planes.mark.reached:
                yield Unit("vae", mark=planes.mark)
            chunk = FrameChunk(frame, window.hop, planes.array(), time.monotonic())
            frame += chunk.frames
            yield Unit("vae", chunk)

    def _denoise(self, window: Window) -> abc.Generator[Unit, None, Tensor]:
        """The clean new latents of a window, [1, T, C, H, W] float32."""
        with self._rendering():
            progress = self._denoiser.begin(window)
            mark = self._lanes.mark()
        yield Unit("render")
        for index in range(self.steps):
            with self._rendering():
                progress = self._denoiser.step(window, index, progress)
                # The device has one more step to do while the host prepares the next.
                before, mark = mark, self._lanes.mark()
            yield Unit("render", mark=before)
        return progress.x

    @contextmanager
    def _rendering(self) -> Iterator[None]:
        with self.model.computing(), self._lanes.lane(_RENDER):
            yield

    def _open_windows(self, channel: RenderState, planned: FeatureFrames) -> tuple[Window, Window | None]:
        """Takes in the next hop's features; from here on the video's next hop is the one after it.

        Returns:
            The hop's window, and one of the same frames and the frame before them that has no prompt half, if the hop
            is anchored: like a first hop it begins with a latent that stands for one picture, which nobody sees.
        """
        given, new = channel.features.shape[1], planned.features.shape[1]
        mark = self._lanes.mark()
        with self._rendering():
            for tensor in (channel.text.renderer, planned.features):
                self._lanes.take(tensor, mark)
            features = torch.cat([channel.features, planned.features], dim=1)
            # The anchor begins with the last given frame.
            condition = self.model.renderer.condition(features, max(0, given - 1))
            place = (channel.hop, channel.frame, channel.seed)
            text, prompt_half = channel.text.renderer, channel.prompt_half
            window, anchor = self._denoiser.open(place, text, prompt_half, condition), None
            if given and self.model.config.anchors:
                anchor = self._denoiser.open(place, text, prompt_half[:, :0], condition[:, given - 1 :])
            channel.features = features[:, -self.model.config.prompt_latents :].clone()
        channel.frame += new * FRAMES_PER_LATENT - (FRAMES_PER_LATENT - 1 if given == 0 else 0)
        channel.latent += new
        channel.hop += 1
        return window, anchor

    def _decode(self, channel: RenderState, latents: Tensor, begins: bool) -> Download:
        """A slice of latents, which may be the one that `begins` a hop, to pictures, on their way to the host."""
        if begins:
            self.model.vae.begin_hop(channel.vae)
        if channel.vae.started and self.model.vae_stays:
            key = ("decode", latents.shape, begins)
            planes, channel.vae = self._graphs.call(key, self._sliced, (latents, channel.vae))
        else:
            planes = to_planes(self.model.vae.decode(latents, channel.vae))
        return self._lanes.download(planes)

    def _sliced(self, changing: tuple[Tensor, VideoState], lasting: tuple[()]) -> tuple[Tensor, VideoState]:
        # A record of its own: the one that is given belongs to the graph.
        latents, state = changing[0], planted(changing[1], iter(leaves(changing[1])))
        with self.model.computing():
            return to_planes(self.model.vae.decode(latents, state)), state

    def _nothing(self) -> tuple[Tensor, Tensor, VideoState]:
        """Features, latents and the autoencoder's memory of a prompt half before the first hop."""
        dit, tokenizer, device = self.model.config.renderer.dit, self.model.config.tokenizer, self.model.device
        features = torch.zeros(1, 0, tokenizer.feature_dim, *tokenizer.grid, device=device)
        prompt_half = torch.zeros(1, 0, dit.channels, dit.height, dit.width, device=device)
        return features, prompt_half, self.model.vae.new_state()
