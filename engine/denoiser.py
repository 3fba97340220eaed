"""One hop's denoising steps: what they share, and each of them as one call that may be captured as a graph.

Shapes: `T` new latent frames, `P` prompt frames, `C` latent channels, `H` x `W` latent size, `L` text tokens, `K` text
width. `R` rows are 2, without text and with it, or 1 without guidance; steps whose guidance is 1 compute one row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.graphs import Graphs
from engine.lanes import upload
from engine.model import Model
from engine.noise import normal
from engine.perceptual.renderer import NewHalf, PromptCache, Words
from engine.perceptual.reuse import reused_steps
from engine.perceptual.solver import SolverState, guide, solver_of
from engine.perceptual.times import Moment
from kernels.guidance import guided_step
from kernels.launch import fuses

_KNOWN_TEXTS = 4  # prompts whose tokens are kept

_Halves = tuple[PromptCache, NewHalf]


@dataclass(frozen=True, slots=True)
class Window:
    """What the denoising steps of one hop share."""

    hop: int
    frame: int
    seed: int
    words: Words  # of R rows
    prompt_half: Tensor  # [1, P, C, H, W]
    given_condition: Tensor  # [1, P, C, H, W]
    condition: Tensor  # [1, T, C, H, W] of the new latents
    prompt: PromptCache  # of the prompt half as it is
    new: NewHalf  # of the new latents' condition, after that prompt

    @property
    def given(self) -> int:
        return self.prompt_half.shape[1]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a hop stands between two steps."""

    state: SolverState
    change: Tensor | None = None  # [R, N, D] of the layers, where the next step shall take it

    @property
    def x(self) -> Tensor:
        """[1, T, C, H, W] float32, noisy; clean after the last step."""
        return self.state.x


@dataclass(frozen=True, slots=True)
class _Step:
    """What differs from step to step."""

    x: Tensor  # [1, T, C, H, W] float32
    clean: Tensor | None  # of the step before, where the solver looks back
    noise: Tensor | None
    number: Tensor  # [1] int64
    moment: Moment
    change: Tensor | None = None  # of a step before, in the place of the layers


