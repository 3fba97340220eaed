"""A chunk's latents to frames, slice by slice.

Shapes: `T` latent frames, `C` latent channels, `H` x `W` latent size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from engine.loading.model import Model
from engine.perceptual.base import VideoState
from engine.perceptual.frames import to_planes
from engine.runtime.cuda_streams import CudaStreams, Download
from engine.runtime.graphs import Graphs
from engine.runtime.pytree import leaves, unflatten


class LatentsDecoder(Protocol):
    """What a chunk's latents are given to."""

    def lengths(self, state: VideoState, latents: Tensor) -> list[int]:
        """Of the slices that they are decoded in."""
        ...

    def decode(self, state: VideoState, latents: Tensor) -> Iterator[tuple[Download, VideoState]]:
        """Frames of a chunk's latents [1, T, C, H, W] on their way to the host, and the state after each slice."""
        ...


class SliceDecoder:
    """Runs the autoencoder on latents of any channels, in one CUDA stream."""

    def __init__(self, model: Model, graphs: Graphs, streams: CudaStreams, stream: str) -> None:
        self._model, self._graphs, self._streams, self._stream = model, graphs, streams, stream

    def lengths(self, state: VideoState, latents: Tensor) -> list[int]:
        """Of the slices into which latents [1, T, C, H, W] behind a state are cut."""
        return self._model.vae.slice_lengths(latents.shape[1], state.started)

    def decode(self, state: VideoState, latents: Tensor) -> Iterator[tuple[Download, VideoState]]:
        """Frames of a chunk's latents [1, T, C, H, W] on their way to the host, and the state after each slice."""
        # A copy, since autoencoders write into it: the video keeps its own until the chunk is done.
        state = unflatten(state, map(Tensor.clone, leaves(state)))
        self._model.vae.begin_chunk(state)
        for number, part in enumerate(latents.split(self.lengths(state, latents), dim=1)):
            with self._model.computing(), self._streams.stream(self._stream):
                planes, state = self._slice(state, part, number == 0)
            yield planes, state

    def _slice(self, state: VideoState, latents: Tensor, begins: bool) -> tuple[Download, VideoState]:
        """Frames on their way to the host, and the state after them; `begins` says that it is a chunk's first slice."""
        if state.started:
            key = ("decode", latents.shape, begins, len(leaves(state)))
            planes, state = self._graphs.call(key, self._sliced, (latents, state))
        else:
            planes = to_planes(self._model.vae.decode(latents, state))
        return self._streams.download(planes), state

    def _sliced(self, changing: tuple[Tensor, VideoState]) -> tuple[Tensor, VideoState]:
        # A record of its own: the one that is given belongs to the graph.
        latents, state = changing[0], unflatten(changing[1], iter(leaves(changing[1])))
        with self._model.computing():
            return to_planes(self._model.vae.decode(latents, state)), state
