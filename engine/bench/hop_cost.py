"""Rendering and decoding a hop: the engine as it runs, against diffusers' transformer and autoencoder.

What is compared is the transformer's work for six new latents. Ours reads the prompt half once and then denoises the
new half, with the head; theirs computes whole windows at every step, since it has no cache for the prompt half. Turning
the plan into features and features into the condition has no counterpart there and is timed apart.
Shapes: `B` guided rows, `T` latent frames, `C` latent channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.bench import peers
from engine.bench.rounds import TOTAL, Clock, Parts, watched
from engine.live.generator import ChannelState, Generator
from engine.live.noise import normal
from engine.loading.model import Model
from engine.perceptual.solver import Solver, SolverState, guide, solver_of

CAPTION = "a red car drives slowly to the right through the desert"
SEED = 0
LEAD_IN = 3  # hops before the first that counts, after which every hop has a full prompt half and context
PLAN, FEATURES, CONDITION, PROMPT_HALF, STEPS, DECODE = PARTS = (
    "plan",
    "features",
    "condition",
    "prompt half",
    "steps",
    "decode",
)


def guided_rows(solver: Solver) -> int:
    """Rows of every denoising step: two where any of them is guided."""
    return 2 if any(solver.guidance(index) != 1.0 for index in range(solver.steps)) else 1


def advance(generator: Generator, channel: ChannelState) -> None:
    """One whole hop, planned, rendered and decoded."""
    while generator.needs_plan(channel):
        generator.plan(channel)
    for _ in generator.hop(channel):
        pass


class OwnHops:
    """Hop after hop of one channel, timed by stage."""

    def __init__(self, generator: Generator, clock: Clock) -> None:
        self._generator = generator
        self._clock = clock
        self._channel = generator.open(CAPTION, SEED)
        for _ in range(LEAD_IN):
            advance(generator, self._channel)

    def __call__(self) -> Parts:
        """Seconds of every part of a hop; the total is of the prompt half, with the plan's control, and the steps."""
        generator, channel, clock = self._generator, self._channel, self._clock
        model = generator.model
        begin_s = clock.now_s()
        while generator.needs_plan(channel):
            generator.plan(channel)
        parts = dict.fromkeys(PARTS, 0.0) | {PLAN: clock.now_s() - begin_s}
        with (
            watched(model.tokenizer.decoder, clock) as features,
            watched(model.renderer.condition, clock) as condition,
        ):
            begin_s, rendered = clock.now_s(), 0
            for unit in generator.hop(channel):
                now_s = clock.now_s()
                part = DECODE if unit.stage == "vae" else STEPS if rendered else PROMPT_HALF
                parts[part] += now_s - begin_s
                begin_s, rendered = now_s, rendered + 1
        parts |= {FEATURES: sum(features), CONDITION: sum(condition)}
        # The window is opened in one go.
        parts[PROMPT_HALF] -= parts[FEATURES] + parts[CONDITION]
        return parts | {TOTAL: parts[PROMPT_HALF] + parts[STEPS]}


class TheirHops:
    """All denoising steps of a window by diffusers' transformer, with as many layers as our base and control."""

    def __init__(self, model: Model, steps: int, clock: Clock) -> None:
        config, dit = model.config, model.config.renderer.dit
        self._clock = clock
        self._config = config
        self._dtype = model.dtype
        self._solver = solver_of(config.schedule, steps)
        self.rows = guided_rows(self._solver)
        self.layers = dit.layers + config.renderer.control_layers
        with model.device:
            peer = peers.transformer(dit, self.layers)
        self.peer = peers.placed(peer, model.device, model.dtype)
        size = (dit.channels, dit.height, dit.width)
        self._text = normal((self.rows, dit.text_length, dit.text_dim), "bench text").to(model.device, model.dtype)
        self._prompt = normal((1, config.prompt_latents, *size), "bench prompt").to(model.device)
        self._noise = normal((1, config.new_latents, *size), "bench noise").to(model.device)

    def __call__(self) -> Parts:
        with torch.inference_mode():
            return {TOTAL: self._clock.time(self._hop)}

    def _hop(self) -> Tensor:
        state = SolverState(self._noise)
        for index in range(self._solver.steps):
            noise = self._noise if self._solver.draws(index) else None
            state = self._solver.step(index, state, self._estimate(index, state.x), noise)
        return state.x

    def _estimate(self, index: int, x: Tensor) -> Tensor:
        """[1, T, C, H, W] noisy new frames -> clean ones, the same shape."""
        window = torch.cat([self._prompt, x], dim=1).to(self._dtype).expand(self.rows, -1, -1, -1, -1)
        time = self._solver.time(index) * self._config.renderer.dit.time_scale
        times = torch.full((self.rows,), time, device=x.device)
        output = self.peer(window, self._text, times, return_dict=False)[0][:, self._prompt.shape[1] :]
        clean = self._solver.clean(index, x, output)
        return clean if self.rows == 1 else guide(clean[1:], clean[:1], self._solver.guidance(index))


class TheirDecoding:
    """A first hop's latents to pictures by diffusers' autoencoder, which only begins videos and never goes on."""

    def __init__(self, model: Model, clock: Clock) -> None:
        config, dit = model.config, model.config.renderer.dit
        self._clock = clock
        with model.device:
            peer = peers.autoencoder(config.vae, config.height_px, config.width_px)
        self.peer = peers.placed(peer, model.device, model.dtype)
        shape = (1, dit.channels, config.prompt_latents, dit.height, dit.width)
        self._latents = normal(shape, "bench latents").to(model.device, model.dtype)

    def __call__(self) -> Parts:
        with torch.inference_mode():
            return {TOTAL: self._clock.time(lambda: self.peer.decode(self._latents, return_dict=False))}

    @property
    def frames(self) -> int:
        """Video frames of a call."""
        with torch.inference_mode():
            return int(self.peer.decode(self._latents, return_dict=False)[0].shape[2])
