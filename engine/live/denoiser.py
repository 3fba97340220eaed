"""One hop's denoising steps: what they share, and each of them as one call that may be captured as a graph.

Shapes: `T` new latent frames, `P` prompt frames, `C` latent channels, `H` x `W` latent size, `L` text tokens, `K` text
width. `R` rows are 2, without text and with it, or 1 without guidance; steps whose guidance is 1 compute one row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.live.noise import normal
from engine.loading.model import Model
from engine.perceptual.renderer import WindowCache, Words, given_moment
from engine.perceptual.reuse import reused_steps
from engine.perceptual.solver import SolverState, guide, solver_of
from engine.perceptual.timesteps import Moment
from engine.runtime.cuda_streams import upload
from engine.runtime.graphs import Graphs
from kernels.guidance import guided_step
from kernels.tools.launch import fuses

_KNOWN_TEXTS = 4  # prompts whose tokens are kept


@dataclass(frozen=True, slots=True)
class Window:
    """What the denoising steps of one hop share."""

    hop: int
    frame: int
    seed: int
    words: Words  # of R rows
    prompt_half: Tensor  # [1, P, C, H, W]
    condition: Tensor  # [1, P + T, C + E, H, W], E of them details for the head
    cache: WindowCache  # with the prompt half as it is

    @property
    def given(self) -> int:
        return self.prompt_half.shape[1]

    @property
    def new(self) -> Tensor:
        """[1, T, C, H, W]: as large as the new latents."""
        return self.condition[:, self.given :, : self.prompt_half.shape[2]]


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
        self._given: Moment | None = None
        self._opened: set[Hashable] = set()
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
            condition: [1, P + T, C + E, H, W].
        """
        words = self._words_of(text)
        cache = self._read(self._paired(prompt_half), words, condition)
        return Window(*place, words, prompt_half, condition, cache)

    def begin(self, window: Window) -> Progress:
        """The noise that a hop starts from."""
        like = window.new
        if self._model.config.shared_noise:
            return Progress(SolverState(self._noise(like[:, :1], "render", window).expand_as(like).contiguous()))
        return Progress(SolverState(self._noise(like, "render", window)))

    def step(self, window: Window, index: int, progress: Progress) -> Progress:
        """One step of the solver, guided if it asks for that."""
        state, change = progress.state, progress.change if self._reused[index] else None
        rows = self._rows if self._solver.guidance(index) != 1.0 else 1
        cache = self._cache_at(window, index)
        if rows < self._rows:
            cache = cache.prompted()
        noise = self._noise(state.x, "render", window, index) if self._solver.draws(index) else None
        moment, number = self._moment(window, index, cache), self._numbers[index : index + 1]
        step = _Step(state.x, state.clean, noise, number, moment, change)
        keep = any(self._reused[index + 1 : index + 2])
        shapes = (rows, window.given, window.new.shape[1], change is None, keep)
        if self._table is not None and (fuses(state.x) or (self._graphs.captures and not self._graphs.tapes)):
            key = ("step", *shapes, state.clean is None, noise is None)
            return self._graphs.call(key, partial(self._fused, keep=keep), step, cache)

        # A tape costs so little that each step has one of its own, in which its time and its numbers are fixed.
        def run(changing: tuple[SolverState, Tensor | None, Tensor | None], cache: WindowCache) -> Progress:
            state, noise, change = changing
            return self._plain(index, state, _Step(state.x, state.clean, noise, number, moment, change), cache, keep)

        changing = state, noise, change
        if self._graphs.tapes:
            return self._graphs.call(("step of its own", index, *shapes), run, changing, cache)
        return run(changing, cache)

    def _plain(self, index: int, state: SolverState, step: _Step, cache: WindowCache, keep: bool) -> Progress:
        output, change = self._answer(step, cache, keep)
        clean = self._solver.clean(index, state.x, output)
        if len(clean) == 2:
            without, with_text = clean.chunk(2)
            clean = guide(without, with_text, self._solver.guidance(index))
        return Progress(self._solver.step(index, state, clean, step.noise), change)

    def _fused(self, step: _Step, cache: WindowCache, keep: bool) -> Progress:
        """The same by one kernel after the network; every number of the step is on the device."""
        with self._model.computing():
            outputs, change = self._answer(step, cache, keep)
            assert self._table is not None, "only solvers that have a table come here"
            before = None if step.clean is None else step.clean[0].contiguous()
            noise = None if step.noise is None else step.noise[0]
            following, clean = guided_step(
                step.x[0].contiguous(), outputs.contiguous(), self._table, step.number, before, noise
            )
        return Progress(SolverState(following[None], clean[None]), change)

    def _answer(self, step: _Step, cache: WindowCache, keep: bool) -> tuple[Tensor, Tensor | None]:
        """The network's output, and what its layers added where the next step shall take it."""
        renderer = self._model.renderer
        if step.change is None and not keep:
            return renderer.denoise(step.x, step.moment, cache), None
        output, change = renderer.denoise_reusing(step.x, step.moment, cache, step.change)
        return output, change if keep else None

    def _plan_reuse(self, rows: Sequence[int]) -> tuple[bool, ...]:
        """Which steps take the layers' work of an earlier one."""
        if not self._model.config.reuse:
            return (False,) * len(rows)
        times = torch.tensor([self._solver.time(index) for index in range(len(rows))], device=self._model.device)
        with self._model.computing():
            return reused_steps(self._model.renderer.base.embed_times(times), rows, self._model.config.reuse)

    def _words_of(self, text: Tensor) -> Words:
        """Once a prompt."""
        for known, words in self._words:
            if known is text:
                return words
        # No text is zeros in the release, not an encoded empty prompt (FACTS 3.4).
        rows = text if self._rows == 1 else torch.cat([torch.zeros_like(text), text])
        self._given = self._given or given_moment(rows)
        words = self._model.renderer.read_text(rows, self._given)
        self._words.append((text, words))
        return words

    def _read(self, prompt: Tensor, words: Words, condition: Tensor) -> WindowCache:
        """Reads prompt [R, P, C, H, W] and condition [1, P + T, C, H, W], by a tape where layers have to do it."""
        renderer = self._model.renderer
        if not self._graphs.tapes or not renderer.config.dit.half_causal:
            return renderer.read(prompt, words, condition)
        key = ("open", prompt.shape[:2], condition.shape[1])
        if key not in self._opened:
            # A tape takes modulations as they are: they must be whole before.
            renderer.read(prompt, words, condition)
            self._opened.add(key)

        def read(changing: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor]) -> WindowCache:
            with self._model.computing():
                return renderer.read(changing[0], Words(*text, words.moment), changing[1])

        return self._graphs.call(key, read, (prompt, condition), (words.control, words.base))

    def _moment(self, window: Window, index: int, cache: WindowCache) -> Moment:
        """A step's time with all modulations, made by its first window of this shape."""
        key = (index, cache.rows, window.given, window.new.shape[1])
        if key not in self._moments:
            time = torch.full((cache.rows,), self._solver.time(index), device=self._model.device)
            self._moments[key] = Moment(time)
            if self._graphs.captures:
                # A graph takes them as they are: they must be whole before.
                self._model.renderer.denoise(window.new, self._moments[key], cache)
        return self._moments[key]

    def _cache_at(self, window: Window, index: int) -> WindowCache:
        """With the prompt half as it stands before a step."""
        if self._model.config.prompt_half == "clean" or not window.given:
            return window.cache
        noise = self._noise(window.prompt_half, "prompt", window, index)
        prompt = self._paired(self._solver.noised(index, window.prompt_half, noise))
        return self._read(prompt, window.words, window.condition)

    def _paired(self, latents: Tensor) -> Tensor:
        """[1, ...] -> [R, ...], a view."""
        return latents.expand(self._rows, *latents.shape[1:])

    def _noise(self, like: Tensor, kind: str, window: Window, *step: int) -> Tensor:
        """Noise of a place in the video, float32 on the device."""
        return upload(normal(tuple(like.shape), window.seed, kind, window.hop, *step), self._model.device)
