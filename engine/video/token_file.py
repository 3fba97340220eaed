"""A video as semantic tokens in a file: a plain .npz, written and read group by group.

The file holds, beside the numbers of `TokenHeader` under their names: `format`; `starts` [G] int64, number of each
group's first semantic frame; `offsets` [G + 1] int64, where each group's codes begin; `codes` [N] uint16, all groups'
end to end. Neighbouring groups may overlap. Shapes: `G` groups, `N` codes, `n` codes of a group.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from engine.config import FRAMES_PER_LATENT, EngineConfig

FORMAT = 1
_CODE = np.dtype("<u2")
_LARGEST_BYTES = 64 << 20  # of anything but the codes; an index of this size is that of a year of video
_KINDS = {"str": "U", "int": "iu", "float": "f"}  # numpy's letters for the header's types
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """What the codes were made of and with; `frames` is the only number that is not the preset's."""

    preset: str
    fps: float
    height_px: int
    width_px: int
    frames: int  # video frames
    i_tokens: int
    p_tokens: int
    group_frames: int  # semantic frames of a full group
    codebook_size: int

    def __post_init__(self) -> None:
        for name in ("height_px", "width_px", "frames", "i_tokens", "p_tokens", "group_frames", "codebook_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be positive")
        if self.codebook_size > 1 << 8 * _CODE.itemsize:
            raise ValueError(f"a codebook of {self.codebook_size} does not fit {8 * _CODE.itemsize} bits a code")

    @classmethod
    def of(cls, config: EngineConfig, frames: int) -> TokenHeader:
        """Of a video of so many frames by this preset."""
        return cls(
            preset=config.name,
            fps=config.fps,
            height_px=config.height_px,
            width_px=config.width_px,
            frames=frames,
            i_tokens=config.tokenizer.i_tokens,
            p_tokens=config.tokenizer.p_tokens,
            group_frames=config.tokenizer.frames,
            codebook_size=config.tokenizer.quantizer.codebook_size,
        )

    @property
    def semantic_frames(self) -> int:
        """One for every four video frames, the first for one; the last may stand for fewer."""
        return 1 + -(-(self.frames - 1) // FRAMES_PER_LATENT)


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Consecutive semantic frames as codes."""

    start: int  # number of the first frame
    frames: int
    codes: npt.NDArray[np.uint16]  # [n]

    @property
    def end(self) -> int:
        return self.start + self.frames


class TokenWriter:
    """Writes a neighbour of `path`, which takes its place when `finish` is called; otherwise nothing is left."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError if the name does not end in .npz or its folder cannot be written."""
        if path.suffix.lower() != ".npz":
            raise ValueError(f"{path} does not end in .npz, the only format that is written")
        if not path.parent.is_dir():
            raise ValueError(f"the folder {path.parent} does not exist: make it first")
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._starts, self._offsets = array("q"), array("q", [0])
        try:
            self._codes: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}") from error

    def write(self, group: TokenGroup) -> None:
        """Appends a group."""
        self._starts.append(group.start)
        self._offsets.append(self._offsets[-1] + len(group.codes))
        self._codes.write(group.codes.astype(_CODE).tobytes())

    def finish(self, header: TokenHeader) -> None:
        """Puts the whole file in place."""
        values = {"format": FORMAT, **asdict(header)}
        arrays = {name: np.asarray(value) for name, value in values.items()}
        arrays |= {"starts": np.asarray(self._starts), "offsets": np.asarray(self._offsets)}
        with zipfile.ZipFile(self._partial, "w") as archive:
            for name, value in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, value, allow_pickle=False)
            with archive.open(zipfile.ZipInfo("codes.npy"), "w", force_zip64=True) as member:
                shape = {"descr": _CODE.str, "fortran_order": False, "shape": (self._offsets[-1],)}
                np.lib.format.write_array_header_1_0(member, shape)
                self._codes.seek(0)
                shutil.copyfileobj(self._codes, member)
        os.replace(self._partial, self._path)

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._codes.close()
        self._partial.unlink(missing_ok=True)


