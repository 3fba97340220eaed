import numpy as np
import pytest
from tiny import tiny_model

from engine.live.generator import Generator
from engine.live.offline import Change, film


@pytest.mark.parametrize("frames", [1, 9, 10, 25, 26, 50])
def test_film_has_the_asked_length(frames: int) -> None:
    """Chunks follow each other without a gap and end with the asked frame."""
    generator = Generator(tiny_model())
    chunks = list(film(generator, generator.open("a red ball", 0, first_frame=7), frames))
    assert sum(chunk.frames for chunk in chunks) == frames
    indices = np.cumsum([7, *(chunk.frames for chunk in chunks)])
    assert [chunk.index for chunk in chunks] == indices[:-1].tolist()


def test_changes_may_come_in_any_order() -> None:
    """Changes take effect by their frames, not by their order."""
    generator = Generator(tiny_model())
    changes = [Change(30, "the sea"), Change(10, "the blue boat")]
    videos = [
        np.concatenate([chunk.i420 for chunk in film(generator, generator.open("a red ball", 0), 60, order)])
        for order in (changes, changes[::-1])
    ]
    assert (videos[0] == videos[1]).all()
