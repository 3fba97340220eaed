"""A renderer whose windows several ranks compute together. The first of them leads and keeps the protocol's promises.

Guidance rows go to a rank each, and the tokens of a row are shared by the ranks of that row. The others follow: they
compute what the lead tells them, on the same inputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import count

from torch import Tensor, nn

from engine.loading.model import Model
from engine.perceptual.renderer import DiTRenderer, TextTokens, WindowCache, context_timestep
from engine.perceptual.timesteps import Timestep
from engine.ranks.team import Call, RenderTeam


@dataclass(frozen=True, slots=True, weakref_slot=True)
class TeamWindow:
    """A window that the ranks of a team have open, each its part of it."""

    number: int
    context: Tensor  # [B, P, C, H, W] latents
    whole: TeamWindow | None = None  # that this one is the last row of

    @property
    def rows(self) -> int:
        return self.context.shape[0]

    def conditional_rows(self) -> TeamWindow:
        """The text-conditioned half of the CFG batch: the last row."""
        return TeamWindow(self.number, self.context[-1:], self.whole or self)


class RendererPart:
    """What one rank of a team computes."""

    def __init__(self, renderer: DiTRenderer, team: RenderTeam) -> None:
        self._renderer, self._team = renderer, team
        self._windows: dict[int, WindowCache] = {}
        renderer.share = team.share

    def compute(self, call: Call, tensors: Iterable[Tensor]) -> Tensor | None:
        """The rank's part of a call; the lead gets the result, where there is one. Raises RankError."""
        for number in call.closed:
            self._windows.pop(number, None)
        if call.kind == "open":
            self._open(call.window, *tensors)
            return None
        return self._denoise(call.window, *tensors)

    def _open(
        self, number: int, context: Tensor, control: Tensor, base: Tensor, condition: Tensor, time: Tensor
    ) -> None:
        own = self._team.own_rows(len(context))
        if not len(context[own]):
            return
        text, condition = TextTokens(control[own], base[own]), condition if len(condition) == 1 else condition[own]
        opened = self._renderer.open_window(context[own], text, condition, Timestep(time[own]))
        self._windows[number] = opened

    def _denoise(self, number: int, x: Tensor, time: Tensor) -> Tensor | None:
        rows, made = len(time), None
        own = time[self._team.own_rows(rows)]
        if len(own):
            cache = self._windows[number]
            cache = cache if cache.rows == len(own) else cache.conditional_rows()
            made = self._renderer.denoise(x, Timestep(own), cache).float()
        return self._team.gather(made, rows, x[:1])


class TeamRenderer:
    """The lead's renderer: a `Renderer` that tells the others what to compute, and computes its own part."""

    local = False

    def __init__(self, renderer: DiTRenderer, team: RenderTeam) -> None:
        self._renderer, self._team, self._part = renderer, team, RendererPart(renderer, team)
        self._numbers = count()
        self._closed: list[int] = []  # windows that nobody holds any more

    @property
    def condition(self) -> nn.Module:
        return self._renderer.condition

    def read_text(self, text: Tensor) -> TextTokens:
        """Computed by the lead alone, once a prompt."""
        return self._renderer.read_text(text)

    def open_window(
        self, context: Tensor, text: TextTokens, condition: Tensor, context_time: Timestep | None = None
    ) -> TeamWindow:
        """As `DiTRenderer.open_window`. Raises RankError if a rank is gone."""
        time = (context_time or context_timestep(context)).time
        window = TeamWindow(next(self._numbers), context)
        weakref.finalize(window, self._closed.append, window.number).atexit = False
        self._call("open", window.number, context, text.control, text.base, condition, time)
        return window

    def denoise(self, x: Tensor, time: Tensor | Timestep, cache: TeamWindow) -> Tensor:
        """As `DiTRenderer.denoise`, float32. Raises RankError if a rank is gone."""
        made = self._call("denoise", cache.number, x, time if isinstance(time, Tensor) else time.time)
        assert made is not None, "the lead gets the result"
        return made

    def end(self) -> None:
        """Lets the others go. Raises RankError if one is gone already."""
        self._team.tell(None)

    def _call(self, kind: str, window: int, *tensors: Tensor) -> Tensor | None:
        # Windows may be let go of at any moment, also between two of these.
        closed = [self._closed.pop() for _ in range(len(self._closed))]
        call = Call(kind, window, [(tensor.shape, tensor.dtype) for tensor in tensors], closed)
        self._team.tell(call, tensors)
        return self._part.compute(call, tensors)


@contextmanager
def leading(model: Model, team: RenderTeam) -> Iterator[Model]:
    """The model of the rank that leads a team, whose renderer computes with the others; they may go when it ends well.

    Raises:
        RankError: another rank is gone.
    """
    assert isinstance(model.renderer, DiTRenderer)
    renderer = TeamRenderer(model.renderer, team)
    yield replace(model, renderer=renderer)
    renderer.end()


def follow(renderer: DiTRenderer, team: RenderTeam, computing: Callable[[], AbstractContextManager[None]]) -> None:
    """Computes a rank's part of whatever the lead asks for, until it says that there is nothing more.

    Args:
        computing: what calls are made inside of, `Model.computing`.

    Raises:
        RankError: another rank is gone.
    """
    part = RendererPart(renderer, team)
    while (heard := team.hear()) is not None:
        with computing():
            part.compute(*heard)
