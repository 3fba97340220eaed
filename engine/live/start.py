"""A video that goes on from given pictures: their tokens are the planner's context, their latents the renderer's.

Shapes: `F` pictures, `H` x `W` pixels, `T` latent and semantic frames, `D` feature channels, `h` x `w` their grid, `C`
latent channels.
"""

from __future__ import annotations

from collections import abc

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.live.channel_state import ChannelState, Place
from engine.live.chunk import Unit
from engine.live.generator import Generator
from engine.live.plan_writer import PlanPart, decode
from engine.loading.weights import load_weights
from engine.perceptual.base import SLICE_LATENTS, frames_of
from engine.perceptual.frames import shrunk
from engine.semantic.theia import Theia

Pictures = npt.NDArray[np.uint8]  # [F, H, W, 3]


def most_pictures(config: EngineConfig) -> int:
    """Pictures that a video goes on from, at most: those of a GOP."""
    return frames_of(config.tokenizer.frames, False, config.frames_per_latent)


class Starter:
    """Reads pictures with a model and its extractor, which is loaded when it is first needed."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._theia: Theia | None = None

    def begin(self, pictures: Pictures, prompt: str, seed: int, steps: int | None = None) -> ChannelState:
        """A channel whose first frame follows the last picture; arguments and errors as of `units`."""
        units = self.units(pictures, prompt, seed, steps)
        while True:
            try:
                next(units)
            except StopIteration as end:
                state: ChannelState = end.value
                return state

    def units(
        self, pictures: Pictures, prompt: str, seed: int, steps: int | None = None
    ) -> abc.Generator[Unit, None, ChannelState]:
        """Makes a channel whose first frame follows the last picture.

        Args:
            pictures: of the preset's size and rate; `most_pictures` of them count. Where there are fewer, the first
                stands still before the others.

        Raises:
            ValueError: for other pictures, or a number of steps that the solver has not.
        """
        model, config = self._generator.model, self._generator.model.config
        size = config.height_px, config.width_px, 3
        if pictures.shape[1:] != size or pictures.dtype != np.uint8 or not len(pictures):
            raise ValueError(f"{pictures.dtype} {pictures.shape} are no pictures of size {size}")
        most = most_pictures(config)
        still = np.repeat(pictures[:1], max(0, most - len(pictures)), axis=0)
        pictures = np.concatenate([still, pictures[-most:]])
        with model.computing():
            state = self._generator.start(model.text.embed(prompt, seed), seed, steps)
        video = torch.from_numpy(pictures).to(model.device).movedim(-1, 1)[None]
        part = PlanPart(0, (yield from self._tokens(video)))
        latents = yield from self._latents(video)
        with model.computing():
            features = decode(model, [part], 0).features
            model.vae.begin_chunk(state.vae)
        for latent in latents.split(model.vae.slice_lengths(latents.shape[1], False), dim=1):
            yield Unit("render")
            with model.computing():
                model.vae.decode(latent, state.vae)
        # The picture itself and not what the autoencoder makes of it: viewers saw that.
        model.vae.show(state.vae, video[:, -1] / 127.5 - 1)
        length = config.context_length
        state.next = Place(0, 0, latents.shape[1])
        state.features, state.context_latents = features[:, -length:].clone(), latents[:, -length:].clone()
        channel = self._generator.go_on(state, prompt, [part])
        self._generator.settle()
        return channel

    def load(self) -> None:
        """Loads the extractor. Raises ValueError if the model has none, or its file is missing or damaged."""
        self._extractor()

    def _tokens(self, video: Tensor) -> abc.Generator[Unit, None, Tensor]:
        """Tokens [1, n] int64 of a GOP that shows the video [1, F, 3, H, W]."""
        model, features = self._generator.model, []
        for picture in video[:, :: model.vae.frames_per_latent].split(1, dim=1):
            with model.computing():
                features.append(self._extractor()(shrunk(picture, model.config.scale)).float())
            yield Unit("plan")
        with model.computing():
            tokens: Tensor = model.tokenizer.encode(torch.cat(features, dim=1))
        yield Unit("plan")
        return tokens

    def _latents(self, video: Tensor) -> abc.Generator[Unit, None, Tensor]:
        """Latents [1, T, C, h, w] float32 of the video [1, F, 3, H, W]."""
        vae = self._generator.model.vae
        state, latents = vae.new_state(), []
        slice_frames = SLICE_LATENTS * vae.frames_per_latent
        first, rest = video[:, : 1 + slice_frames], video[:, 1 + slice_frames :]
        for part in (first, *rest.split(slice_frames, dim=1)):
            with self._generator.model.computing():
                latents.append(vae.encode(part.float() / 127.5 - 1, state).float())
            yield Unit("render")
        return torch.cat(latents, dim=1)

    def _extractor(self) -> Theia:
        if self._theia is None:
            model = self._generator.model
            if model.folder is None:
                raise ValueError("this model has no folder of weights, and so no extractor to read pictures with")
            with torch.device("meta"):
                theia = Theia(model.config.theia).requires_grad_(False).eval()
            load_weights(model.folder, {"theia": theia}, model.config.name, model.device)
            self._theia = theia
        return self._theia
