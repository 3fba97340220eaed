"""Reading labels back from features."""

import random

import pytest
import torch

from engine.config import FRAMES_PER_LATENT
from engine.semantic import reading, world_maps
from engine.training.world import drawing, judge, teacher
from engine.training.world.captions import random_label


def test_maps_come_as_latents_do() -> None:
    """One for every latent frame, by which movements are measured."""
    assert world_maps.FRAMES_PER_MAP == FRAMES_PER_LATENT


def test_true_features_are_read_rightly() -> None:
    """On the world's own maps every word of 200 labels is found (the detectors' proof of themselves)."""
    rng = random.Random(0)
    labels = [random_label(rng, held_out=rng.random() < 0.5) for _ in range(200)]
    maps = teacher.maps(drawing.sample(labels, rng), torch.arange(0, 52, 4).expand(200, -1))
    right = [judge.right(seen, label) for seen, label in zip(reading.read(maps), labels, strict=True)]
    assert sum(all(words.values()) for words in right) / len(right) >= 0.99


def test_a_wrong_word_is_counted() -> None:
    """A video read under another's label is not right."""
    rng = random.Random(1)
    labels = [random_label(rng) for _ in range(40)]
    maps = teacher.maps(drawing.sample(labels, rng), torch.arange(0, 52, 4).expand(40, -1))
    others = zip(reading.read(maps), labels[1:] + labels[:1], strict=True)
    assert sum(all(judge.right(seen, label).values()) for seen, label in others) / len(labels) < 0.2


def test_the_path_survives_the_edge() -> None:
    """Leaving on one side and coming back on the other is one movement."""
    x = torch.tensor([180.0, 200.0, 211.0, -9.0, 11.0])
    middles = torch.stack([x, torch.full_like(x, 64.0)], dim=-1)[None]
    velocity = reading.movement(middles, torch.ones(1, 5, dtype=torch.bool))
    assert velocity[0, 0] == pytest.approx(3.75, abs=1.2)
    assert reading.words((float(velocity[0, 0]), 0.0))[0] == "right"


def test_an_unseen_subject_has_no_direction() -> None:
    """Nothing is claimed of what was not measured."""
    velocity = reading.movement(torch.zeros(1, 5, 2), torch.zeros(1, 5, dtype=torch.bool))
    assert reading.words((float(velocity[0, 0]), float(velocity[0, 1]))) == (None, None)
