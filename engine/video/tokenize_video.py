"""`python -m engine tokenize`: a video file to semantic tokens.

Semantic frame j is of video frame 4j; where the video ends in between, one more is of the last video frame. Groups are
full but for the last. With an overlap each group begins that much before the end of the one before it, so that their
features can be faded into each other.
Shapes: `T` semantic frames of a group, `D` feature channels, `h` x `w` their grid, `H` x `W` pixels, `n` codes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import FRAMES_PER_LATENT, PRESETS, EngineConfig, preset
from engine.loading.memory import check_memory
from engine.loading.model import pick_device, pick_dtype, use_cores, weights_folder
from engine.loading.weights import load_weights
from engine.semantic.theia import Theia
from engine.semantic.tokenizer import SemanticTokenizer
from engine.video.clip import Clip
from engine.video.token_file import TokenGroup, TokenHeader, TokenWriter

OVERLAP_SHARE = 0.2  # of a group (appendix A.1 of the paper)


class VideoTokenizer:
    """The two stages that read a video, with their weights, on one device."""

    def __init__(self, theia: Theia, tokenizer: SemanticTokenizer, device: torch.device, dtype: torch.dtype) -> None:
        """`dtype` is that of matrix products."""
        self.tokenizer = tokenizer
        self._theia, self._device, self._dtype = theia, device, dtype

    def features(self, rgb: npt.NDArray[np.uint8]) -> Tensor:
        """What a picture [H, W, 3] shows: [1, 1, D, h, w] float32."""
        with torch.inference_mode(), self._autocast():
            picture = torch.tensor(rgb, device=self._device).movedim(-1, 0)
            features: Tensor = self._theia(picture[None, None])
            return features.float()

    def codes(self, features: Tensor) -> npt.NDArray[np.uint16]:
        """Codes [n] of a group [1, T, D, h, w]."""
        with torch.inference_mode(), self._autocast():
            return self.tokenizer.encode(features)[0].cpu().numpy().astype(np.uint16)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)


class Grouping:
    """Pictures to groups; holds the features of one group at most."""

    def __init__(self, stages: VideoTokenizer, overlap: bool) -> None:
        self._stages = stages
        self._frames = stages.tokenizer.config.frames
        # One frame of a group at least is new, whatever its length.
        self._kept = min(round(OVERLAP_SHARE * self._frames), self._frames - 1) if overlap else 0
        self._start, self._fresh = 0, 0
        self._held: list[Tensor] = []  # features of the frames from `_start` on; the last `_fresh` are in no group yet

    def push(self, rgb: npt.NDArray[np.uint8]) -> TokenGroup | None:
        """Takes the next semantic frame's picture [H, W, 3]; gives the group that it fills."""
        self._held.append(self._stages.features(rgb))
        self._fresh += 1
        return self._close() if len(self._held) == self._frames else None

    def end(self) -> TokenGroup | None:
        """The last group, if frames are left for one."""
        return self._close() if self._fresh else None

    def _close(self) -> TokenGroup:
        group = TokenGroup(self._start, len(self._held), self._stages.codes(torch.cat(self._held, dim=1)))
        self._held = self._held[len(self._held) - self._kept :]
        self._start, self._fresh = group.end - len(self._held), 0
        return group


def load(config: EngineConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> VideoTokenizer:
    """The stages with the weights of `folder`, in our own layout or as published.

    Raises:
        ValueError: if memory is too small, or for any fault in the files.
    """
    with torch.device("meta"):
        theia, tokenizer = Theia(config.theia), SemanticTokenizer(config.tokenizer)
    modules = {"theia": theia, "tokenizer": tokenizer}
    for module in modules.values():
        module.requires_grad_(False).eval()
    check_memory(modules, device)
    load_weights(folder, modules, config.name, device)
    return VideoTokenizer(theia, tokenizer, device, dtype)


def tokenize(clip: Clip, stages: VideoTokenizer, config: EngineConfig, file: TokenWriter, overlap: bool) -> TokenHeader:
    """Writes all groups of a clip; the caller finishes the file with the header that is returned."""
    grouping = Grouping(stages, overlap)
    frames = 0
    with tqdm(total=clip.frames_stated, unit="frame", desc="tokenize") as bar:
        for picture in clip.pictures(every=FRAMES_PER_LATENT):
            if (group := grouping.push(picture.rgb)) is not None:
                file.write(group)
            bar.update(picture.index + 1 - frames)
            frames = picture.index + 1
        if (group := grouping.end()) is not None:
            file.write(group)
    return TokenHeader.of(config, frames)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status, 2 for a mistake of the caller."""
    parser = argparse.ArgumentParser(
        prog="python -m engine tokenize",
        description="Writes a video as semantic tokens. Any length, size and frame rate: pictures are taken at the "
        "preset's rate, cut in the middle to its shape, and scaled to its size.",
    )
    parser.add_argument("video", type=Path, metavar="IN.mp4", help="any video file that FFmpeg reads")
    parser.add_argument("--out", type=Path, required=True, metavar="T.npz", help="file to write")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini", help="which model (default: mini)")
    parser.add_argument("--weights", metavar="DIR|HUB_ID", help="weights to use instead of the preset's own")
    parser.add_argument("--overlap", action="store_true", help="groups overlap by a fifth, and fade into each other")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    arguments = parser.parse_args(argv)
    use_cores()
    try:
        config = preset(arguments.preset)
        with (
            Clip(arguments.video, config.height_px, config.width_px, config.fps) as clip,
            TokenWriter(arguments.out) as file,
        ):
            device = pick_device(arguments.device)
            stages = load(config, weights_folder(config, arguments.weights), device, pick_dtype(device))
            file.finish(tokenize(clip, stages, config, file, arguments.overlap))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"tokenize: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("tokenize: interrupted; nothing was written\n")
        return 130
    return 0
