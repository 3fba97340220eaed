"""A chunk's latents from features of its frames, in a window with context and one without.

Shapes: `P` context latents, `T` new latents, `C` latent channels, `H` x `W` latent size, `D` feature channels, `h` x
`w` their grid.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.live.channel_state import RenderState
from engine.live.chunk import Unit
from engine.live.denoiser import Denoiser, DenoisingWindow
from engine.loading.model import Model
from engine.runtime.cuda_streams import CudaStreams
from engine.runtime.graphs import Graphs

CONTEXT_FREE_STEPS = 1  # of the window without context: more of them change nothing that could be measured


class WindowRenderer:
    """Renders chunks of any channels, in one CUDA stream."""

    def __init__(self, model: Model, graphs: Graphs, streams: CudaStreams, stream: str) -> None:
        self._model, self._streams, self._stream = model, streams, stream
        self._denoiser = Denoiser(model, graphs)
        self._context_mix = torch.tensor(model.config.context_mix, device=model.device).view(1, -1, 1, 1, 1)

    def check_steps(self, steps: int) -> None:
        """Raises ValueError if the model's solver has no such number of steps."""
        self._denoiser.schedule(steps)

    def render(self, state: RenderState, features: Tensor, steps: int) -> Generator[Unit, None, tuple[Tensor, Tensor]]:
        """The new latents [1, T, C, H, W] float32, and the condition without details [1, P + T, C, H, W].

        Features [1, P + T, D, h, w] are of the context and of the new latents.
        """
        with self._rendering():
            condition = self._condition(state, features)
            window, context_free = self._open(state, condition, steps)
        new = yield from self._denoise(window, counted=True)
        if context_free is not None:
            alone = yield from self._denoise(context_free, counted=False)
            with self._rendering():
                new = torch.lerp(new, alone[:, 1:], self._context_mix)
        return new, condition[:, :, : new.shape[2]]

    def rehearsal(self, state: RenderState, features: Tensor) -> Callable[[], None]:
        """A denoising step of a chunk that is not made, for timing; arguments as for `render`."""
        with self._rendering():
            window, _ = self._open(state, self._condition(state, features), state.steps)
            noise = self._denoiser.begin(window)

        def step() -> None:
            with self._rendering():
                self._denoiser.step(window, 0, noise)

        return step

    def _condition(self, state: RenderState, features: Tensor) -> Tensor:
        """The condition of context and new frames, with details from the context's last frame on."""
        # The context-free window begins with that frame.
        made: Tensor = self._model.renderer.condition(features, max(0, state.features.shape[1] - 1), state.condition)
        return made

    def _open(
        self, state: RenderState, condition: Tensor, steps: int
    ) -> tuple[DenoisingWindow, DenoisingWindow | None]:
        """The chunk's window, and one of the same frames and the frame before them without context, if it is mixed in:
        like a first chunk it begins with a latent that stands for one picture, which nobody sees."""
        context = state.features.shape[1]
        noise_key, text, latents = (state.next.chunk, state.seed), state.text.renderer, state.context_latents
        window = self._denoiser.open(*noise_key, text, latents, condition, steps)
        if not context or not self._model.config.context_mix:
            return window, None
        own = condition[:, context - 1 :]
        return window, self._denoiser.open(*noise_key, text, latents[:, :0], own, CONTEXT_FREE_STEPS)

    def _denoise(self, window: DenoisingWindow, counted: bool) -> Generator[Unit, None, Tensor]:
        """The clean new latents of a window, [1, T, C, H, W] float32; `counted`: its steps are the chunk's."""
        with self._rendering():
            state = self._denoiser.begin(window)
            mark = self._streams.record()
        yield Unit("render")
        for index in range(window.steps):
            with self._rendering():
                state = self._denoiser.step(window, index, state)
                # The device has one more step to do while the host prepares the next.
                before, mark = mark, self._streams.record()
            yield Unit("render", mark=before, step=counted)
        return state.x

    @contextmanager
    def _rendering(self) -> Iterator[None]:
        with self._model.computing(), self._streams.stream(self._stream):
            yield
