"""Folders of captioned videos: the drawn world written as one, and any such folder read for training.

A folder holds videos and, for each, either a text file of the same name (`a.mp4`, `a.txt`) or a line of
`captions.jsonl`, such as {"file": "a.mp4", "caption": "a red ball"}. Captions are UTF-8.
Shapes: `F` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.perceptual.frames import to_host
from engine.training.run import write_atomically
from engine.training.world import drawing as world
from engine.training.world.captions import caption, random_label
from engine.video.clip import Clip
from engine.video.video_file import VideoFile
from engine.wire.prompt import check_prompt

log = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
LIST = "captions.jsonl"
WORLD_FPS = 8.0
FRAMES = 97  # of a written clip
SHOWN_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A video and what it shows."""

    path: Path
    caption: str


def read_entries(folder: Path) -> list[Entry]:
    """The captioned videos of a folder, by name.

    Raises:
        ValueError: if it is no folder or has no videos, or naming every caption that is missing, empty or unreadable.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one with videos and captions")
    faults: list[str] = []
    listed = _read_list(folder / LIST, faults) if (folder / LIST).exists() else {}
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    faults += [f"{LIST} names {name}, which is not there" for name in listed.keys() - {path.name for path in videos}]
    entries = []
    for path in videos:
        try:
            beside = path.with_suffix(".txt")
            text = listed[path.name] if path.name in listed else beside.read_text(encoding="utf-8")
            entries.append(Entry(path, check_prompt(" ".join(text.split()))))
        except FileNotFoundError:
            faults.append(f"{path.name} has no caption: write {path.stem}.txt or a line of {LIST}")
        except UnicodeDecodeError:
            faults.append(f"{path.stem}.txt is not UTF-8: save it as UTF-8")
        except (OSError, ValueError) as error:
            faults.append(f"the caption of {path.name} cannot be used: {error}")
    _raise(folder, faults)
    if not entries:
        raise ValueError(f"{folder} has no videos ({', '.join(SUFFIXES)})")
    return entries


def _read_list(path: Path, faults: list[str]) -> dict[str, str]:
    """Captions by file name of a `captions.jsonl`; what is wrong with it is added to `faults`."""
    captions: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            if not line.strip():
                continue
            entry = json.loads(line.decode("utf-8"))
            name, text = entry["file"], entry["caption"]
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError("file and caption must be texts")
            captions[name] = text
        except UnicodeDecodeError:
            faults.append(f"{path.name} line {number} is not UTF-8: save it as UTF-8")
        except (ValueError, KeyError, TypeError) as error:
            faults.append(f"{path.name} line {number} is not {{'file': ..., 'caption': ...}}: {error}")
    return captions


def _raise(folder: Path, faults: Sequence[str]) -> None:
    if faults:
        more = [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        raise ValueError(f"{folder} cannot be used:\n" + "\n".join([*faults[:SHOWN_FAULTS], *more]))


class VideoFolder:
    """A folder's videos, in one size and at one rate. `cut` reads files anew each time."""

    def __init__(self, folder: Path, height: int, width: int, fps: float, least_frames: int) -> None:
        """Looks into every file.

        Raises:
            ValueError: naming every video that cannot be read or has fewer than `least_frames` at `fps`, and why.
        """
        self.entries = read_entries(folder)
        self.height, self.width, self.fps = height, width, fps
        faults, lengths = [], []
        for entry in tqdm(self.entries, unit="video", desc=folder.name):
            try:
                lengths.append(self._length(entry.path))
                if lengths[-1] < least_frames:
                    faults.append(
                        f"{entry.path.name} has {lengths[-1]} frames at {fps:g} a second, {least_frames} are needed"
                    )
            except ValueError as error:
                faults.append(str(error))
        _raise(folder, faults)
        self.lengths = lengths  # of each video, in frames

    def __len__(self) -> int:
        return len(self.entries)

    def cut(self, number: int, start: int, frames: int) -> Tensor:
        """Frames `start` to `start` + `frames` - 1 of a video, uint8 [F, 3, H, W].

        Raises:
            ValueError: if the video turns out to be damaged.
        """
        entry = self.entries[number]
        with self._open(entry.path) as clip:
            pictures = [picture.rgb for picture in itertools.islice(clip.pictures(), start, start + frames)]
        if len(pictures) < frames:
            raise ValueError(f"{entry.path} ends after {start + len(pictures)} frames, its header promises more")
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)

    def _open(self, path: Path) -> Clip:
        return Clip(path, self.height, self.width, self.fps)

    def _length(self, path: Path) -> int:
        """Frames of a video, one of which is read."""
        with self._open(path) as clip:
            stated = clip.frames_stated
            pictures = clip.pictures()
            read = sum(1 for _ in (pictures if stated is None else itertools.islice(pictures, 1)))
            return read if stated is None else stated


def write_world(folder: Path, clips: int, frames: int, seed: int) -> None:
    """Writes clips of the drawn world, none of them of held-out combinations, as `000000.mp4`, `000000.txt`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(clips), unit="clip", desc=folder.name):
        rng = random.Random(f"dataset {seed} {number}")
        label = random_label(rng)
        video = world.draw(world.sample([label], rng), torch.arange(frames)[None])
        stem = folder / f"{number:06d}"
        with VideoFile(stem.with_suffix(".mp4"), world.WIDTH_PX, world.HEIGHT_PX, WORLD_FPS) as file:
            file.write(to_host(video.float() / 127.5 - 1))
        _write(stem.with_suffix(".txt"), caption(label, rng))


def _write(path: Path, line: str) -> None:
    def write(part: Path) -> None:
        part.write_text(line + "\n", encoding="utf-8")

    write_atomically(path, write)


def main(argv: Sequence[str]) -> int:
    """Arguments to a folder; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m engine.training dataset", description="Write the drawn world.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--clips", type=int, required=True, metavar="N", help="number of videos")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of each, 8 a second")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if min(arguments.clips, arguments.frames) < 1:
            raise ValueError(f"clips {arguments.clips} and frames {arguments.frames} must be at least 1")
        write_world(arguments.out, arguments.clips, arguments.frames, arguments.seed)
    except (ValueError, OSError) as error:
        log.error("dataset: %s", error)
        return 2
    return 0
