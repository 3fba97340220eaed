"""`python -m engine tokenize`: a video file to semantic tokens.

Semantic frame j shows video frame 4j; if the video ends in between, one more shows its last frame. All GOPs but the
last are full. With an overlap each GOP begins that much before the end of the one before it, so that their features can
be faded into each other.
Shapes: `T` semantic frames of a GOP, `D` feature channels, `h` x `w` their grid, `H` x `W` pixels, `n` tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from engine.arguments import add_model
from engine.config import FRAMES_PER_LATENT, EngineConfig, preset
from engine.loading.options import place
from engine.loading.placement import check_memory
from engine.loading.weights import load_weights
from engine.semantic.theia import Theia
from engine.semantic.tokenizer import SemanticTokenizer
from engine.video.clip import Clip
from engine.video.token_file import SUFFIX, TokenFile, TokenGOP
from engine.wire.files import check_target

OVERLAP_SHARE = 0.2  # of a GOP (appendix A.1 of the paper)


@dataclass(frozen=True, slots=True)
class VideoTokenizer:
    """The two stages that read a video, with their weights, on one device."""

    theia: Theia
    tokenizer: SemanticTokenizer
    device: torch.device
    dtype: torch.dtype  # of matrix products

    def features(self, rgb: npt.NDArray[np.uint8]) -> Tensor:
        """Features [1, 1, D, h, w] float32 of a picture [H, W, 3]."""
        with self._computing():
            features: Tensor = self.theia(torch.tensor(rgb, device=self.device).movedim(-1, 0)[None, None])
            return features.float()

    def tokens(self, features: Tensor) -> npt.NDArray[np.uint16]:
        """Tokens [n] of a GOP's features [1, T, D, h, w]."""
        with self._computing():
            return self.tokenizer.encode(features)[0].cpu().numpy().astype(np.uint16)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            yield


def load(config: EngineConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> VideoTokenizer:
    """The stages with weights of our own layout or as published. Raises ValueError as `model.load` does."""
    with torch.device("meta"):
        theia, tokenizer = Theia(config.theia), SemanticTokenizer(config.tokenizer)
    modules = {"theia": theia.requires_grad_(False).eval(), "tokenizer": tokenizer.requires_grad_(False).eval()}
    check_memory(modules, device)
    load_weights(folder, modules, config.name, device)
    return VideoTokenizer(theia, tokenizer, device, dtype)


def group(pictures: Iterable[npt.NDArray[np.uint8]], stages: VideoTokenizer, overlap: bool) -> Iterator[TokenGOP]:
    """GOPs of a video's semantic frames, each as soon as it is full, and the rest; holds the features of one GOP."""
    full = stages.tokenizer.config.frames
    kept = round(OVERLAP_SHARE * full) if overlap else 0
    features, start = map(stages.features, pictures), 0
    held: list[Tensor] = []  # features of the frames from `start` on
    while True:
        old = len(held)
        held.extend(islice(features, full - old))
        if len(held) == old:
            return
        yield TokenGOP(start, len(held), stages.tokens(torch.cat(held, dim=1)))
        start, held = start + full - kept, held[full - kept :]


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises ValueError for a mistake of the caller."""
    parser = argparse.ArgumentParser(
        prog="python -m engine tokenize",
        description="Writes a video as semantic tokens. Any length, size and frame rate: pictures are taken at the "
        "preset's rate, cut in the middle to its shape, and scaled to its size.",
    )
    parser.add_argument("video", type=Path, metavar="IN.mp4", help="any video file that FFmpeg reads")
    parser.add_argument("--out", type=Path, required=True, metavar="T.npz", help="file to write")
    parser.add_argument("--overlap", action="store_true", help="GOPs overlap by a fifth, and fade into each other")
    add_model(parser)
    arguments = parser.parse_args(argv)
    check_target(arguments.out, SUFFIX, source=arguments.video)
    config = preset(arguments.preset)
    with Clip(arguments.video, config.height_px, config.width_px, config.fps) as clip:
        stages = load(config, *place(config, arguments.weights, arguments.device))
        gops = []
        with tqdm(total=clip.frames_stated, unit="frame", desc="tokenize") as bar:
            for gop in group(clip.pictures(every=FRAMES_PER_LATENT), stages, arguments.overlap):
                gops.append(gop)
                bar.total = clip.frames_stated  # which is better known the more is read
                bar.update(clip.frames - bar.n)
    TokenFile(config, clip.frames, tuple(gops)).write(arguments.out)
    return 0
