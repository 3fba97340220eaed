"""What an engine process is made of before it serves: which pictures it draws."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config, write_weights

from engine.config import PRESETS
from engine.live import process
from engine.live.process import LoadError, prepare
from engine.loading.weights import save_component
from engine.perceptual.mini.enlarger import Enlarger, EnlargerConfig
from engine.wire.settings import EngineSettings


class Told:
    """Where a process tells how far it is."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, message: object) -> None:
        self.messages.append(message)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSettings:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    write_weights(tmp_path)
    save_component(tmp_path, "enlarger", Enlarger(EnlargerConfig(width=8, blocks=1), 8))
    return EngineSettings("tiny", str(tmp_path), "cpu", picture=None)


def picture(settings: EngineSettings) -> str:
    """That of a process with these settings."""
    told: Any = Told()
    with ExitStack() as stack:
        generator, _ = prepare(settings, told, 1, stack)
    assert told.messages[-1].fraction == 1.0
    frames = 8 if generator.model.config.picture == "small" else 16
    assert generator.model.vae.frames_per_latent * 2 == frames
    return generator.model.config.picture


@pytest.mark.parametrize(("least", "expected"), [(0.0, "large"), (1e9, "small")])
def test_pictures_are_large_where_there_is_time(
    settings: EngineSettings, least: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scratch video is timed: where large pictures would come too slowly, the same weights draw small ones."""
    monkeypatch.setattr(process, "LEAST_FACTOR", least)
    assert picture(settings) == expected


@pytest.mark.parametrize("asked", ["large", "small"])
def test_pictures_that_are_asked_for_are_not_timed(
    settings: EngineSettings, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are drawn however long they take."""
    monkeypatch.setattr(process, "keeps_time", lambda *_: pytest.fail("it was timed"))
    assert picture(EngineSettings("tiny", settings.weights, "cpu", picture=asked)) == asked


def test_weights_without_an_enlarger_draw_small_pictures(settings: EngineSettings) -> None:
    """As those of who trained none; where large ones are asked for, the file that is missing is named."""
    (Path(str(settings.weights)) / "enlarger.safetensors").unlink()
    assert picture(settings) == "small"
    with pytest.raises(LoadError, match="enlarger.safetensors is missing"):
        picture(EngineSettings("tiny", settings.weights, "cpu", picture="large"))
