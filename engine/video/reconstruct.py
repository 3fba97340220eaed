"""`python -m engine reconstruct`: semantic tokens of a file back to a video, chunk by chunk.

GOPs are decoded one at a time and put end to end; where two overlap, their features fade from one into the other.
Chunks are those of an endless video: the last one is filled up with its last frame, and the surplus is cut off.
Shapes: `T` semantic frames, `D` feature channels, `h` x `w` their grid.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.arguments import add_weights, checked, seed
from engine.config import EngineConfig
from engine.live.generator import Generator
from engine.live.offline import finished
from engine.loading.model import Model, assemble, load
from engine.loading.modules import autocast_dtypes, build
from engine.loading.options import place
from engine.loading.placement import check_memory
from engine.loading.weights import load_weights
from engine.semantic.tokenizer import FeatureFrames
from engine.text.embedding import FixedText, TextEmbedding
from engine.video.token_file import TokenFile, TokenGOP
from engine.video.video_file import VideoFile, check_video_target
from engine.wire.frames import FrameBatch
from engine.wire.prompt import check_prompt


def read_features(gops: Sequence[TokenGOP], model: Model, lengths: Iterable[int]) -> Iterator[FeatureFrames]:
    """Features in parts of the given lengths; after the end the last frame is repeated. Holds those of two GOPs."""
    decoded = _decode(gops, model)
    held, start = next(decoded), 0
    for length in lengths:
        while held.shape[1] <= length:
            # One frame is kept back, since it may be the last.
            held = torch.cat([held, next(decoded, held[:, -1:])], dim=1)
        yield FeatureFrames(held[:, :length], start)
        held, start = held[:, length:], start + length


def _decode(gops: Sequence[TokenGOP], model: Model) -> Iterator[Tensor]:
    """Features of each GOP up to where the next one begins, [1, T, D, h, w].

    Over the frames that it shares with the GOP before it, that one's features fade into its own in even steps.
    """
    before: Tensor | None = None  # features of the frames that the GOP before shares with this one
    for gop, end in zip(gops, [*(gop.start for gop in gops[1:]), gops[-1].end], strict=True):
        with model.computing():
            tokens = torch.tensor(gop.tokens.astype(np.int64), device=model.device)
            features = model.tokenizer.decode(tokens[None]).float()
            if before is not None:
                common = before.shape[1]
                share = torch.arange(1, common + 1, device=model.device) / (common + 1)
                features[:, :common] = before.lerp(features[:, :common], share[:, None, None, None])
        yield features[:, : end - gop.start]
        before = features[:, end - gop.start :]


def load_without_text(config: EngineConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """A model that renders without text; its planner has no weights. Raises ValueError as `model.load` does.

    In place of text the renderer reads zeros, as it also did in training, not an empty prompt encoded (REFERENCE 3.4).
    """
    modules, dit = build(config), config.renderer.dit
    needed = {name: module for name, module in modules.items() if name != "planner"}
    dtypes = autocast_dtypes(modules, dtype)
    check_memory(needed, device, dtypes)
    load_weights(folder, needed, config.name, device, dtypes)
    text = TextEmbedding(
        planner=torch.zeros(1, 0, config.planner.text_dim, device=device),
        renderer=torch.zeros(1, dit.text_length, dit.text_dim, device=device),
    )
    return assemble(config, FixedText(text), modules, device, dtype)


def reconstruct(generator: Generator, tokens: TokenFile, prompt: str, seed: int) -> Iterator[FrameBatch]:
    """All frames of the video, in order."""
    with generator.model.computing():
        state = generator.start(generator.model.text.embed(prompt), seed)
    config, left = tokens.config, tokens.frames
    lengths = chain([config.first_chunk_length], repeat(config.chunk_length))
    for features in read_features(tokens.gops, generator.model, lengths):
        for batch in finished(generator.render(state, features), left):
            left -= batch.frames
            yield batch
        if not left:
            return


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises ValueError for a mistake of the caller."""
    told = "Writes the video that a file of semantic tokens describes."
    parser = argparse.ArgumentParser(prog="python -m engine reconstruct", description=told)
    parser.add_argument("tokens", type=Path, metavar="T.npz", help="file that `tokenize` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="V.mp4", help="file to write, H.264")
    parser.add_argument("--prompt", type=checked(check_prompt), help="text for the renderer (default: none)")
    parser.add_argument("--seed", type=checked(seed), default=0, help="of the renderer's noise (default: 0)")
    add_weights(parser)
    arguments = parser.parse_args(argv)
    check_video_target(arguments.out, source=arguments.tokens)
    tokens = TokenFile.read(arguments.tokens)
    config = tokens.config
    with VideoFile(arguments.out, config.width_px, config.height_px, config.fps) as file:
        read = load_without_text if arguments.prompt is None else load
        model = read(config, *place(config, arguments.weights, arguments.device))
        batches = reconstruct(Generator(model), tokens, arguments.prompt or "", arguments.seed)
        file.write_batches(batches, tokens.frames)
    return 0
