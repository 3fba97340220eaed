"""What a drawn world is made of: where its subject, its camera and its scenery are at any frame.

Shapes: `B` worlds, `F` frames.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from engine.training.world import scenery
from engine.training.world.captions import SPEEDS, Label
from engine.training.world.scenery import Layouts

# Movements and starts are whole fractions of the autoencoder's cells of 8 px and 4 frames, so that a subject has few
# looks in them.
SPEED_PX = (0.5, 1.0, 2.0)  # per frame, in the order of SPEEDS
PAN_PX = 1.5  # per frame, by which landmarks pass a camera that pans
HOP_PX, HOP_FRAMES = 32.0, (32.0, 20.0, 12.0)  # height of a bounce, and its length in the order of SPEEDS
GAP_PX = {"above": (0.0, 40.0), "left of": (48.0, 0.0)}  # from a first subject to its second
STEP = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
STAY = (0.0, 0.0)
PAN = {"fixed": 0.0, "left": -PAN_PX, "right": PAN_PX}


@dataclass(frozen=True, slots=True)
class Spec:
    """A batch of worlds. `labels` say what is seen; the tensors, all on one device, say where."""

    labels: tuple[Label, ...]
    start: Tensor  # [B, 2] px, x and y at frame 0 of the subject, or of the middle of two
    pan: Tensor  # [B] px that landmarks have passed by frame 0
    hop: Tensor  # [B] a frame where a bounce begins

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Spec:
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def row(self, number: int) -> Spec:
        """World `number` alone."""
        part = slice(number, number + 1)
        return replace(self, labels=self.labels[part], **{name: getattr(self, name)[part] for name in _TENSORS})

    @property
    def scenes(self) -> list[str]:
        return [label.scene for label in self.labels]

    @property
    def layouts(self) -> Layouts:
        """What stands where in the scenes."""
        return scenery.layouts(tuple(self.scenes), self.start.device)

    @property
    def velocity(self) -> Tensor:
        """[B, 2] px a frame on the screen."""
        return self._each(
            [[s * SPEED_PX[SPEEDS.index(one.speed)] for s in STEP.get(one.direction, STAY)] for one in self.labels]
        )

    @property
    def gap(self) -> Tensor:
        """[B, 2] px from the first subject to the second, 0 where there is one."""
        return self._each([GAP_PX[one.relation] if one.relation else STAY for one in self.labels])

    def panned(self, frames: Tensor) -> Tensor:
        """Frames [B, F] -> px [B, F] that landmarks have passed by then."""
        return self.pan[:, None] + self._each([PAN[one.camera] for one in self.labels])[:, None] * frames

    def hopped(self, frames: Tensor) -> Tensor:
        """Frames [B, F] -> px [B, F] by which bouncing subjects are up."""
        length = self._each([HOP_FRAMES[SPEEDS.index(one.speed)] for one in self.labels])[:, None]
        height = self._each([HOP_PX * (one.direction == "bounce") for one in self.labels])[:, None]
        part = torch.remainder((frames - self.hop[:, None]) / length, 1.0)
        return height * 4 * part * (1 - part)

    def _each(self, values: list[float] | list[list[float]] | list[tuple[float, float]]) -> Tensor:
        return torch.tensor(values, device=self.start.device)


_TENSORS = tuple(field.name for field in fields(Spec))[1:]
