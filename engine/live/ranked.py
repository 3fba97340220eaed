"""The engine process as the first of several ranks, which render all of its channels together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from engine.config import preset
from engine.loading.model import Model, computing, load_renderer
from engine.loading.options import place
from engine.ranks.agreement import agree, model_facts
from engine.ranks.group import RankPlace
from engine.ranks.launch import leading_ranks
from engine.ranks.layout import RankLayout
from engine.ranks.renderer import follow, leading
from engine.ranks.team import RenderTeam
from engine.wire.settings import EngineSettings


@contextmanager
def model_of_ranks(settings: EngineSettings, load_lead: Callable[[], Model]) -> Iterator[Model]:
    """The settings' model, of which other processes compute parts; they end with the block.

    Args:
        load_lead: loads the model of this process, when its device is chosen.

    Raises:
        ValueError: the preset has no work for so many ranks, or there are too few GPUs.
        RankError: a rank ended or was silent.
    """
    layout = RankLayout.of(preset(settings.preset), settings.ranks)
    with leading_ranks(settings.ranks, _follow, settings) as rank:
        rank.take_device(settings.device, settings.number * settings.ranks)
        model = load_lead()
        assert model.folder is not None
        # Pictures are the lead's alone.
        config = model.config.with_picture("small")
        agree(model_facts(config, model.folder, model.device, model.dtype))
        with leading(model, RenderTeam(layout, model.device, config.renderer.dit.heads)) as led:
            yield led


def _follow(rank: RankPlace, settings: EngineSettings) -> None:
    """Runs in the processes of the other ranks."""
    rank.take_device(settings.device, settings.number * settings.ranks)
    config = preset(settings.preset)
    folder, device, dtype = place(config, settings.weights, settings.device)
    renderer = load_renderer(config, folder, device, dtype, settings.memory_gb)
    agree(model_facts(config, folder, device, dtype))
    team = RenderTeam(RankLayout.of(config, settings.ranks), device, config.renderer.dit.heads)
    follow(renderer, team, partial(computing, device, dtype))
