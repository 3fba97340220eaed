"""The gallery: what is shown of a video, and what the files hold."""

from pathlib import Path

import pytest
from PIL import Image

from engine.live.generator import Generator
from engine.training import gallery
from tests.tiny import tiny_model


def test_the_end_of_a_video_is_shown_under_its_prompts() -> None:
    """As many frames as asked for, those after the change under the new prompt, and the same again for a seed."""
    generator = Generator(tiny_model())
    kind = gallery.Kind("change", 8, 4, 5)
    made = gallery.video(generator, kind, ("a red ball", "a blue car"), 3)
    assert len(made.frames) == len(made.prompts) == 4 * generator.model.config.fps
    change = made.prompts.index("a blue car")
    assert set(made.prompts[:change]) == {"a red ball"} and set(made.prompts[change:]) == {"a blue car"}
    whole = gallery.video(generator, gallery.Kind("whole", 8, 8, 5), ("a red ball", "a blue car"), 3)
    assert (whole.frames[-len(made.frames) :] == made.frames).all()


def test_files_hold_every_frame_and_repeat(tmp_path: Path) -> None:
    """A WebP of all frames, six videos side by side, that never stops."""
    made = gallery.video(Generator(tiny_model()), gallery.Kind("short", 2, 2), ("a red ball", ""), 0)
    gallery.write(tmp_path / "short.webp", [made] * gallery.VIDEOS, 8.0)
    with Image.open(tmp_path / "short.webp") as picture:
        height, width = made.frames.shape[-2:]
        assert picture.size == (3 * width, 2 * (height + gallery.TEXT_PX))
        assert (picture.n_frames, picture.info["loop"]) == (16, 0)  # type: ignore[attr-defined]
    assert [path.name for path in tmp_path.iterdir()] == ["short.webp"]


def test_prompts_are_held_out_and_always_the_same() -> None:
    """Six pairs of captions that name a scene each, equal in every run."""
    words = gallery.prompts()
    assert words == gallery.prompts() and len(words) == gallery.VIDEOS
    assert len({text for pair in words for text in pair}) == 2 * gallery.VIDEOS


def test_a_missing_folder_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder is named before anything is made."""
    assert gallery.main([str(tmp_path / "none")]) == 2
    assert "none is no folder" in caplog.text