class TokenFile:
    """Reads what `TokenWriter` wrote, after a look at every byte of it."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError if the file is missing, damaged, of another kind, or contradicts itself."""
        if not path.is_file():
            raise ValueError(f"{path} is no file: give one that `tokenize` wrote")
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
                self.header = self._header(archive, members)
                self._starts, self._offsets = (
                    self._array(archive, members, name, "i", 1) for name in ("starts", "offsets")
                )
                if "codes" not in members:
                    raise ValueError("it holds no codes")
            self._check_groups()
            for _ in self.groups():
                pass
        except _DAMAGE as error:
            raise ValueError(f"{path} cannot be read ({error}): make it again with `tokenize`") from error

    def groups(self) -> Iterator[TokenGroup]:
        """All groups in order, one at a time."""
        header = self.header
        with zipfile.ZipFile(self._path) as archive, archive.open("codes.npy") as member:
            if np.lib.format.read_magic(member) != (1, 0):
                raise ValueError("codes are in a form of numpy's that is not written here")
            shape, _, kind = np.lib.format.read_array_header_1_0(member)
            if shape != (self._offsets[-1],) or kind != _CODE:
                raise ValueError(f"codes are {kind} {shape}, expected {_CODE} {(int(self._offsets[-1]),)}")
            for start, count in zip(self._starts, np.diff(self._offsets), strict=True):
                codes = np.frombuffer(member.read(int(count) * _CODE.itemsize), _CODE)
                if len(codes) != count:
                    raise EOFError("codes end early")
                if codes.max() >= header.codebook_size:
                    raise ValueError(f"code {codes.max()} is not in a codebook of {header.codebook_size}")
                yield TokenGroup(int(start), 1 + (int(count) - header.i_tokens) // header.p_tokens, codes)
            # The end is where the archive's checksum is compared.
            if member.read(1):
                raise ValueError("codes go on behind the last group")

    def _header(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> TokenHeader:
        form = self._array(archive, members, "format", "i", 0)
        if form != FORMAT:
            raise ValueError(f"it has format {form}, this version reads {FORMAT}")
        values: dict[str, Any] = {
            field.name: self._array(archive, members, field.name, _KINDS[str(field.type)], 0).item()
            for field in fields(TokenHeader)
        }
        return TokenHeader(**values)

    def _array(
        self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, kinds: str, dimensions: int
    ) -> npt.NDArray[Any]:
        if name not in members:
            raise ValueError(f"it holds no {name}")
        if members[name].file_size > _LARGEST_BYTES:
            raise ValueError(f"{name} has {members[name].file_size} bytes, at most {_LARGEST_BYTES} are taken")
        with archive.open(members[name]) as member:
            value: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        if value.dtype.kind not in kinds or value.ndim != dimensions:
            raise ValueError(f"{name} is {value.dtype} with {value.ndim} dimensions")
        return value

    def _check_groups(self) -> None:
        """Groups follow each other without a gap, and at most two cover the same frame."""
        header, starts, counts = self.header, self._starts, np.diff(self._offsets)
        if not len(starts) or len(counts) != len(starts) or self._offsets[0] or starts[0]:
            raise ValueError(f"{len(starts)} starts and {len(self._offsets)} offsets make no groups")
        frames, rest = np.divmod(counts - header.i_tokens, header.p_tokens)
        if rest.any() or frames.min() < 0 or frames.max() >= header.group_frames:
            raise ValueError("offsets make groups of no whole number of frames")
        ends = starts + frames + 1
        if (np.diff(starts) < 1).any() or (np.diff(ends) < 1).any():
            raise ValueError("groups are out of order")
        if (starts[1:] > ends[:-1]).any() or (starts[2:] < ends[:-2]).any():
            raise ValueError("groups leave a gap or overlap more than their neighbours")
        if ends[-1] != header.semantic_frames:
            raise ValueError(
                f"groups end at frame {ends[-1]}, {header.frames} video frames need {header.semantic_frames}"
            )
