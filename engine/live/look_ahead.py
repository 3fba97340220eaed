"""What comes on a channel, for people to see: parts of the plan of about a second, with pictures and words.

Both are made of the plan alone, when nothing else is to be done, of channels that somebody looked at a moment ago.
Shapes: `T` semantic frames, `C` latent channels, `H` x `W` latent size, `D` feature channels, `h` x `w` their grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
from torch import Tensor

from engine.live.denoiser import Denoiser
from engine.live.generator import Generator
from engine.live.live_channel import LiveChannel
from engine.live.plan_writer import GOP, PlanPart, decode
from engine.perceptual.base import SLICE_LATENTS
from engine.perceptual.frames import to_host
from engine.runtime.graphs import Graphs
from engine.semantic import reading
from engine.text.asked import REVERSED, spoken, swapped
from engine.text.reading_text import ReadingText
from engine.wire.messages import FromEngine, PlanAhead, PlannedPart, PlanPicture

PART = SLICE_LATENTS  # semantic frames; chunks can begin where parts do
LOOK_S = 10.0  # so long after a question pictures and words are made
READ_FRAMES = reading.LEAST_STEPS + 1  # of a GOP, before its words are read


@dataclass(frozen=True, slots=True)
class _Part:
    """Some semantic frames of one channel's plan."""

    gop: GOP  # that its first frame is of
    start: int  # its first semantic frame
    decided: int  # frames of the GOP that count
    frame: int  # its first video frame
    frames: int


class PlanPreviews:
    """Tells what comes, and makes pictures and words of it."""

    def __init__(self, generator: Generator, send: Callable[[FromEngine], None]) -> None:
        self._generator, self._model, self._send = generator, generator.model, send
        self._denoiser = Denoiser(self._model, Graphs.on(self._model.device))
        # One step makes a picture of a rectified flow. Published features are no words.
        self._draws = self._model.config.least_steps == 1
        self._reads = isinstance(self._model.text, ReadingText)
        self._numbers = count()

    def tell(self, name: str, channel: LiveChannel | None) -> None:
        """Answers what comes; nothing does of a channel that is not there."""
        parts = []
        if channel is not None:
            channel.looked_s = time.monotonic()
            for part in self._parts(channel):
                rendered = part.frame + part.frames <= channel.delivered
                picture = channel.pictures.get(part.start)
                words = channel.words.get(part.gop.start)
                known = {} if words is None else words[2], None if picture is None else picture[1]
                parts.append(PlannedPart(part.frame, part.frames, rendered, *known))
        self._send(PlanAhead(name, tuple(parts)))

    def work(self, channels: Iterable[LiveChannel]) -> bool:
        """Makes one picture, or reads the words of one GOP; False if none is missing."""
        now_s = time.monotonic()
        return any(self._complete(channel) for channel in channels if now_s - channel.looked_s < LOOK_S)

    def _complete(self, channel: LiveChannel) -> bool:
        for part in self._parts(channel):
            if self._reads and self._read(channel, part):
                return True
            if self._draws and part.start not in channel.pictures:
                number, picture = next(self._numbers), self.draw(channel, part.gop, part.start)
                channel.pictures[part.start] = part.gop, number
                self._send(PlanPicture(channel.name, number, picture.shape[1], picture.tobytes()))
                return True
        return False

    def _parts(self, channel: LiveChannel) -> list[_Part]:
        """From the one on air on; forgets what was made of others."""
        generator, state, parts = self._generator, channel.state, list[_Part]()
        gops, end = state.plan.gops, generator.planned(state)
        ends = [gop.start for gop in gops[1:]] + [end]
        start = max(generator.latent_of(state, max(channel.shown - 1, channel.first)), gops[0].start)
        # Counted from where chunks begin.
        start -= (start - state.next.latent) % PART
        while start + PART <= end:
            frame, stop = max(generator.frame_of(state, start), channel.first), start + PART
            if generator.frame_of(state, stop) - frame < self._model.vae.frames_per_latent and stop + PART <= end:
                stop += PART  # a video's first latent stands for one frame
            shown = max(start, gops[0].start, generator.latent_of(state, frame))
            place = [number for number, gop in enumerate(gops) if gop.start <= shown][-1]
            frames = generator.frame_of(state, stop) - frame
            parts.append(_Part(gops[place], shown, ends[place] - gops[place].start, frame, frames))
            start = stop
        pictures, words = ({part.start: part.gop for part in parts}, {part.gop.start: part.gop for part in parts})
        channel.pictures = {at: known for at, known in channel.pictures.items() if known[0] is pictures.get(at)}
        channel.words = {at: known for at, known in channel.words.items() if known[0] is words.get(at)}
        return parts

    def _read(self, channel: LiveChannel, part: _Part) -> bool:
        """Reads the words of a part's GOP if there are enough frames, and once more when it is whole."""
        gop, frames = part.gop, part.decided
        known = channel.words.get(gop.start, (gop, 0, {}))[1]
        if frames < READ_FRAMES or known == frames or (known and known < frames and not gop.closed):
            return False
        features = self._features(gop, gop.start, gop.start + frames)
        words = reading.read(features)[0]
        if words["relation"] in REVERSED.values():
            words = swapped(words)
        channel.words[gop.start] = gop, frames, {name: word for name, word in spoken(words).items() if word}
        return True

    def draw(self, channel: LiveChannel, gop: GOP, frame: int) -> npt.NDArray[np.uint8]:
        """A semantic frame as a picture, I420 [3H/2, W] uint8: one step without context, as the first of a video."""
        model, state = self._model, channel.state
        features = self._features(gop, frame, frame + 1)
        with model.computing():
            text = state.text if gop.seed == state.seed else model.text.embed(state.prompt, gop.seed)
            condition = model.renderer.condition(features)
            empty = state.context_latents[:, :0]
            window = self._denoiser.open(0, gop.seed, text.renderer, empty, condition, 1)
            latents = self._denoiser.step(window, 0, self._denoiser.begin(window)).x
            memory = model.vae.new_state()
            model.vae.begin_chunk(memory)
            picture: npt.NDArray[np.uint8] = to_host(model.vae.decode(latents, memory))[0]
        return picture

    def _features(self, gop: GOP, start: int, end: int) -> Tensor:
        """Features of a GOP's frames `start` to `end` - 1, [1, T, D, h, w] float32."""
        # What is planned is on its way in a stream of its own.
        self._generator.settle()
        tokens = gop.tokens[:, : self._model.config.tokenizer.offsets[end - gop.start]]
        with self._model.computing():
            return decode(self._model, [PlanPart(gop.start, tokens)], start).features
