"""The straight line as code: prompt to frames, hop after hop, cut into units of work.

A `ChannelState` is everything a video needs to go on; between two hops it can be kept, copied and resumed. Shapes:
`T` latent or semantic frames, `C` latent channels, `H` x `W` latent size, `D` feature channels, `h` x `w` their grid,
`L` text tokens, `K` text width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import FRAMES_PER_LATENT
from engine.model import Model
from engine.noise import normal
from engine.perceptual.frames import to_host
from engine.perceptual.renderer import PromptCache
from engine.perceptual.schedule import FlowSchedule
from engine.perceptual.solver import FlowSolver, SolverState
from engine.perceptual.tiny_vae import TinyVAEState
from engine.plan import Plan, PlanWriter
from engine.records import FrameChunk
from engine.semantic.sampling import SamplingConfig

CODES_PER_UNIT = 8
SLICE_LATENTS = 2  # decoded at a time, but for the first hop's `EngineConfig.slices`


@dataclass(slots=True)
class ChannelState:
    """One endless video between two hops. Constant in size."""

    prompt: str
    text: Tensor  # [1, L, K] of the prompt
    seed: int
    hop: int  # number of the next hop
    frame: int  # number of the next hop's first video frame
    latent: int  # number of the next hop's first latent and semantic frame
    plan: Plan
    features: Tensor  # [1, T, D, h, w] float32 of the prompt half; T = 0 before the first hop
    prompt_half: Tensor  # [1, T, C, H, W] float32, the last latents rendered
    vae: TinyVAEState


@dataclass(frozen=True, slots=True)
class Window:
    """What the denoising steps of one hop share."""

    hop: int
    frame: int
    prompt: PromptCache
    condition: Tensor  # [1, T, C, H, W] of the new latents


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work that was done."""

    stage: str  # "plan", "render" or "vae"
    chunk: FrameChunk | None = None  # frames it finished


class Generator:
    """Makes hops of any number of channels with one model."""

    def __init__(self, model: Model, steps: int | None = None) -> None:
        """`steps` denoising steps a hop, the preset's own if None."""
        config = model.config
        self.model = model
        self.steps = config.steps if steps is None else steps
        self._solver = FlowSolver(FlowSchedule(), self.steps)
        top_p = config.top_p if config.top_p < 1.0 else None
        self._writer = PlanWriter(model, SamplingConfig(config.guidance, config.temperature, top_p=top_p))

    def open(self, prompt: str, seed: int, first_frame: int = 0, first_hop: int = 0) -> ChannelState:
        """A new video whose frames and hops are numbered from the given ones; hops key the noise with the seed."""
        config, device = self.model.config, self.model.device
        latent = first_hop * config.new_latents
        dit, tokenizer = config.renderer.dit, config.tokenizer
        with self.model.computing():
            text = self._text(prompt)
            plan = self._writer.begin(text, seed, latent)
        features = torch.zeros(1, 0, tokenizer.feature_dim, *tokenizer.grid, device=device)
        prompt_half = torch.zeros(1, 0, dit.channels, dit.height, dit.width, device=device)
        return ChannelState(
            prompt, text, seed, first_hop, first_frame, latent, plan, features, prompt_half, TinyVAEState()
        )

    def change(self, channel: ChannelState, prompt: str) -> int:
        """A new prompt from the next hop on. Returns the number of the first video frame under it."""
        with self.model.computing():
            channel.prompt, channel.text = prompt, self._text(prompt)
            self._writer.cut(channel.plan, channel.latent, channel.text)
        return channel.frame

    def ahead(self, channel: ChannelState) -> int:
        """Semantic frames that are planned and belong to no hop yet."""
        return self._writer.end(channel.plan) - channel.latent

    def needs_plan(self, channel: ChannelState) -> bool:
        """Whether the next hop cannot begin yet."""
        return self.ahead(channel) < self._new_latents(channel)

    def plan(self, channel: ChannelState) -> Unit:
        """Plans some codes further."""
        with self.model.computing():
            for _ in range(CODES_PER_UNIT):
                self._writer.write(channel.plan)
        return Unit("plan")

    def hop(self, channel: ChannelState) -> Iterator[Unit]:
        """The next hop, unit by unit. The plan must cover it; the channel waits until the last unit is done."""
        window = self._open_window(channel)
        yield Unit("render")
        noise = normal(tuple(window.condition.shape), channel.seed, "render", window.hop)
        state = SolverState(noise.to(self.model.device))
        for index in range(self.steps):
            state = self._denoise(window, index, state)
            yield Unit("render")
        latents = torch.cat([channel.prompt_half, state.x], dim=1)
        channel.prompt_half = latents[:, -self.model.config.prompt_latents :].clone()
        frame = window.frame
        first = not channel.vae.started
        for part in state.x.split(list(self.model.config.slices) if first else SLICE_LATENTS, dim=1):
            chunk = self._decode(channel, part, frame, window.hop)
            frame += chunk.frames
            yield Unit("vae", chunk)

    def _open_window(self, channel: ChannelState) -> Window:
        """Takes the next hop's frames off the plan; from here on the channel's next hop is the one after it."""
        config, renderer = self.model.config, self.model.renderer
        given, new = channel.features.shape[1], self._new_latents(channel)
        with self.model.computing():
            made = self._writer.features(channel.plan, channel.latent, channel.latent + new).features
            features = torch.cat([channel.features, made], dim=1)
            condition = renderer.condition(features)
            prompt = renderer.read_prompt(channel.prompt_half, channel.text, condition[:, :given])
        window = Window(channel.hop, channel.frame, prompt, condition[:, given:])
        channel.features = features[:, -config.prompt_latents :].clone()
        channel.frame += new * FRAMES_PER_LATENT - (FRAMES_PER_LATENT - 1 if given == 0 else 0)
        channel.latent += new
        channel.hop += 1
        self._writer.drop(channel.plan, channel.latent)
        return window

    def _denoise(self, window: Window, index: int, state: SolverState) -> SolverState:
        with self.model.computing():
            now = torch.full((1,), self._solver.time(index), device=self.model.device)
            output = self.model.renderer.denoise(state.x, now, window.condition, window.prompt)
            return self._solver.step(index, state, self._solver.clean(index, state.x, output))

    def _decode(self, channel: ChannelState, latents: Tensor, frame: int, hop: int) -> FrameChunk:
        with self.model.computing():
            i420 = to_host(self.model.vae.decode(latents, channel.vae))
        return FrameChunk(frame, hop, i420, time.monotonic())

    def _new_latents(self, channel: ChannelState) -> int:
        config = self.model.config
        return config.new_latents if channel.features.shape[1] else config.prompt_latents

    def _text(self, prompt: str) -> Tensor:
        return self.model.text.encode([prompt]).float()
