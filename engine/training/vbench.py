"""Videos under the names that the public VBench tool looks for: `PROMPT-INDEX.mp4`, five a prompt, in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from engine.live.generator import Generator
from engine.live.offline import film
from engine.video.video_file import VideoFile
from engine.wire.prompt import check_prompt

FRAMES = 49  # of every video, about 6 s
SAMPLES = 5  # of every prompt, as the tool's instructions say
FLICKER_SAMPLES = 25  # of a prompt that its list has for temporal flickering
NAME_BYTES = 255  # longest file name


def read_prompts(path: Path) -> list[tuple[str, int]]:
    """Prompts, each once, with how many videos of it the tool wants.

    Args:
        path: a text file with one prompt a line, or the tool's own `VBench_full_info.json`.

    Raises:
        ValueError: if it cannot be read, holds no prompts, or a prompt cannot be part of a file name.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a UTF-8 list of prompts: {error}") from error
    wanted: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            prompt = (entry["prompt_en"] if path.suffix == ".json" else entry).strip()
            flickers = path.suffix == ".json" and "temporal_flickering" in entry["dimension"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: entry {number} has no prompt_en and dimension") from error
        if not prompt:
            continue
        _check(path, number, prompt)
        wanted[prompt] = max(wanted.get(prompt, 0), FLICKER_SAMPLES if flickers else SAMPLES)
    if not wanted:
        raise ValueError(f"{path} holds no prompts: give one a line")
    return list(wanted.items())


def _check(path: Path, number: int, prompt: str) -> None:
    try:
        check_prompt(prompt)
    except ValueError as error:
        raise ValueError(f"{path}: prompt {number}: {error}") from error
    if "/" in prompt or len(f".{name(prompt, FLICKER_SAMPLES)}.0000000.part".encode()) > NAME_BYTES:
        raise ValueError(f"{path}: prompt {number} cannot be part of a file name, as VBench wants it: {prompt[:60]!r}")


def name(prompt: str, index: int) -> str:
    """File name of a video."""
    return f"{prompt}-{index}.mp4"


def write_videos(generator: Generator, prompts: Sequence[tuple[str, int]], folder: Path, seed: int) -> int:
    """Writes every video that is not there yet, sample `index` with the seed `seed` + index; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    config, written = generator.model.config, 0
    with tqdm(total=sum(count for _, count in prompts), unit="video", desc=folder.name) as bar:
        for prompt, count in prompts:
            for index in range(count):
                path = folder / name(prompt, index)
                if not path.exists():
                    with VideoFile(path, config.width_px, config.height_px, config.fps) as file:
                        for chunk in film(generator, generator.open(prompt, seed + index), FRAMES):
                            file.write(chunk.i420)
                    written += 1
                bar.update()
    return written
