"""A folder of captioned videos as a source of training data, for any preset: `a.mp4` with its caption in `a.txt`.

Features come from the extractor. A tenth of the videos is held out if there are ten. Shapes as in `source`; `H` x `W`
pixels.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.loading.options import autocast
from engine.semantic.theia import Theia
from engine.training.sources.source import CaptionedGops, Segment
from engine.video.clip import Clip
from engine.wire.prompt import check_prompt

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
MOST_BYTES = 2 << 30  # of a folder whose videos are kept in memory
SHOWN_FAULTS = 20
HELD_OUT_EVERY = 10  # videos
WEIGHED_GOPS = 64  # for the spread of channels
LEAST_SPREAD = 0.25  # of the mean spread, as rare features hardly occur in these GOPs


class VideoFolder:
    """Videos of a folder in one size and at one rate. If all fit into MOST_BYTES, each is read once."""

    def __init__(self, folder: Path, height: int, width: int, fps: float, least_frames: int) -> None:
        """Checks every file. Raises ValueError if there is no video, or naming every video that cannot be read or has
        fewer than `least_frames` at `fps`, and every caption that is missing, empty or not UTF-8."""
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: give one with videos and captions")
        self.height, self.width, self.fps = height, width, fps
        self.paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        self.captions, self.lengths = list[str](), list[int]()  # lengths in frames
        faults = [] if self.paths else [f"there are no videos ({', '.join(SUFFIXES)})"]
        for path in tqdm(self.paths, unit="video", desc=folder.name):
            try:
                self.captions.append(read_caption(path.with_suffix(".txt")))
                self.lengths.append(self._length(path))
                if self.lengths[-1] < least_frames:
                    raise ValueError(f"it has {self.lengths[-1]} frames at {fps:g} a second, {least_frames} are needed")
            except (OSError, ValueError) as error:
                faults.append(f"{path.name}: {error}")
        if faults:
            more = [f"... and {len(faults) - SHOWN_FAULTS} more"] * (len(faults) > SHOWN_FAULTS)
            raise ValueError(f"{folder} cannot be used:\n" + "\n".join([*faults[:SHOWN_FAULTS], *more]))
        self._whole = cache(lambda number: self._read(number, 0, self.lengths[number]))

    def read(self, number: int, start: int, frames: int) -> Tensor:
        """Frames of a video, uint8 [F, 3, H, W]. Raises ValueError if it turns out to be damaged."""
        if 3 * self.height * self.width * sum(self.lengths) <= MOST_BYTES:
            return self._whole(number)[start : start + frames]
        return self._read(number, start, frames)

    def _read(self, number: int, start: int, frames: int) -> Tensor:
        path = self.paths[number]
        with Clip(path, self.height, self.width, self.fps) as clip:
            pictures = list(islice(clip.pictures(), start, start + frames))
        if len(pictures) < frames:
            raise ValueError(f"{path} ends after {start + len(pictures)} frames, its header promises more")
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)

    def _length(self, path: Path) -> int:
        """Number of frames by the header; at least one frame is read."""
        with Clip(path, self.height, self.width, self.fps) as clip:
            read = sum(1 for _ in islice(clip.pictures(), None if clip.frames_promised is None else 1))
            return clip.frames_promised or read


def read_caption(path: Path) -> str:
    """Raises ValueError if it is missing, not UTF-8, or no prompt."""
    try:
        return check_prompt(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"it has no caption: write {path.name}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8: save it as UTF-8") from error


def frames_of(latents: int) -> int:
    """Video frames of the first latents, or semantic frames, of a video."""
    return 1 + (latents - 1) * FRAMES_PER_LATENT


def error_weights(spread: Tensor) -> Tensor:
    """Weights of squared errors by the standard deviations of channels [D]; the error of the mean features is 1.

    Weights by variance would let rare features dominate a loss, equal weights would ignore them.
    """
    unit = spread.mean()
    return 1 / (unit * spread.maximum(LEAST_SPREAD * unit))


class FolderSource:
    """Samples of a folder's videos, as `WorldSource` draws them."""

    def __init__(self, folder: Path, config: EngineConfig, extractor: Theia | None, device: str) -> None:
        """`extractor` has its weights; without it there are no features. Raises ValueError as `VideoFolder` does."""
        self.config, self.extractor, self.device = config, extractor, device
        self.window, self.gop = config.context_length + config.chunk_length, config.tokenizer.frames
        least = frames_of(max(self.gop, self.window))
        self.videos = VideoFolder(folder, config.height_px, config.width_px, config.fps, least)
        two_gops = max(self.videos.lengths) >= frames_of(2 * self.gop)
        self.kinds = {"first": 0.5, "next": 0.5} if two_gops else {"first": 1.0}

    def clip(self, rng: random.Random, frames: int, held_out: bool = False) -> tuple[Tensor, tuple[float, float]]:
        """As of the drawn world, with a random focus."""
        focus = rng.uniform(0, self.videos.width), rng.uniform(0, self.videos.height)
        return self.read(rng, self.pick(rng, frames, held_out), frames), focus

    def pick(self, rng: random.Random, frames: int, held_out: bool) -> int:
        """A random video with enough frames, by number."""
        fits = [number for number, length in enumerate(self.videos.lengths) if length >= frames]
        return rng.choice([n for n in fits if (n % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out] or fits)

    def read(self, rng: random.Random, number: int, frames: int) -> Tensor:
        """Random consecutive frames of a video, uint8 [1, F, 3, H, W]."""
        start = rng.randrange(self.videos.lengths[number] - frames + 1)
        return self.videos.read(number, start, frames)[None].to(self.device)

    @torch.no_grad()
    def extract(self, video: Tensor) -> Tensor:
        """Features [1, T, D, h, w] float32 of the first frame and every fourth after it."""
        assert self.extractor is not None, "this stage was made without an extractor"
        with autocast(self.device):
            features: Tensor = self.extractor(video[:, ::FRAMES_PER_LATENT])
        return features.float()

    def features(self, rng: random.Random, count: int, frames: int, held_out: bool = False) -> Tensor:
        length = frames_of(frames)
        videos = (self.read(rng, self.pick(rng, length, held_out), length) for _ in range(count))
        return torch.cat([self.extract(video) for video in videos])

    def channel_weights(self) -> Tensor:
        """As of the drawn world, by the spread of channels."""
        rng = random.Random("channel weights")
        # Clip by clip, as features of all take gigabytes at full size.
        clips = (self.features(rng, 1, self.gop).double() for _ in range(WEIGHED_GOPS))
        moments = [torch.stack([x.mean((0, 1, 3, 4)) for x in (clip, clip.square())]) for clip in clips]
        mean, square = torch.stack(moments).mean(0)
        return error_weights((square - mean.square()).clamp(min=0).sqrt()).float()[:, None, None]

    def gops(self, rng: random.Random, kind: str, count: int, held_out: bool = False) -> CaptionedGops:
        context = self.gop if kind == "next" else 0
        length = frames_of(context + self.gop)
        numbers = [self.pick(rng, length, held_out) for _ in range(count)]
        features = torch.cat([self.extract(self.read(rng, number, length)) for number in numbers])
        captions = [self.videos.captions[number] for number in numbers]
        return CaptionedGops(features[:, :context] if context else None, features[:, context:], captions)

    def segment(self, rng: random.Random, before: Segment | None = None, held_out: bool = False) -> Segment:
        """A window and, for small presets, up to two chunks, if the video is long enough; nothing follows."""
        window, chunk = frames_of(self.window), self.config.chunk_length * FRAMES_PER_LATENT
        number = self.pick(rng, window, held_out)
        chunks = 0 if self.config.published else min(2, (self.videos.lengths[number] - window) // chunk)
        video = self.read(rng, number, window + chunks * chunk)
        features, text = self.extract(video)[0], self.videos.captions[number]
        mask = torch.zeros_like(features[:, 0])
        return Segment(video, features, mask, (text, text), len(features), (False, False), starts=True)
