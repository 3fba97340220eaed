import numpy as np
import numpy.typing as npt
import pytest

from streaming.bench.change import COLUMNS, ROWS, Seen, first_change, sketch

HEIGHT, WIDTH, FPS = 128, 192, 8.0
SENT_S = 10.0


def ball(place: float, sky: int = 90, chroma: int = 128) -> npt.NDArray[np.uint8]:
    """A picture [3H/2, W] with a bright square at a place between 0 and 1."""
    picture = np.full((HEIGHT * 3 // 2, WIDTH), sky, np.uint8)
    picture[HEIGHT:] = chroma
    left = int(place * (WIDTH - 40))
    picture[60:100, left : left + 40] = 220
    return picture


def watched(*pictures: npt.NDArray[np.uint8], noise: float = 1.0) -> list[Seen]:
    draw = np.random.default_rng(3)
    frames = []
    for number, picture in enumerate(pictures):
        noisy = np.clip(picture + draw.normal(0, noise, picture.shape), 0, 255).astype(np.uint8)
        frames.append(Seen(number / FPS, sketch(noisy)))
    return frames


def swinging(seconds: float, **look: int) -> list[npt.NDArray[np.uint8]]:
    """A ball that goes to and fro in 4 s."""
    return [ball(abs(number / FPS % 4 - 2) / 2, **look) for number in range(round(seconds * FPS))]


@pytest.mark.parametrize("size", [(64, 64), (128, 192), (130, 186), (480, 720)])
def test_a_sketch_has_the_mean_colours_of_a_grid(size: tuple[int, int]) -> None:
    """Its length does not depend on the size of the picture, nor do its values."""
    height, width = size
    picture = np.full((height * 3 // 2, width), 50, np.uint8)
    picture[: height // 2] = 100
    picture[height:] = 130
    found = sketch(picture).reshape(3, ROWS, COLUMNS)
    assert found[0, 0, 0] == pytest.approx(100) and found[0, -1, -1] == pytest.approx(50)
    assert found[1:] == pytest.approx(130)


def test_lines_of_a_marker_are_left_out() -> None:
    """What a marker shows does not make a picture new."""
    plain, marked = ball(0.2), ball(0.2)
    marked[:32] = 235
    marked[HEIGHT : HEIGHT + 8] = 40
    assert sketch(plain, 32) == pytest.approx(sketch(marked, 32), abs=8)
    assert abs(sketch(plain) - sketch(marked)).max() > 50


def test_motion_alone_is_no_change() -> None:
    """A ball that goes on swinging is what it was, however noisy."""
    assert first_change(watched(*swinging(20), noise=4.0), SENT_S) is None


@pytest.mark.parametrize("look", [{"sky": 120}, {"chroma": 150}, {"sky": 60, "chroma": 120}])
def test_another_picture_is_seen_when_it_comes(look: dict[str, int]) -> None:
    """Another light or colour, some time after it was asked for, is seen in its first frame."""
    seen = watched(*swinging(13), *swinging(7, **look))
    assert first_change(seen, SENT_S) == 13.0


def test_a_change_that_creeps_in_is_seen_when_it_exceeds_the_motion() -> None:
    """From one sky to another within 4 s: somewhere in between."""
    creeping = [ball(abs(number / FPS % 4 - 2) / 2, sky=90 + number) for number in range(32)]
    found = first_change(watched(*swinging(12), *creeping, *swinging(4, sky=122)), SENT_S)
    assert found is not None and 12.0 < found < 15.0


def test_one_odd_frame_is_no_change() -> None:
    """A flash is not what was asked for."""
    flash = swinging(20)
    flash[110] = ball(0.5, sky=200)
    assert first_change(watched(*flash), SENT_S) is None


def test_without_frames_nothing_is_seen() -> None:
    """Neither before the request, where the motion shows, nor behind it."""
    seen = watched(*swinging(10))
    assert first_change(seen, 20.0) is None
    assert first_change(seen, 0.1) is None
