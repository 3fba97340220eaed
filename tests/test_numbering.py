import pytest

from streaming.bench.numbering import Numbered, _numbers

FPS = 8.0


def numbers(*placed: tuple[float, int]) -> tuple[int, int]:
    """Missing and wrong ones of frames, each with its place in periods and its number."""
    return _numbers([Numbered(place / FPS, number) for place, number in placed], FPS)


def test_frames_in_order_are_all_there() -> None:
    """A picture that stands, one that is sent again in between, and a clock that slips are no fault of the numbers."""
    assert numbers(*((n, n) for n in range(20))) == (0, 0)
    assert numbers((0, 0), (1, 1), (1.6, 1), (2, 2), (3, 2), (4, 3), (7.4, 4)) == (0, 0)


def test_frames_that_a_cut_replaced_are_not_missing() -> None:
    """Their numbers are given again: what comes goes on behind what was on air."""
    assert numbers((0, 10), (1, 11), (2, 12), (3, 12), (4, 13), (5, 14)) == (0, 0)


def test_frames_that_were_not_sent_are_missing() -> None:
    """While a viewer's bit rate changes, some are withheld; a key frame between two periods may be the next."""
    assert numbers((0, 0), (1, 1), (5, 5), (6, 6)) == (3, 0)
    assert numbers((0, 0), (1, 1), (1.6, 1), (4, 4)) == (2, 0)
    assert numbers((0, 0), (1.6, 1), (4, 4)) == (2, 0)


@pytest.mark.parametrize("place", [0, 6, 11])
@pytest.mark.parametrize("off", [-3000, -2, 2, 40])
def test_one_wrong_number_is_wrong_and_nothing_is_missing(place: int, off: int) -> None:
    """However far off it is, at the beginning, in the middle and at the end."""
    assert numbers(*((n, 3000 + n + (off if n == place else 0)) for n in range(12))) == (0, 1)


def test_numbers_that_go_on_elsewhere_are_wrong_once() -> None:
    """A jump is one wrong number, and what follows it is counted from there; what is missing then, too."""
    ahead = [(n, n if n < 6 else n + 100) for n in range(12) if n != 9]
    assert numbers(*ahead) == (1, 1)
    back = [(n, n + 100 if n < 6 else n) for n in range(12)]
    assert numbers(*back) == (0, 1)


def test_a_missing_frame_beside_a_wrong_number_is_missing() -> None:
    """One does not hide the other."""
    assert numbers(*((n, 50 if n == 3 else n) for n in range(12) if n != 8)) == (1, 1)
