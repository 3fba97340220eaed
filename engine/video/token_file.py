"""Semantic tokens of a video in a plain .npz file.

The file holds `format`, name and sizes of the preset, and `frames`, the number of video frames; `starts` [G] int64, the
number of each GOP's first semantic frame; `offsets` [G + 1] int64, where each GOP's tokens begin; `tokens` [N] uint16,
those of all GOPs end to end. Neighbouring GOPs may overlap. Shapes: `G` GOPs, `N` tokens, `n` tokens of a GOP.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import FRAMES_PER_LATENT, EngineConfig, preset
from engine.wire import plain
from engine.wire.files import write_atomically

FORMAT = 2  # format 1 called its tokens `codes`
SUFFIX = ".npz"
_TOKEN = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class TokenGOP:
    """Consecutive semantic frames as tokens."""

    start: int  # number of the first frame
    frames: int
    tokens: npt.NDArray[np.uint16]  # [n]

    @property
    def end(self) -> int:
        return self.start + self.frames


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A video as tokens. GOPs follow each other without a gap, and at most two cover the same frame."""

    config: EngineConfig
    frames: int  # video frames
    gops: tuple[TokenGOP, ...]

    def __post_init__(self) -> None:
        starts, ends = np.reshape([(gop.start, gop.end) for gop in self.gops], (-1, 2)).T
        in_order = starts[:1].tolist() == [0] and (np.diff(starts) > 0).all() and (np.diff(ends) > 0).all()
        if not in_order or (starts[1:] > ends[:-1]).any() or (starts[2:] < ends[:-2]).any():
            raise ValueError(
                "GOPs begin behind frame 0, are out of order, leave a gap, or overlap more than their neighbours"
            )
        # A semantic frame for every four video frames, the first for one; the last may stand for fewer.
        need = 1 + -(-(self.frames - 1) // FRAMES_PER_LATENT)
        if self.frames < 1 or ends[-1] != need:
            raise ValueError(f"GOPs end at frame {ends[-1]}, {self.frames} video frames need {need}")

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all; the same tokens make the same bytes."""
        file = io.BytesIO()
        np.savez(
            file,
            allow_pickle=False,
            **_header(self.config, self.frames),
            starts=np.asarray([gop.start for gop in self.gops], np.int64),
            offsets=np.cumsum([0, *(len(gop.tokens) for gop in self.gops)], dtype=np.int64),
            tokens=np.concatenate([gop.tokens for gop in self.gops]).astype(_TOKEN),
        )
        write_atomically(path, lambda part: part.write_bytes(file.getbuffer()))

    @classmethod
    def read(cls, path: Path) -> TokenFile:
        """Raises ValueError if the file is missing, damaged, of other sizes than its preset, or contradicts itself."""
        try:
            with path.open("rb") as file, np.lib.npyio.NpzFile(file) as arrays:
                return cls._unpack(arrays)
        # What NumPy and zipfile raise for other bytes than their own depends on where they lead them.
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read ({plain.one_line(error)}): make it again with `tokenize`"
            ) from error

    @classmethod
    def _unpack(cls, arrays: np.lib.npyio.NpzFile) -> TokenFile:
        config, frames = preset(arrays["preset"].item()), int(arrays["frames"].item())
        found = {name: (arrays[name].item(), own) for name, own in _header(config, frames).items()}
        faults = [f"{name} {value}, not {own}" for name, (value, own) in found.items() if value != own]
        if faults:
            raise ValueError(f"this version's preset {config.name!r} has other sizes: {', '.join(faults)}")
        starts, offsets, tokens = (arrays[name] for name in ("starts", "offsets", "tokens"))
        size = config.tokenizer.quantizer.codebook_size
        if tokens.dtype != _TOKEN or tokens.max(initial=0) >= size:
            raise ValueError(f"{tokens.dtype} up to {tokens.max(initial=0)} are not uint16 in a codebook of {size}")
        if len(offsets) != len(starts) + 1 or offsets[0] or offsets[-1] != len(tokens):
            raise ValueError(f"{len(starts)} starts, {len(offsets)} offsets and {len(tokens)} tokens make no GOPs")
        parts = np.split(tokens, offsets[1:-1])
        lengths = (config.tokenizer.frames_of(len(part)) for part in parts)
        return cls(config, frames, tuple(map(TokenGOP, starts.tolist(), lengths, parts)))


def _header(config: EngineConfig, frames: int) -> dict[str, Any]:
    """Header of a file: its preset's fields, which must be equal when it is read, and its length in frames."""
    tokenizer = config.tokenizer
    return {
        "format": FORMAT, "preset": config.name, "fps": config.fps, "height_px": config.height_px,
        "width_px": config.width_px, "frames": frames, "i_tokens": tokenizer.i_tokens, "p_tokens": tokenizer.p_tokens,
        "gop_frames": tokenizer.frames, "codebook_size": tokenizer.quantizer.codebook_size,
    }  # fmt: skip
