import pickle

import pytest

from engine.wire.settings import SEED_LIMIT, ChannelSettings, ChannelStart, EngineSettings


def test_settings_survive_the_pipe() -> None:
    """They can be pickled, and have no room for anything else."""
    for settings in (EngineSettings("mini"), ChannelSettings("a red ball", 3, 2, ChannelStart(97, 4))):
        assert pickle.loads(pickle.dumps(settings)) == settings
        assert not hasattr(settings, "__dict__")


@pytest.mark.parametrize(("seed", "steps", "word"), [(-1, None, "seed"), (SEED_LIMIT, None, "seed"), (0, 0, "steps")])
def test_bad_channels_are_refused(seed: int, steps: int | None, word: str) -> None:
    """Numbers out of range raise ValueError that names them."""
    with pytest.raises(ValueError, match=word):
        ChannelSettings("a red ball", seed, steps)


@pytest.mark.parametrize("start", [(-1, 0), (0, -1)])
def test_videos_begin_at_nought_or_later(start: tuple[int, int]) -> None:
    """A negative frame or chunk raises ValueError."""
    with pytest.raises(ValueError, match="count from 0"):
        ChannelStart(*start)
