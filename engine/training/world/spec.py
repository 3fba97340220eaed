"""Places of subjects, camera and scenery of drawn worlds at any frame. Shapes: `B` worlds, `F` frames."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from engine.semantic.world_maps import BOUNCE_FRAMES, BOUNCE_PX, PAN_PX, SPEED_PX
from engine.text.asked import SPEEDS
from engine.training.world import scenery
from engine.training.world.captions import Label
from engine.training.world.scenery import Layouts

GAP_PX = {"above": (0.0, 40.0), "left of": (48.0, 0.0)}  # from the first subject to the second
STEP = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
STAY = (0.0, 0.0)
PAN = {"fixed": 0.0, "left": -PAN_PX, "right": PAN_PX}


@dataclass(frozen=True, slots=True)
class Spec:
    """A batch of worlds: labels say what is seen, tensors, all on one device, say where."""

    labels: tuple[Label, ...]
    start: Tensor  # [B, 2] px, x and y of the subject at frame 0, or of the middle between two
    pan: Tensor  # [B] px that landmarks have passed by frame 0
    bounce: Tensor  # [B] number of a frame at which a bounce begins

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Spec:
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def row(self, number: int) -> Spec:
        """A batch of world `number` only."""
        part = slice(number, number + 1)
        return replace(self, labels=self.labels[part], **{name: getattr(self, name)[part] for name in _TENSORS})

    @property
    def scenes(self) -> list[str]:
        return [label.scene for label in self.labels]

    @property
    def layouts(self) -> Layouts:
        """Positions of the scenery."""
        return scenery.layouts(tuple(self.scenes), self.start.device)

    @property
    def velocity(self) -> Tensor:
        """[B, 2] px a frame on the screen."""
        steps = self._each([STEP.get(one.direction, STAY) for one in self.labels])
        return steps * self._each([SPEED_PX[SPEEDS.index(one.speed)] for one in self.labels])[:, None]

    @property
    def gap(self) -> Tensor:
        """[B, 2] px from the first subject to the second, 0 where there is one."""
        return self._each([GAP_PX[one.relation] if one.relation else STAY for one in self.labels])

    def panned(self, frames: Tensor) -> Tensor:
        """Px [B, F] that landmarks have passed by frames [B, F]."""
        return self.pan[:, None] + self._each([PAN[one.camera] for one in self.labels])[:, None] * frames

    def bounced(self, frames: Tensor) -> Tensor:
        """Height [B, F] of bouncing subjects above their path at frames [B, F], in px."""
        length = self._each([BOUNCE_FRAMES[SPEEDS.index(one.speed)] for one in self.labels])[:, None]
        height = self._each([BOUNCE_PX * (one.direction == "bounce") for one in self.labels])[:, None]
        part = torch.remainder((frames - self.bounce[:, None]) / length, 1.0)
        return height * 4 * part * (1 - part)

    def _each(self, values: list[float] | list[list[float]] | list[tuple[float, float]]) -> Tensor:
        return torch.tensor(values, device=self.start.device)


_TENSORS = tuple(field.name for field in fields(Spec))[1:]
