"""`python -m engine.training gallery DIR`: animated pictures of what a preset makes, for the README.

The captions are held out, drawn in order from a fixed seed; video number n has seed n. None is picked.
Shapes: `F` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from engine.config import preset
from engine.live.generator import Generator
from engine.live.offline import Change, film
from engine.loading.model import load, pick_device, pick_dtype, use_cores, weights_folder
from engine.training.run import write_atomically
from engine.training.world import judge as judging
from engine.training.world.captions import caption, random_label

log = logging.getLogger(__name__)

VIDEOS = 6  # seeds 0 to 5
COLUMNS = 3
TEXT_PX = 34  # under a video, three lines
WORDS_WIDTH = 40  # letters in a line
QUALITY = 80  # of WebP


@dataclass(frozen=True, slots=True)
class Kind:
    """One picture of the gallery. All numbers are of seconds; a change of prompt comes at `change`."""

    name: str
    length: float
    shown: float  # at the end
    change: float | None = None


KINDS = (Kind("short", 6, 6), Kind("change", 12, 12, 4), Kind("long", 120, 6))


@dataclass(frozen=True, slots=True)
class Video:
    """One tile: what is shown of a video, and the prompt of each of its frames."""

    frames: Tensor  # uint8 [F, 3, H, W]
    prompts: tuple[str, ...]


def prompts() -> list[tuple[str, str]]:
    """For every video a held-out caption, and another that it may change to."""
    rng = random.Random("gallery")

    def draw() -> str:
        return caption(random_label(rng, held_out=True), rng)

    return [(draw(), draw()) for _ in range(VIDEOS)]


def video(generator: Generator, kind: Kind, words: tuple[str, str], seed: int) -> Video:
    """Makes a video and keeps its end."""
    fps = generator.model.config.fps
    total, shown = round(kind.length * fps), round(kind.shown * fps)
    changes = [] if kind.change is None else [Change(round(kind.change * fps), words[1])]
    channel = generator.open(words[0], seed)
    parts: list[Tensor] = []
    spoken: list[str] = []
    for chunk in film(generator, channel, total, changes):
        parts.append(judging.to_rgb(chunk.i420))
        spoken.extend([channel.prompt] * len(parts[-1]))
        # A long video does not stay in memory.
        while sum(map(len, parts[1:])) >= shown:
            del spoken[: len(parts.pop(0))]
    return Video(torch.cat(parts)[-shown:], tuple(spoken[-shown:]))


def tiles(videos: Sequence[Video]) -> Iterator[Image.Image]:
    """All videos side by side, frame by frame, each over its prompt."""
    height, width = videos[0].frames.shape[-2:]
    rows = -(-len(videos) // COLUMNS)
    for number in range(len(videos[0].frames)):
        picture = Image.new("RGB", (COLUMNS * width, rows * (height + TEXT_PX)), "white")
        pen = ImageDraw.Draw(picture)
        for place, shown in enumerate(videos):
            left, top = place % COLUMNS * width, place // COLUMNS * (height + TEXT_PX)
            picture.paste(Image.fromarray(shown.frames[number].permute(1, 2, 0).numpy()), (left, top))
            words = textwrap.fill(shown.prompts[number], WORDS_WIDTH)
            pen.multiline_text((left + 3, top + height), words, "black", spacing=1, font_size=9)
        yield picture


def write(path: Path, videos: Sequence[Video], fps: float) -> None:
    """An endlessly repeating WebP, whole or not at all."""
    first, *rest = tiles(videos)

    def put(part: Path) -> None:
        step_ms = round(1000 / fps)
        first.save(part, "WEBP", save_all=True, append_images=rest, duration=step_ms, loop=0, quality=QUALITY, method=6)

    write_atomically(path, put)


def main(argv: Sequence[str] | None = None) -> int:
    """Makes all kinds; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m engine.training gallery", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="write the pictures there")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--weights", metavar="DIR", help="weights (default: those that come with the preset)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_cores()
    try:
        if not arguments.folder.is_dir():
            raise ValueError(f"{arguments.folder} is no folder: make it first")
        config, device = preset(arguments.preset), pick_device(arguments.device)
        generator = Generator(load(config, weights_folder(config, arguments.weights), device, pick_dtype(device)))
        words = prompts()
        for kind in KINDS:
            numbered = tqdm(words, kind.name, unit="video")
            made = [video(generator, kind, both, seed) for seed, both in enumerate(numbered)]
            write(arguments.folder / f"{kind.name}.webp", made, config.fps)
    except (ValueError, OSError) as error:
        log.error("gallery: %s", error)
        return 2
    return 0
