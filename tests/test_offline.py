import numpy as np
import pytest
from tiny import tiny_model

from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames


@pytest.mark.parametrize("frames", [1, 9, 10, 25, 26, 50])
def test_film_has_the_asked_length(frames: int) -> None:
    """Chunks follow each other without a gap and end with the asked frame."""
    generator = Generator(tiny_model())
    batches = list(generate_frames(generator, generator.open("a red ball", 0, first_frame=7), frames))
    assert sum(batch.frames for batch in batches) == frames
    indices = np.cumsum([7, *(batch.frames for batch in batches)])
    assert [batch.index for batch in batches] == indices[:-1].tolist()


def test_changes_may_come_in_any_order() -> None:
    """Changes take effect by their frames, not by their order."""
    generator = Generator(tiny_model())
    changes = [Change(30, "the sea"), Change(10, "the blue boat")]
    videos = [
        np.concatenate([batch.i420 for batch in generate_frames(generator, generator.open("a red ball", 0), 60, order)])
        for order in (changes, changes[::-1])
    ]
    assert (videos[0] == videos[1]).all()
