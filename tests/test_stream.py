"""Videos as RGB frames for Python programs."""

import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from tiny import tiny_model

import engine
from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames
from engine.video.stream import VideoGenerator
from engine.video.video_file import to_rgb


@pytest.fixture(scope="module")
def generator() -> VideoGenerator:
    return VideoGenerator(tiny_model())


def test_mini_yields_pictures_of_its_prompt() -> None:
    """Two seconds of a red ball over green hills are RGB frames with much red and green in them."""
    frames = np.stack(list(islice(engine.load("mini", device="cpu").stream("a red ball over green hills", seed=1), 16)))
    assert frames.shape == (16, 128, 192, 3) and frames.dtype == np.uint8
    red, green, blue = np.moveaxis(frames.astype(int), -1, 0)
    assert (red - green > 100).mean() > 0.02 and (green - blue > 30).mean() > 0.1


def test_seeds_are_whole_numbers(generator: VideoGenerator) -> None:
    """Of any library: 1 of numpy is 1. What is no seed, or no prompt, is refused in words."""
    first, same = (next(generator.stream("a red ball", seed)) for seed in (1, np.int64(1)))
    assert np.array_equal(first, same)
    for wrong in (True, 1.0, "1", None, -1, 1 << 32):
        with pytest.raises(ValueError, match=f"seed {wrong!r} is not a whole number"):
            generator.stream("a red ball", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the prompt is None, and no text"):
        generator.stream(None)  # type: ignore[arg-type]


def test_a_stream_has_the_frames_of_a_file(generator: VideoGenerator) -> None:
    """Frames equal those of `generate` with the same seed, and with the same prompt from the chunk after a change."""
    stream = generator.stream("a red ball", seed=3)
    frames = list(islice(stream, 20))
    stream.change("the blue sea")
    frames += islice(stream, 40)
    own = Generator(tiny_model())
    batches = generate_frames(own, own.open("a red ball", 3), 60, [Change(20, "the blue sea")])
    expected = [to_rgb(planes) for batch in batches for planes in batch.i420]
    assert all(np.array_equal(one, other) for one, other in zip(frames, expected, strict=True))


def test_streams_do_not_disturb_each_other(generator: VideoGenerator) -> None:
    """Two streams of one generator, read in turns, have the frames that each has alone."""
    alone = [list(islice(generator.stream(prompt), 30)) for prompt in ("a red ball", "the sea")]
    both = zip(*(generator.stream(prompt) for prompt in ("a red ball", "the sea")), strict=False)
    for number, pair in enumerate(islice(both, 30)):
        assert all(np.array_equal(frame, frames[number]) for frame, frames in zip(pair, alone, strict=True))


def test_bad_prompts_and_seeds_are_refused(generator: VideoGenerator) -> None:
    """What the server would refuse raises ValueError at once, and the stream goes on."""
    with pytest.raises(ValueError, match="seed -1"):
        generator.stream("a red ball", seed=-1)
    with pytest.raises(ValueError, match="empty"):
        generator.stream(" ")
    for steps in (0, 2.5, 10**6):
        with pytest.raises(ValueError, match=f"steps {steps}"):
            VideoGenerator(tiny_model(), steps)  # type: ignore[arg-type]
    stream = generator.stream("a red ball")
    with pytest.raises(ValueError, match="empty"):
        stream.change("")
    assert next(stream).shape == (32, 48, 3)
    with pytest.raises(ValueError, match="no preset"):
        engine.load("huge")


def test_importing_the_package_imports_no_torch() -> None:
    """The server process imports the package, and has no torch."""
    subprocess.run([sys.executable, "-c", "import engine, sys; assert 'torch' not in sys.modules"], check=True)
