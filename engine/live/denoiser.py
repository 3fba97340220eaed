"""The denoising steps of chunks: windows are opened, then each step is one call that may be captured.

Shapes: `P` context latents, `T` new latents, `C` latent channels, `H` x `W` latent size, `E` channels of details, `L`
text tokens, `K` text width. `R` rows are 2, without text and with it, or 1 without guidance; steps whose guidance is 1
compute one row.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.live.noise import normal
from engine.loading.model import Model
from engine.perceptual.renderer import TextTokens, WindowCache, context_timestep
from engine.perceptual.schedule import DiffusionSchedule, FlowSchedule
from engine.perceptual.solver import SolverState, solver_of
from engine.perceptual.timesteps import Timestep
from engine.runtime.cuda_streams import upload
from engine.runtime.graphs import Graphs
from engine.wire.ring import MOST_CHANNELS
from kernels.guidance import guided_step

MOST_TEXTS = MOST_CHANNELS  # prompts whose tokens are kept
MOST_SCHEDULES = 8  # numbers of steps whose solvers and timestep caches are kept


class StepSchedule:
    """The solver of a number of steps, with the constants of each step on the device; shared by all chunks."""

    def __init__(self, schedule: FlowSchedule | DiffusionSchedule, steps: int, device: torch.device) -> None:
        self.solver = solver_of(schedule, steps)
        self.rows = [2 if self.solver.guidance(index) != 1.0 else 1 for index in range(steps)]
        self._timesteps = [
            Timestep(torch.full((rows,), self.solver.time(index), device=device))
            for index, rows in enumerate(self.rows)
        ]
        self._coefficients = self.solver.table.to(device)

    def constants(self, index: int) -> tuple[Timestep, Tensor]:
        """A step's time, with all that networks made of it, and its coefficients [8]."""
        return self._timesteps[index], self._coefficients[index]


@dataclass(frozen=True, slots=True)
class DenoisingWindow:
    """A chunk's window, open for its denoising steps."""

    chunk: int
    seed: int
    schedule: StepSchedule
    text: TextTokens  # of R rows
    cache: WindowCache  # of R rows
    new: Tensor  # [1, T, C, H, W], of which only the shape is read

    @property
    def steps(self) -> int:
        return self.schedule.solver.steps


class Denoiser:
    """Runs the renderer and its solvers on windows of any channels."""

    def __init__(self, model: Model, graphs: Graphs) -> None:
        # A call that talks to other processes cannot be captured.
        self._model, self._graphs = model, graphs if model.renderer.local else Graphs(None)
        self.schedule = functools.lru_cache(MOST_SCHEDULES)(self._new_schedule)
        self._texts: deque[tuple[Tensor, TextTokens]] = deque(maxlen=MOST_TEXTS)
        self._context_times: dict[int, Timestep] = {}  # by rows

    def _new_schedule(self, steps: int) -> StepSchedule:
        """The schedule of so many steps, kept by `schedule`. Raises ValueError if the model's solver has none."""
        return StepSchedule(self._model.config.schedule, steps, self._model.device)

    def open(
        self, chunk: int, seed: int, text: Tensor, context_latents: Tensor, condition: Tensor, steps: int
    ) -> DenoisingWindow:
        """Computes what the denoising steps of a chunk share.

        Args:
            chunk, seed: key the noise.
            text: [1, L, K]; its tokens are computed once for the same tensor object.
            context_latents: [1, P, C, H, W].
            condition: [1, P + T, C + E, H, W].
            steps: of the chunk.
        """
        schedule = self.schedule(steps)
        rows = max(schedule.rows)
        tokens = self._text_tokens(text, rows)
        context = context_latents.expand(rows, *context_latents.shape[1:])
        if rows not in self._context_times:
            self._context_times[rows] = context_timestep(context)
        constants = self._context_times[rows]
        if self._model.config.renderer.dit.half_causal:
            key = ("open", rows, context.shape[1], condition.shape[1])
            cache = self._graphs.call(key, self._open, (context, condition), tokens, constants)
        else:
            # No layer runs yet: not worth a graph.
            cache = self._open((context, condition), tokens, constants)
        new = condition[:, context.shape[1] :, : context.shape[2]]
        return DenoisingWindow(chunk, seed, schedule, tokens, cache, new)

    def begin(self, window: DenoisingWindow) -> SolverState:
        """The noise that a chunk starts from."""
        if self._model.config.shared_noise:
            return SolverState(self._noise(window.new[:, :1], window).expand_as(window.new).contiguous())
        return SolverState(self._noise(window.new, window))

    def step(self, window: DenoisingWindow, index: int, state: SolverState) -> SolverState:
        """One step of the solver, guided if it asks for that."""
        schedule, cache = window.schedule, window.cache
        rows = schedule.rows[index]
        if rows < cache.rows:
            cache = cache.conditional_rows()
        noise = self._noise(state.x, window, index) if schedule.solver.draws(index) else None
        shapes = rows, cache.context.shape[1], state.x.shape[1], state.clean is None, noise is None
        made = self._graphs.call(
            *(("step", *shapes), self._step, (state, noise), cache),
            *(schedule.constants(index), (schedule.solver.steps, index)),
        )
        return made if schedule.solver.looks_back else SolverState(made.x)

    def _open(self, changing: tuple[Tensor, Tensor], text: TextTokens, context_time: Timestep) -> WindowCache:
        context, condition = changing
        with self._model.computing():
            cache: WindowCache = self._model.renderer.open_window(context, text, condition, context_time)
        return cache

    def _step(
        self,
        changing: tuple[SolverState, Tensor | None],
        cache: WindowCache,
        constants: tuple[Timestep, Tensor],
    ) -> SolverState:
        (state, noise), (timestep, coefficients) = changing, constants
        with self._model.computing():
            outputs = self._model.renderer.denoise(state.x, timestep, cache)
            previous, noise = (None if part is None else part[0] for part in (state.clean, noise))
            x, clean = guided_step(state.x[0], outputs, coefficients, previous, noise)
        return SolverState(x[None], clean[None])

    def _text_tokens(self, text: Tensor, rows: int) -> TextTokens:
        """Tokens of a text [1, L, K] for so many rows, computed once a prompt."""
        for known, tokens in self._texts:
            if known is text and len(tokens.base) == rows:
                return tokens
        # No text is zeros in the release, not an encoded empty prompt (REFERENCE 3.4).
        pair = text if rows == 1 else torch.cat([torch.zeros_like(text), text])
        made: TextTokens = self._model.renderer.read_text(pair)
        self._texts.append((text, made))
        return made

    def _noise(self, like: Tensor, window: DenoisingWindow, *step: int) -> Tensor:
        """Noise of a place in the video, float32 on the device."""
        return upload(normal(tuple(like.shape), window.seed, "render", window.chunk, *step), self._model.device)
