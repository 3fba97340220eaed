"""What subjects look like in latents, drawn from the plan alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.perceptual.mini.sketch import Sketch, SketchConfig
from engine.semantic.world_maps import FEATURE_DIM, TWINS
from engine.training.world import teacher
from tests.tiny import SKETCH

CONFIG = replace(SKETCH, share=1.0)


def _sketch(config: SketchConfig = CONFIG, feature_dim: int = 5) -> Sketch:
    torch.manual_seed(0)
    sketch = Sketch(config, feature_dim)
    torch.nn.init.normal_(sketch.mend.weight, std=0.3)
    return sketch


def _changed(sketch: Sketch, path: Tensor, given: int, frame: int) -> list[bool]:
    """Which new frames another look of `frame` changes."""
    other = path.clone()
    other[:, frame] += 1
    return (sketch(path, given) != sketch(other, given))[0].flatten(1).any(1).tolist()


def test_cells_and_videos_do_not_see_each_other() -> None:
    """Of each latent cell and video the same is drawn as of it alone, opacity last."""
    sketch, path = _sketch(), torch.randn(2, 5, 5, 2, 3)
    whole = sketch(path, 2)
    assert whole.shape == (2, 3, CONFIG.channels + 1, 2, 3)
    torch.testing.assert_close(sketch(path[1:, ..., 1:], 2), whole[1:, ..., 1:])


def test_a_frame_sees_some_back_and_some_ahead() -> None:
    """As many as the configuration says, those that are given among them, none beyond the window."""
    sketch, path = _sketch(), torch.randn(1, 8, 5, 2, 3)
    assert _changed(sketch, path, 3, 0) == [False] * 5
    assert _changed(sketch, path, 3, 1) == [True, False, False, False, False]
    assert _changed(sketch, path, 3, 5) == [False, True, True, True, True]
    assert _changed(sketch, path, 0, 7) == [False] * 6 + [True, True]


def test_beyond_the_window_is_not_a_frame_of_zeros() -> None:
    """A frame that is not there is marked: the first of a video is another than one behind an empty plan."""
    sketch, path = _sketch(), torch.randn(1, 2, 5, 2, 3)
    behind = torch.cat([torch.zeros(1, 2, 5, 2, 3), path], dim=1)
    assert not torch.allclose(sketch(path, 0), sketch(behind, 2), atol=1e-3)


def test_even_frames_look_otherwise_than_odd_ones() -> None:
    """Where nothing moves every second frame is the same, and those between are not: a beat is two latents long."""
    sketch = _sketch()
    drawn = sketch(torch.randn(1, 1, 5, 2, 3).expand(1, 9, 5, 2, 3), 3)[0]
    torch.testing.assert_close(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)


def test_an_unmended_way_is_the_plans() -> None:
    """A new sketch takes ways as they are planned: what is around a frame and the one before it changes nothing."""
    sketch, path = Sketch(CONFIG, feature_dim=5), torch.randn(1, 6, 5, 2, 3)
    assert _changed(sketch, path, 2, 3) == [False, True, True, False]


@pytest.mark.parametrize("fields", [{"back": 0}, {"ahead": -1}])
def test_a_sketch_sees_the_frame_before(fields: dict[str, int]) -> None:
    """Without one, or with less than none ahead, it is refused with both numbers."""
    with pytest.raises(ValueError, match=r"back -?\d+ .* ahead -?\d+"):
        SketchConfig(**fields)


def test_opacity_is_a_share() -> None:
    """The last channel stays between 0 and 1; at the teacher's start it says how much of a cell counts as subjects'."""
    sketch = _sketch()
    sketch.opacity.weight.data *= 30
    opacity = sketch(torch.randn(1, 2, 5, 2, 3), 0)[:, :, -1]
    assert opacity.min() == 0 and opacity.max() == 1
    weights, maps = teacher.opacity_weights(), torch.rand(teacher.FEATURE_DIM, 4)
    torch.testing.assert_close(weights @ maps, teacher.covered(maps[..., None])[..., 0] / teacher.WHOLE)


def test_a_share_of_the_cells_is_drawn() -> None:
    """The most opaque ones of each frame, as if all were drawn; elsewhere, and where nothing is opaque, is nothing."""
    path = torch.randn(2, 5, 5, 4, 6)
    every, some = _sketch()(path, 2), _sketch(replace(CONFIG, share=0.25))(path, 2)
    opacity = _sketch().opacity(path[:, 2:].flatten(0, 1)).view(2, 3, 1, 4, 6)
    least = opacity.flatten(2).topk(6).values[..., -1, None, None, None]
    torch.testing.assert_close(some[:, :, :-1], every[:, :, :-1] * (opacity >= least))
    torch.testing.assert_close(some[:, :, -1], every[:, :, -1])
    assert (every[:, :, :-1] != 0).equal((opacity > 0).expand_as(every[:, :, :-1]))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    """With the number."""
    with pytest.raises(ValueError, match=rf"share {share} of the cells"):
        replace(CONFIG, share=share)


def test_both_subjects_are_drawn_alike() -> None:
    """Which one is called the first changes no cell, not even where it moves and where one of them covers little."""
    sketch = _sketch(replace(CONFIG, twins=TWINS), FEATURE_DIM)
    sketch.opacity.weight.data[:] = teacher.opacity_weights()[None, :, None, None]
    path = torch.rand(1, 5, FEATURE_DIM, 4, 6)
    other = path.clone()
    for first, second, count in TWINS:
        other[:, :, first : first + count] = path[:, :, second : second + count]
        other[:, :, second : second + count] = path[:, :, first : first + count]
    torch.testing.assert_close(sketch(path, 2), sketch(other, 2))
    unlike = _sketch(CONFIG, FEATURE_DIM)
    unlike.opacity.weight.data[:] = teacher.opacity_weights()[None, :, None, None]
    assert not torch.allclose(unlike(path, 2), unlike(other, 2), atol=1e-2)
