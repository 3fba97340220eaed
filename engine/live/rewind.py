"""Going back in a video: where a slice of the autoencoder's begins, chunks can end and others begin.

Renderers begin windows there too (`EngineConfig`). Shapes: `T` latents.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.live.channel_state import PastChunk, Place, RenderState
from engine.perceptual.base import Autoencoder, frames_of


def places_of(past: PastChunk, vae: Autoencoder) -> Iterator[Place]:
    """The start of a past chunk, and the ends of its slices, each as the start of a next chunk."""
    latents, started = 0, past.vae.started
    yield past.start
    for length in vae.slice_lengths(past.new_latents.shape[1], started):
        latents += length
        frame = past.start.frame + frames_of(latents, started)
        yield Place(past.start.chunk + 1, frame, past.start.latent + latents)


def place_before(state: RenderState, vae: Autoencoder, frame: int) -> Place:
    """Where a video must go back to, so that its frames from `frame` on are made anew: the start of their slice.

    Raises:
        ValueError: what was made there is not kept.
    """
    for past in reversed(state.past):
        if past.start.frame <= frame:
            return [place for place in places_of(past, vae) if place.frame <= frame][-1]
    # Frames behind the next chunk's beginning are not made: after a cut within a slice it lies before what was on air.
    if frame < state.next.frame:
        raise ValueError(f"frame {frame} cannot be made anew: chunks are kept from frame {state.open_from} on")
    return state.next


def keep(state: RenderState, past: PastChunk, end: Place) -> None:
    """Keeps a chunk that ends at `end`, and of the earlier ones those that have frames which may be made anew."""
    if state.open_from is None:
        return
    chunks = [*state.past, past]
    ends = [*(chunk.start.frame for chunk in chunks[1:]), end.frame]
    state.past = [chunk for chunk, last in zip(chunks, ends, strict=True) if last > state.open_from]
