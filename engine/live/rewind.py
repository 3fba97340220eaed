"""Going back in a video: where a slice of the autoencoder's begins, chunks can end and others begin.

Renderers begin windows there too (`EngineConfig`). Shapes: `T` latents.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from engine.live.channel_state import PastChunk, Place, RenderState
from engine.live.slices import LatentsDecoder
from engine.perceptual.base import Autoencoder, VideoState, frames_of
from engine.runtime.pytree import leaves, unflatten
from engine.runtime.threads import computing_with

END_BYTES = 1 << 24  # of an autoencoder's state that is kept behind every slice; `mini` has 1.4e6


def places_of(past: PastChunk, vae: Autoencoder) -> Iterator[Place]:
    """The start of a past chunk, and the ends of its slices, each as the start of a next chunk."""
    latents, started = 0, past.vae.started
    yield past.start
    for length in vae.slice_lengths(past.new_latents.shape[1], started):
        latents += length
        frame = past.start.frame + frames_of(latents, started, vae.frames_per_latent)
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


def slices_again(state: RenderState) -> int:
    """How many slices must be decoded again, at most, to go back into what is kept."""
    return 0 if any(past.ends for past in state.past) else 2


def keep_end(past: PastChunk, end: VideoState) -> None:
    """Keeps the autoencoder's state behind a chunk's next slice, where it is small."""
    if sum(leaf.nbytes for leaf in leaves(end)) <= END_BYTES:
        # A graph's next call writes over it; on a CPU it may be a small part of what it keeps in memory.
        past.ends.append(unflatten(end, map(Tensor.clone, leaves(end))))


def end_of(past: PastChunk, slices: LatentsDecoder) -> VideoState:
    """The autoencoder's state behind all that a chunk has now; where it was not kept, the chunk is decoded again."""
    number = len(slices.lengths(past.vae, past.new_latents))
    if number <= len(past.ends):
        return past.ends[number - 1]
    with computing_with(past.threads):
        *_, (_, end) = slices.decode(past.vae, past.new_latents)
    return end


def keep(state: RenderState, past: PastChunk, end: Place) -> None:
    """Keeps a chunk that ends at `end`, and of the earlier ones those that have frames which may be made anew."""
    if state.open_from is None:
        return
    chunks = [*state.past, past]
    ends = [*(chunk.start.frame for chunk in chunks[1:]), end.frame]
    state.past = [chunk for chunk, last in zip(chunks, ends, strict=True) if last > state.open_from]
