import numpy as np
import pytest
import torch

from engine.perceptual.frames import to_host


def _video(*pixels: tuple[float, float, float], size: int = 2) -> torch.Tensor:
    """One frame of size x size a pixel: [1, F, 3, size, size]."""
    return torch.tensor(pixels)[None, :, :, None, None].expand(-1, -1, -1, size, size).contiguous()


@pytest.mark.parametrize(
    ("rgb", "yuv"),
    [
        ((-1.0, -1.0, -1.0), (16, 128, 128)),
        ((1.0, 1.0, 1.0), (235, 128, 128)),
        ((1.0, -1.0, -1.0), (81, 90, 240)),
        ((-1.0, 1.0, -1.0), (145, 54, 34)),
        ((-1.0, -1.0, 1.0), (41, 240, 110)),
        ((0.0, 0.0, 0.0), (126, 128, 128)),
        ((5.0, -5.0, -5.0), (81, 90, 240)),
    ],
)
def test_colours_follow_bt601(rgb: tuple[float, float, float], yuv: tuple[int, int, int]) -> None:
    """Corners of the colour cube have the values of the standard; what lies outside is clamped."""
    planes = to_host(_video(rgb))
    assert planes.dtype == np.uint8
    assert planes.tolist() == [[[yuv[0]] * 2, [yuv[0]] * 2, [yuv[1], yuv[2]]]]


def test_planes_lie_one_after_the_other() -> None:
    """Luma keeps every pixel in place; each chroma sample is the mean of its 2x2 pixels, U's plane before V's."""
    video = _video((-1.0, -1.0, -1.0), (-1.0, -1.0, -1.0), size=4).clone()
    video[0, 1, :, 0, 3] = 1.0  # a white pixel in the second frame
    video[0, 1, 2, 3, 0] = 1.0  # and a blue one
    first, second = to_host(video)
    assert (first[:4] == 16).all() and (first[4:] == 128).all()
    luma = np.full((4, 4), 16)
    luma[0, 3], luma[3, 0] = 235, 41
    assert (second[:4] == luma).all()
    assert second[4:].flatten().tolist() == [128, 128, 156, 128, 128, 128, 123, 128]


def test_frames_do_not_touch_each_other() -> None:
    """A frame has the same planes alone and among others."""
    video = torch.rand(1, 5, 3, 6, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = to_host(video)
    assert all((to_host(video[:, index : index + 1])[0] == whole[index]).all() for index in range(5))


@pytest.mark.parametrize("shape", [(1, 1, 3, 3, 4), (1, 1, 3, 4, 3), (2, 1, 3, 4, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    """Odd sizes and batches raise ValueError."""
    with pytest.raises(ValueError):
        to_host(torch.zeros(shape))
