"""Videos that go on from drawn clips: what the first two chunks still show, and whether the seam shows.

The *seam* is the change from the clip's last picture to the first frame; the changes inside are those from frame to
frame but for that between the two chunks. Shapes: `F` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engine.bench.report import table
from engine.config import EngineConfig
from engine.live.generator import Generator
from engine.live.offline import generate_frames
from engine.live.start import Starter, most_pictures
from engine.perceptual.frames import to_planes
from engine.semantic import reading
from engine.semantic.theia import Theia
from engine.training.world import drawing, judge
from engine.training.world.captions import Label, caption, random_label

CHUNKS = 2  # that are judged
WORDS = ("subject", "colour", "scene")  # that a clip decides, whatever happens next


def evaluate_starts(generator: Generator, theia: Theia, clips: int, seed: int) -> dict[str, Any]:
    """Figures of so many held-out clips of 6 s, each with its caption as prompt."""
    rng, starter = random.Random(f"starts {seed}"), Starter(generator)
    rows: list[dict[str, Any]] = []
    for number in tqdm(range(clips), unit="clip"):
        label = random_label(rng, held_out=True)
        clip = _clip(label, rng, most_pictures(generator.model.config))
        prompt = caption(label, rng)
        state = starter.begin(clip.permute(0, 2, 3, 1).numpy(), prompt, seed + number)
        batches = generate_frames(generator, state, CHUNKS * generator.model.config.chunk_frames)
        video = torch.cat([judge.to_rgb(batch.i420) for batch in batches])
        right = judge.right(reading.read(judge.features(theia, video))[0], label)
        seam, later, inside = _changes(clip, video, generator.model.config)
        rows.append({"prompt": prompt, "right": right, "seam": seam, "later_seam": later, "inside": inside})
    return {
        **judge.shares([row["right"] for row in rows]),
        "kept": judge.share([row["right"][word] for row in rows for word in WORDS]),
        "all_kept": judge.share([all(row["right"][word] for word in WORDS) for row in rows]),
        "seam_ratio": judge.ratio([row["seam"] for row in rows], [row["inside"] for row in rows]),
        "later_seam_ratio": judge.ratio([row["later_seam"] for row in rows], [row["inside"] for row in rows]),
        "clips": rows,
    }


def _clip(label: Label, rng: random.Random, frames: int) -> Tensor:
    """A true video, uint8 [F, 3, H, W]."""
    return drawing.draw(drawing.sample([label], rng), torch.arange(frames)[None])[0]


def _changes(clip: Tensor, video: Tensor, config: EngineConfig) -> tuple[float, float, float]:
    """Mean changes in levels of 255: at the seam behind the clip, at the next one, and at all other frames."""
    # As a viewer gets it: else the colours' lower resolution, which all frames have, would count as a seam.
    last = judge.to_rgb(to_planes(clip[None, -1:].float() / 127.5 - 1).numpy())
    changes = judge.change_of_frames(torch.cat([last, video]))
    later = config.chunk_frames
    inside = torch.cat([changes[1:later], changes[later + 1 :]])
    return float(changes[0]), float(changes[later]), float(inside.mean())


def starts_markdown(found: dict[str, Any]) -> str:
    """The figures as a table."""
    rows = [
        (name.replace("_", " "), f"{value[first]:.3f} ± {value['half_width_95']:.3f} (n = {value['n']})")
        for name, value in found.items()
        if isinstance(value, dict) and (first := next(iter(value))) in ("share", "ratio")
    ]
    return table(["figure", "measured"], rows) + "\n"
