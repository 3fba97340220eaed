"""The protocols of renderers and autoencoders, and the time scale of latents.

Shapes: `B` batch, `T` latents, `F` frames, `C` latent channels, `h` x `w` latent size, `H` x `W` pixels.
Of a renderer: `P` context latents, `T` new ones, `H` x `W` latent size, `E` channels of details, `L` text tokens,
`K` text width, `D` feature channels on the grid `h` x `w`.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

FRAMES_PER_LATENT = 4  # video frames a latent; the first latent of a video stands for one frame
SLICE_LATENTS = 2  # latents decoded at a time; the first slice of a video has one more


class Renderer(Protocol):
    """Noise to latents of a window of context frames and new ones.

    `condition` and `read_text` come first, then `open_window`, then `denoise` at each step. The records that pass
    between them are the renderer's own.
    """

    @property
    def local(self) -> bool:
        """Whether its calls compute in this process alone, so that they can be captured."""
        ...

    @property
    def condition(self) -> nn.Module:
        """Features [B, T, D, h, w] -> [B, T, C + E, H, W]; takes the number of first frames whose details are 0, and
        what is known of first frames already, [B, K, C, H, W]."""
        ...

    def read_text(self, text: Tensor) -> Any:
        """The part of the computation that all windows under a text [B, L, K] share."""
        ...

    def open_window(self, context: Tensor, text: Any, condition: Tensor, context_time: Any = None) -> Any:
        """The part that all steps of a window share.

        Args:
            context: [B, P, C, H, W] clean latents.
            text: of `read_text`, B rows.
            condition: [B or 1, P + T, C + E, H, W] of context and new frames.
            context_time: the time at which context is read, if it is kept for later windows.
        """
        ...

    def denoise(self, x: Tensor, time: Any, cache: Any) -> Tensor:
        """The prediction [B, T, C, H, W] for noisy new frames x, at the step's time."""
        ...


class VideoState(Protocol):
    """An autoencoder's memory of one direction, encoding or decoding, of one video."""

    @property
    def started(self) -> bool: ...


class Autoencoder(Protocol):
    """Frames [B, F, 3, H, W] in -1..1 to latents [B, T, C, h, w] in the renderer's scale, and back.

    F = 1 + N (T - 1) at the start of a video, else N T, of N frames a latent. A state is only for the autoencoder that
    made it.
    """

    @property
    def frames_per_latent(self) -> int: ...

    def new_state(self) -> VideoState:
        """The state of a video that has not begun."""
        ...

    def begin_chunk(self, state: Any) -> None:
        """Says that the next latent to decode is the first of a chunk."""
        ...

    def show(self, state: Any, frame: Tensor) -> None:
        """Says that what is on air before the next latent to decode is this frame [B, 3, H, W], and not its own."""
        ...

    def slice_lengths(self, latents: int, started: bool) -> list[int]:
        """Lengths into which a chunk's latents are cut for `decode`. Raises ValueError if they cannot be cut."""
        ...

    def check_state(self, state: Any, height: int, width: int) -> None:
        """Raises ValueError unless a decoder's state that was stored fits latents of `height` x `width`."""
        ...

    def encode(self, video: Tensor, state: Any) -> Tensor:
        """Latents of the next frames; changes the state."""
        ...

    def decode(self, latents: Tensor, state: Any) -> Tensor:
        """Frames of the next latents; changes the state."""
        ...


def frames_of(latents: int, started: bool, per_latent: int = FRAMES_PER_LATENT) -> int:
    """Video frames of so many latents, at the start of a video or where it has `started`."""
    return latents * per_latent - (0 if started else per_latent - 1)


def slice_lengths(latents: int, started: bool) -> list[int]:
    """3, 2, 2, ... latents at the start of a video, 2, 2, ... within it (REFERENCE 4.1).

    Raises:
        ValueError: if the number is even at the start or odd later, which the published decoder has no meaning for.
    """
    first = min(latents, 0 if started else SLICE_LATENTS + 1)
    if latents < 1 or (latents - first) % SLICE_LATENTS:
        place, wanted = ("within a video", "an even") if started else ("at the start of a video", "an odd")
        raise ValueError(f"{latents} latents {place}: {wanted} number is needed")
    return [length for length in (first, *(latents - first) // SLICE_LATENTS * (SLICE_LATENTS,)) if length]