class Denoiser:
    """The renderer and a solver of `steps` steps, at work on windows."""

    def __init__(self, model: Model, steps: int, graphs: Graphs) -> None:
        self._model, self._graphs = model, graphs
        self._solver = solver_of(model.config.schedule, steps)
        each = [2 if self._solver.guidance(index) != 1.0 else 1 for index in range(steps)]
        self._rows = max(each)
        self._reused = self._plan_reuse(each)
        self._words: deque[tuple[Tensor, Words]] = deque(maxlen=_KNOWN_TEXTS)
        self._moments: dict[tuple[int, ...], Moment] = {}
        table = self._solver.table()
        self._table = None if table is None else table.to(model.device)
        self._numbers = torch.arange(steps, device=model.device)

    @property
    def layer_runs(self) -> int:
        """Steps of a hop that run all layers."""
        return self._reused.count(False)

    def open(self, place: tuple[int, int, int], text: Tensor, prompt_half: Tensor, condition: Tensor) -> Window:
        """Reads a window.

        Args:
            place: hop, number of the first new video frame, seed.
            text: [1, L, K]; that it is the same tensor tells that it is the prompt of a window before.
            prompt_half: [1, P, C, H, W].
            condition: [1, P + T, C, H, W].
        """
        given = prompt_half.shape[1]
        words, given_condition = self._read(text), condition[:, :given]
        prompt = self._model.renderer.read_prompt(self._paired(prompt_half), words, self._paired(given_condition))
        new = self._model.renderer.read_new(condition[:, given:], prompt)
        return Window(*place, words, prompt_half, given_condition, condition[:, given:], prompt, new)

    def begin(self, window: Window) -> Progress:
        """The noise that a hop starts from."""
        like = window.condition
        if self._model.config.shared_noise:
            return Progress(SolverState(self._noise(like[:, :1], "render", window).expand_as(like).contiguous()))
        return Progress(SolverState(self._noise(like, "render", window)))

    def step(self, window: Window, index: int, progress: Progress) -> Progress:
        """One step of the solver, guided if it asks for that."""
        state, change = progress.state, progress.change if self._reused[index] else None
        rows = self._rows if self._solver.guidance(index) != 1.0 else 1
        prompt, new = self._halves_at(window, index)
        if rows < self._rows:
            prompt, new = prompt.prompted(), new.prompted()
        noise = self._noise(state.x, "render", window, index) if self._solver.draws(index) else None
        moment = self._moment(window, index, (prompt, new))
        step = _Step(state.x, state.clean, noise, self._numbers[index : index + 1], moment, change)
        keep = any(self._reused[index + 1 : index + 2])
        if self._table is None or not (self._graphs.captures or fuses(state.x)):
            return self._plain(index, state, step, (prompt, new), keep)
        given, count = window.given, window.condition.shape[1]
        key = ("step", rows, given, count, state.clean is None, noise is None, change is None, keep)
        return self._graphs.call(key, partial(self._fused, keep=keep), step, (prompt, new))

    def _plain(self, index: int, state: SolverState, step: _Step, halves: _Halves, keep: bool) -> Progress:
        output, change = self._answer(step, halves, keep)
        clean = self._solver.clean(index, state.x, output)
        if len(clean) == 2:
            without, with_text = clean.chunk(2)
            clean = guide(without, with_text, self._solver.guidance(index))
        return Progress(self._solver.step(index, state, clean, step.noise), change)

    def _fused(self, step: _Step, halves: _Halves, keep: bool) -> Progress:
        """The same by one kernel after the network; every number of the step is on the device."""
        with self._model.computing():
            outputs, change = self._answer(step, halves, keep)
            assert self._table is not None, "only solvers that have a table come here"
            before = None if step.clean is None else step.clean[0].contiguous()
            noise = None if step.noise is None else step.noise[0]
            following, clean = guided_step(
                step.x[0].contiguous(), outputs.contiguous(), self._table, step.number, before, noise
            )
        return Progress(SolverState(following[None], clean[None]), change)

    def _answer(self, step: _Step, halves: _Halves, keep: bool) -> tuple[Tensor, Tensor | None]:
        """The network's output, and what its layers added where the next step shall take it."""
        (prompt, new), renderer = halves, self._model.renderer
        if step.change is None and not keep:
            return renderer.denoise(step.x, step.moment, new, prompt), None
        output, change = renderer.denoise_reusing(step.x, step.moment, new, prompt, step.change)
        return output, change if keep else None

    def _plan_reuse(self, rows: Sequence[int]) -> tuple[bool, ...]:
        """Which steps take the layers' work of an earlier one."""
        if not self._model.config.reuse:
            return (False,) * len(rows)
        times = torch.tensor([self._solver.time(index) for index in range(len(rows))], device=self._model.device)
        with self._model.computing():
            return reused_steps(self._model.renderer.base.embed_times(times), rows, self._model.config.reuse)

    def _read(self, text: Tensor) -> Words:
        """Once a prompt."""
        for known, words in self._words:
            if known is text:
                return words
        # No text is zeros in the release, not an encoded empty prompt (FACTS 3.4).
        rows = text if self._rows == 1 else torch.cat([torch.zeros_like(text), text])
        words = self._model.renderer.read_text(rows)
        self._words.append((text, words))
        return words

    def _moment(self, window: Window, index: int, halves: _Halves) -> Moment:
        """A step's time with all modulations, made by its first window of this shape."""
        prompt, new = halves
        key = (index, prompt.rows, window.given, window.condition.shape[1])
        if key not in self._moments:
            time = torch.full((prompt.rows,), self._solver.time(index), device=self._model.device)
            self._moments[key] = Moment(time)
            if self._graphs.captures:
                # A graph takes them as they are: they must be whole before.
                self._model.renderer.denoise(window.condition, self._moments[key], new, prompt)
        return self._moments[key]

    def _halves_at(self, window: Window, index: int) -> _Halves:
        """Both halves as they stand before a step."""
        if self._model.config.prompt_half == "clean" or not window.given:
            return window.prompt, window.new
        noise = self._noise(window.prompt_half, "prompt", window, index)
        prompt = self._paired(self._solver.noised(index, window.prompt_half, noise))
        cache = self._model.renderer.read_prompt(prompt, window.words, self._paired(window.given_condition))
        return cache, self._model.renderer.read_new(window.condition, cache)

    def _paired(self, latents: Tensor) -> Tensor:
        """[1, ...] -> [R, ...], a view."""
        return latents.expand(self._rows, *latents.shape[1:])

    def _noise(self, like: Tensor, kind: str, window: Window, *step: int) -> Tensor:
        """Noise of a place in the video, float32 on the device."""
        return upload(normal(tuple(like.shape), window.seed, kind, window.hop, *step), self._model.device)
