"""Endless videos as RGB frames, for Python programs; `engine.load` makes a `VideoGenerator`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from engine.arguments import whole
from engine.config import preset as config_of
from engine.live.channel_state import ChannelState
from engine.live.generator import Generator
from engine.live.offline import finished, next_chunk
from engine.loading.model import Model
from engine.loading.model import load as load_model
from engine.loading.options import place
from engine.video.video_file import to_rgb
from engine.wire.prompt import check_prompt
from engine.wire.settings import MOST_STEPS, check_seed


class VideoGenerator:
    """A loaded model that makes any number of videos, all in one thread."""

    def __init__(self, model: Model, steps: int | None = None) -> None:
        """`steps` denoising steps a chunk, the preset's own if None. Raises ValueError for a bad number."""
        if steps is not None:
            whole("steps", steps, MOST_STEPS)
        self.config = model.config
        self._generator, self._steps = Generator(model), steps

    @classmethod
    def load(cls, preset: str, weights: str | None, device: str, steps: int | None, picture: str) -> VideoGenerator:
        """See `engine.load`."""
        config = config_of(preset, picture)
        return cls(load_model(config, *place(config, weights, device)), steps)

    def stream(self, prompt: str, seed: int = 0) -> VideoStream:
        """A new video. The same prompt, seed and changes give the same frames. Raises ValueError for bad ones."""
        return VideoStream(self._generator, self._generator.open(check_prompt(prompt), check_seed(seed), self._steps))


class VideoStream(Iterator[npt.NDArray[np.uint8]]):
    """The frames of an endless video, RGB [H, W, 3] uint8 in memory of their own, made as they are asked for."""

    def __init__(self, generator: Generator, channel: ChannelState) -> None:
        self._prompt: str | None = None
        self._frames = self._make(generator, channel)

    def __next__(self) -> npt.NDArray[np.uint8]:
        return next(self._frames)

    def change(self, prompt: str) -> None:
        """A new prompt from the next chunk on. Raises ValueError for a bad one."""
        self._prompt = check_prompt(prompt)

    def _make(self, generator: Generator, channel: ChannelState) -> Iterator[npt.NDArray[np.uint8]]:
        while True:
            if self._prompt is not None:
                generator.change(channel, self._prompt, channel.next)
                self._prompt = None
            for batch in finished(next_chunk(generator, channel)):
                yield from map(to_rgb, batch.i420)
