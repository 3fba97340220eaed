"""`python -m engine evaluate --frames F.npz --prompts F.jsonl`: from when on frames that somebody watched show every
word of their prompt.

The file has an array a prompt, in their order: I420 frames [F, 3H/2, W] uint8 (`F` frames of `H` x `W` pixels). With
`--whole` each is one clip, of which the words are judged.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.config import EngineConfig, preset
from engine.evaluation.prompt_set import FIELDS, LabelledPrompt, read_prompts
from engine.loading.options import place
from engine.loading.weights import load_component
from engine.perceptual.frames import shrunk
from engine.semantic import reading
from engine.semantic.theia import Theia
from engine.training.world import judge
from engine.wire.files import check_target, write_atomically

Frames = npt.NDArray[np.uint8]


def read_frames(path: Path, count: int) -> list[Frames]:
    """The file's arrays. Raises ValueError when it cannot be read or does not have as many arrays of frames."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in file.files]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}): give a file of numpy.savez") from error
    if len(arrays) != count:
        raise ValueError(f"{path} has {len(arrays)} arrays for {count} prompts: give one a prompt")
    for number, array in enumerate(arrays, 1):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[1] % 6 or array.shape[2] % 2:
            raise ValueError(f"{path}, array {number}: {array.dtype} {array.shape} is not I420 [F, 3H/2, W] uint8")
    return arrays


@torch.no_grad()
def first_right(
    theia: Theia, i420: Frames, prompt: LabelledPrompt, config: EngineConfig, whole: bool = False
) -> dict[str, Any]:
    """`first`, the number of the frame at which the first stretch of a chunk's length begins that has all words right,
    None if none has; `right`, for each word whether it was right there, or in the last stretch. `config` is of their
    size; with `whole` the only stretch is all of them."""
    # Each frame is read for itself, so that chunks that overlap share them; of large ones, what an extractor of small
    # pictures sees.
    parts = np.array_split(i420, -(-len(i420) // config.chunk_frames))
    features = [theia(shrunk(judge.to_rgb(part), config.scale)[None]) for part in parts]
    chunk_frames = len(i420) if whole else config.chunk_frames
    maps, first, right = torch.cat(features, 1).float(), None, dict[str, bool]()
    for begin in range(len(i420) - chunk_frames + 1):
        seen = reading.read(maps[:, begin : begin + chunk_frames : config.frames_per_latent])[0]
        right = {said: seen[name] == prompt.judged[name] for said, name in FIELDS.items() if name in prompt.judged}
        if all(right.values()):
            first = begin
            break
    return {"prompt": prompt.prompt, "frames": len(i420), "first": first, "right": right}


def judge_frames(arguments: argparse.Namespace) -> int:
    """Judges the frames of a file. Raises ValueError for a mistake of the caller."""
    check_target(arguments.json, ".json")
    if arguments.prompts is None:
        raise ValueError("--frames needs --prompts: what they should show")
    prompts = read_prompts(arguments.prompts)
    watched: Sequence[Frames] = read_frames(arguments.frames, len(prompts))
    config = preset(arguments.preset)
    folder, _, _ = place(config, arguments.weights, arguments.device)
    theia = Theia(config.theia).eval()
    load_component(folder, "theia", theia)
    found = []
    for frames, prompt in zip(watched, prompts, strict=True):
        size = "large" if frames.shape[2] > config.width_px else "small"
        found.append(first_right(theia, frames, prompt, config.with_picture(size), arguments.whole))
    text = json.dumps({"watched": found}, indent=1) + "\n"
    sys.stdout.write(text)
    write_atomically(arguments.json, lambda part: part.write_text(text, encoding="utf-8"))
    return 0
