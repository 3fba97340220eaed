"""`python -m engine reconstruct`: semantic tokens of a file back to a video, by the renderer's hops.

Groups are decoded one at a time and put end to end; where two overlap, the features fade from one into the other. Hops
are those of an endless video: the last one is filled up with its last frame, and what is too much is cut off.
Shapes: `T` semantic frames, `D` feature channels, `h` x `w` their grid.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import EngineConfig, preset
from engine.live.generator import Generator
from engine.loading.memory import check_memory
from engine.loading.model import (
    Model,
    assemble,
    build,
    load,
    pick_device,
    pick_dtype,
    products,
    use_cores,
    weights_folder,
)
from engine.loading.weights import load_weights
from engine.video.token_file import TokenFile, TokenGroup, TokenHeader
from engine.video.video_file import VideoFile
from engine.wire.frames import FeatureFrames, FrameChunk, TextEmbedding
from engine.wire.messages import SEED_LIMIT
from engine.wire.prompt import check_prompt

STAGES = ("tokenizer", "renderer", "vae")  # all that a video without a prompt takes


class FeatureReader:
    """Features of groups in order; holds those of two groups at most."""

    def __init__(self, groups: Iterator[TokenGroup], model: Model) -> None:
        self._model = model
        self._spans = self._follow(groups)
        self._start = 0
        self._held = next(self._spans)  # [1, T, D, h, w] of the frames from `_start` on, at least one

    def read(self, frames: int) -> FeatureFrames:
        """The next `frames` frames; behind the end the last frame stands still."""
        while self._held.shape[1] <= frames:
            # One frame is kept back, since it may be the last.
            span = next(self._spans, self._held[:, -1:])
            self._held = torch.cat([self._held, span], dim=1)
        planned = FeatureFrames(self._held[:, :frames], self._start)
        self._held, self._start = self._held[:, frames:], self._start + frames
        return planned

    def _follow(self, groups: Iterator[TokenGroup]) -> Iterator[Tensor]:
        """The groups' features without what overlaps, which is faded: [1, T, D, h, w] each."""
        before: Tensor | None = None  # of the group before this one, from this one's start on
        for group, following in pairwise(chain(groups, [None])):
            assert group is not None, "only the last is None"
            features = self._decode(group)
            if before is not None:
                features = torch.cat([_faded(before, features), features[:, before.shape[1] :]], dim=1)
            alone = group.frames if following is None else following.start - group.start
            yield features[:, :alone]
            before = features[:, alone:]

    def _decode(self, group: TokenGroup) -> Tensor:
        with self._model.computing():
            codes = torch.tensor(group.codes.astype(np.int64), device=self._model.device)
            return self._model.tokenizer.decode(codes[None]).float()


def _faded(out: Tensor, into: Tensor) -> Tensor:
    """Frames of `out` [1, T, D, h, w] that turn into the first T of `into` in even steps."""
    frames = out.shape[1]
    share = torch.arange(1, frames + 1, device=out.device) / (frames + 1)
    return torch.lerp(out, into[:, :frames], share[:, None, None, None])


@dataclass(frozen=True, slots=True)
class NoText:
    """No text, which the renderer was trained with too: zeros, not an encoded empty prompt (FACTS 3.4)."""

    embedding: TextEmbedding

    @classmethod
    def of(cls, config: EngineConfig, device: torch.device) -> NoText:
        dit, planner = config.renderer.dit, config.planner
        return cls(
            TextEmbedding(
                planner=torch.zeros(1, 0, planner.text_dim, device=device),
                renderer=torch.zeros(1, dit.text_length, dit.text_dim, device=device),
            )
        )

    def embed(self, prompt: str) -> TextEmbedding:
        """The same for every prompt."""
        return self.embedding


def load_without_text(config: EngineConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """A model that renders; its planner has no weights and takes no memory. Raises ValueError as `model.load` does."""
    modules = build(config)
    needed = {name: modules[name] for name in STAGES}
    dtypes = {name: kind for name, kind in products(modules, dtype).items() if name.split(".")[0] in needed}
    check_memory(needed, device, dtypes)
    load_weights(folder, needed, config.name, device, dtypes)
    return assemble(config, NoText.of(config, device), modules, device, dtype)


def film(generator: Generator, tokens: TokenFile, prompt: str, seed: int) -> Iterator[FrameChunk]:
    """All frames of a video in order."""
    with generator.model.computing():
        state = generator.start(generator.model.text.embed(prompt), seed)
    reader = FeatureReader(tokens.groups(), generator.model)
    left = tokens.header.frames
    while left > 0:
        for unit in generator.render(state, reader.read(generator.new_latents(state))):
            if unit.chunk is not None and left > 0:
                yield dataclasses.replace(unit.chunk, i420=unit.chunk.i420[:left])
                left -= unit.chunk.frames


def check_preset(header: TokenHeader, config: EngineConfig) -> None:
    """Raises ValueError, naming what differs, if the tokens are not of this preset."""
    own, wanted = (dataclasses.asdict(item) for item in (header, TokenHeader.of(config, header.frames)))
    faults = [f"{name} {own[name]}, not {value}" for name, value in wanted.items() if own[name] != value]
    if faults:
        raise ValueError(f"the tokens are not of this preset {config.name!r}: {', '.join(faults)}; tokenize again")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status, 2 for a mistake of the caller."""
    arguments = _parser().parse_args(argv)
    use_cores()
    try:
        prompt = None if arguments.prompt is None else check_prompt(arguments.prompt)
        tokens = TokenFile(arguments.tokens)
        config = preset(tokens.header.preset)
        check_preset(tokens.header, config)
        with VideoFile(arguments.out, config.width_px, config.height_px, config.fps) as file:
            device = pick_device(arguments.device)
            folder = weights_folder(config, arguments.weights)
            read = load_without_text if prompt is None else load
            generator = Generator(read(config, folder, device, pick_dtype(device)))
            with tqdm(total=tokens.header.frames, unit="frame", desc="reconstruct") as bar:
                for chunk in film(generator, tokens, prompt or "", arguments.seed):
                    file.write(chunk.i420)
                    bar.update(chunk.frames)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"reconstruct: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("reconstruct: interrupted; nothing was written\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine reconstruct", description="Writes the video that a file of semantic tokens describes."
    )
    parser.add_argument("tokens", type=Path, metavar="T.npz", help="file that `tokenize` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="V.mp4", help="file to write, H.264")
    parser.add_argument("--prompt", help="what the renderer reads beside the tokens (default: no text)")
    parser.add_argument("--seed", type=_seed, default=0, help="of the renderer's noise (default: 0)")
    parser.add_argument("--weights", metavar="DIR|HUB_ID", help="weights to use instead of the preset's own")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    return parser


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= SEED_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed, 0 to {SEED_LIMIT - 1}")
    return int(text)
