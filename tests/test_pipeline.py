"""The callable in the habit of diffusers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_output import CogVideoXPipelineOutput
from diffusers.utils import BaseOutput
from PIL import Image
from tiny import tiny_model

import engine
from engine import LanDiffPipeline
from engine.loading.weights import SHIPPED
from engine.video.stream import VideoGenerator

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    made = engine.LanDiffPipeline(tiny_model())
    made.set_progress_bar_config(disable=True)
    return made


def test_the_record_is_that_of_diffusers(pipeline: Any) -> None:
    """`frames` can be had by name, by key and by place; without return_dict there is a tuple."""
    output = pipeline("a red ball", num_frames=5, seed=1)
    assert isinstance(output, CogVideoXPipelineOutput) and isinstance(output, BaseOutput)
    assert output.frames is output["frames"] is output[0]
    (frames,) = pipeline("a red ball", num_frames=5, seed=1, return_dict=False)
    assert np.array_equal(frames, output.frames)


def test_frames_are_those_of_a_stream(pipeline: Any) -> None:
    """A seed means what it means elsewhere; the number of frames need not be that of chunks."""
    frames = pipeline(["a red ball", "the sea"], num_frames=30, seed=3).frames
    assert frames.shape == (2, 30, 32, 48, 3) and frames.dtype == np.float32
    assert 0 <= frames.min() and frames.max() <= 1
    for video, prompt, seed in zip(frames, ("a red ball", "the sea"), (3, 4), strict=True):
        stream = VideoGenerator(tiny_model()).stream(prompt, seed)
        for picture in video:
            assert np.array_equal(np.round(picture * 255), next(stream))


def test_output_types_hold_the_same_video(pipeline: Any) -> None:
    """numpy [B, F, H, W, 3], torch [B, F, 3, H, W], both 0 to 1, and lists of PIL images."""
    array, tensor, lists = (
        pipeline("the sea", num_frames=4, seed=0, output_type=kind).frames for kind in ("np", "pt", "pil")
    )
    assert tensor.shape == (1, 4, 3, 32, 48) and tensor.dtype == torch.float32
    assert np.array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), array)
    assert len(lists) == 1 and len(lists[0]) == 4 and isinstance(lists[0][0], Image.Image)
    assert lists[0][0].size == (48, 32)
    assert np.array_equal(np.stack(lists[0]), np.round(array[0] * 255))


def test_a_generator_draws_the_seeds(pipeline: Any) -> None:
    """The same state gives the same video, the next call another; a list has one for each prompt."""

    def made(generator: Any, prompt: Any = "the sea") -> Any:
        return pipeline(prompt, num_frames=2, generator=generator).frames

    generator = torch.Generator().manual_seed(5)
    first, second = made(generator), made(generator)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, made(torch.Generator().manual_seed(5)))
    both = made([torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)], ["the sea", "the sea"])
    assert np.array_equal(both[0], first[0]) and np.array_equal(both[1], first[0])
    torch.manual_seed(9)
    drawn = made(None)
    torch.manual_seed(9)
    assert np.array_equal(drawn, made(None))


def test_steps_belong_to_a_call(pipeline: Any) -> None:
    """More steps give another video, and leave the next call as it was."""
    before = pipeline("the sea", num_frames=2, seed=0).frames
    other = pipeline("the sea", num_frames=2, seed=0, num_inference_steps=4).frames
    assert not np.array_equal(before, other)
    assert np.array_equal(before, pipeline("the sea", num_frames=2, seed=0).frames)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": " "}, "empty"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": ["the sea", "x" * 3000]}, "3000 characters"),
        ({"num_frames": 0}, "num_frames 0 "),
        ({"num_frames": 2.5}, "num_frames 2.5 "),
        ({"num_frames": True}, "num_frames True "),
        ({"num_inference_steps": 0}, "num_inference_steps 0 "),
        ({"num_inference_steps": 10**6}, "1000000"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1 << 32}, "4294967296"),
        ({"seed": 1, "generator": torch.Generator()}, "leave one out"),
        ({"generator": [torch.Generator()] * 2}, "2 generators"),
        ({"output_type": "latent"}, "np, pil, pt"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_refused(pipeline: Any, arguments: dict[str, Any], words: str) -> None:
    """One line names the value and the cure."""
    with pytest.raises(ValueError, match=words) as caught:
        pipeline(**({"prompt": "the sea"} | arguments))
    assert "\n" not in str(caught.value)


def test_from_pretrained_takes_what_there_is(tmp_path: Path) -> None:
    """A folder says its preset itself; the shipped one has a name; others are refused in one line."""
    by_folder, by_name = (LanDiffPipeline.from_pretrained(where, "cpu") for where in (SHIPPED / "mini", "mini"))
    assert by_folder.config == by_name.config and by_name.fps == 8.0
    for folder, words in (
        (tmp_path, "holds no weights"),
        (tmp_path / "none", "neither a folder nor a hub id"),
        ("landiff", "comes without weights"),
    ):
        with pytest.raises(ValueError, match=words):
            LanDiffPipeline.from_pretrained(folder)
    (tmp_path / "config.json").write_text('{"format": 1, "preset": "huge", "made_by": "x"}')
    with pytest.raises(ValueError, match="huge"):
        LanDiffPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("document", ["README.md", "docs/PYTHON.md"])
def test_code_of_documents_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a document runs as it stands there, from top to bottom, and writes the files that it names."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, document, "exec"), names)
    for name in re.findall(r'"(\w+\.(?:webp|mp4))"', "".join(blocks)):
        assert Path(name).stat().st_size > 1000
