"""RGB to I420 planes against the reference."""

import pytest
import torch
from tolerances import DEVICE, DTYPES, fused, normal

from kernels import planes

COLOURS = {"white": (235, 128, 128), "black": (16, 128, 128), "red": (81, 90, 240), "beyond": (235, 128, 128)}
LEVELS = {"white": (1, 1, 1), "black": (-1, -1, -1), "red": (1, -1, -1), "beyond": (7, 3, 2)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 10, 14), (2, 62, 100)], ids=str)
def test_rgb_to_i420(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """rgb_to_i420 equals its reference to the last step in all but rare ties, from a strided view."""
    frames, height, width = shape
    rgb = (normal(frames, 3, height, width + 3, dtype=dtype)[..., :width] * 0.7).transpose(0, 1)
    result, expected = fused(planes.rgb_to_i420, rgb), planes.rgb_to_i420_reference(rgb)
    assert result.dtype == torch.uint8
    assert result.shape == (frames, height * 3 // 2, width)
    apart = (result.int() - expected.int()).abs()
    assert int(apart.max()) <= 1
    assert float(apart.float().mean()) < 1e-3


def test_channels_last_is_read_as_it_lies() -> None:
    """A picture whose channels lie side by side gives the same planes as a dense one."""
    rgb = normal(2, 10, 14, 3).permute(3, 0, 1, 2)
    assert torch.equal(fused(planes.rgb_to_i420, rgb), fused(planes.rgb_to_i420, rgb.contiguous()))


def test_autocast_changes_nothing() -> None:
    """The reference's sums are products, which stay in float32 where others around it are not."""
    rgb = normal(3, 2, 32, 48) * 0.7
    with torch.autocast(DEVICE.type, torch.bfloat16):
        inside = planes.rgb_to_i420_reference(rgb)
    assert torch.equal(inside, planes.rgb_to_i420_reference(rgb))


@pytest.mark.parametrize("name", COLOURS)
def test_known_colours(name: str) -> None:
    """Pure colours have the values that the BT.601 limited range gives them; values beyond the range are clamped."""
    rgb = torch.tensor(LEVELS[name], dtype=torch.float32, device=DEVICE)[:, None, None, None].expand(3, 1, 4, 4)
    picture = fused(planes.rgb_to_i420, rgb.contiguous()).flatten()
    luma, cb, cr = COLOURS[name]
    assert picture.tolist() == [luma] * 16 + [cb] * 4 + [cr] * 4


def test_refuses_wrong_operands() -> None:
    """Odd sizes, other channel counts and integers are named before anything runs."""
    with pytest.raises(ValueError, match="even height and width, not 3x4"):
        planes.rgb_to_i420(normal(3, 1, 3, 4))
    with pytest.raises(ValueError, match=r"rgb must have shape \(3, 1, 4, 4\)"):
        planes.rgb_to_i420(normal(4, 1, 4, 4))
    with pytest.raises(ValueError, match="rgb must be"):
        planes.rgb_to_i420(normal(3, 1, 4, 4).to(torch.uint8))


def test_the_inverse_gives_the_colours_back() -> None:
    """Flat colours come back from their planes within what 8 bits allow."""
    colours = torch.rand(3, 50, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    made = planes.rgb_to_i420_reference((colours * 2 - 1)[:, :, None, None].expand(3, 50, 4, 4))
    luma, cb, cr = (made.flatten(1)[:, place].float() for place in (0, 16, 20))
    luma, cb, cr = (luma - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    back = torch.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb])
    assert float((back - colours).abs().max()) < 0.01
