"""Feature extractor: pictures -> features of what they show, by a plain vision transformer (REFERENCE 1.1).

Shapes: `B` batch, `T` frames, `H` x `W` picture, `h` x `w` feature grid, `S` side of the canvas in patches,
`N` = 1 + S * S tokens, `D` feature channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.runtime.attention import attend

_NORM_EPS = 1e-12
_PAD_GREY = 127  # of the canvas below or beside the picture
_HALF_RANGE = 127.5  # pixels 0..255 become -1..1


@dataclass(frozen=True, slots=True)
class TheiaConfig:
    """`landiff` by default."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    image_size: int = 224  # pixels a side that the table of positions was made for
    patch: int = 16  # pixels a side
    canvas: int = 720  # pixels a side of the square that a picture is padded to
    output_shape: tuple[int, int] = (30, 45)  # patches kept, from the top left; zeros where the canvas has fewer
    feature_dim: int | None = None  # channels of a last linear map; None gives the transformer's own

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by {self.heads} heads")
        if self.image_size % self.patch or self.canvas % self.patch:
            raise ValueError(
                f"image_size {self.image_size} or canvas {self.canvas} is no multiple of patch {self.patch}"
            )
        if min(self.output_shape) < 1:
            raise ValueError(f"output_shape {self.output_shape} must be positive")

    @property
    def side(self) -> int:
        """Patches along a side of the canvas."""
        return self.canvas // self.patch

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.hidden if self.feature_dim is None else self.feature_dim


class TheiaBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TheiaConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.hidden, eps=_NORM_EPS)
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.out = nn.Linear(config.hidden, config.hidden)
        self.mlp_norm = nn.LayerNorm(config.hidden, eps=_NORM_EPS)
        self.up = nn.Linear(config.hidden, config.mlp)
        self.down = nn.Linear(config.mlp, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, hidden] -> [B, N, hidden]."""
        normed = self.attention_norm(x)
        q, k, v = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        x = x + self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.mlp_norm(x))))
        return out


class Theia(nn.Module):
    """Video -> features, each frame for itself."""

    def __init__(self, config: TheiaConfig) -> None:
        super().__init__()
        self.config = config
        table_side = config.image_size // config.patch
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, config.hidden))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + table_side**2, config.hidden))
        self.patch_embed = nn.Conv2d(3, config.hidden, config.patch, config.patch)
        self.blocks = nn.ModuleList(TheiaBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden, eps=_NORM_EPS)
        self.head = None if config.feature_dim is None else nn.Linear(config.hidden, config.feature_dim)

    def forward(self, video: Tensor) -> Tensor:
        """uint8 [B, T, 3, H, W] -> features [B, T, D, h, w].

        Raises:
            ValueError: a picture larger than the canvas, or another kind of tensor.
        """
        if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[2] != 3:
            raise ValueError(f"video is {video.dtype} {tuple(video.shape)}, expected uint8 [B, T, 3, H, W]")
        x = self.patch_embed(self._pixels(video.flatten(0, 1))).flatten(2).mT
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1) + self._positions().to(x.dtype)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)[:, 1:]
        if self.head is not None:
            x = self.head(x)
        rows, columns = self.config.output_shape
        grid = x.mT.unflatten(-1, (self.config.side, self.config.side))[..., :rows, :columns]
        grid = F.pad(grid, (0, columns - grid.shape[-1], 0, rows - grid.shape[-2]))
        features: Tensor = grid.unflatten(0, video.shape[:2])
        return features

    def _pixels(self, pictures: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> padded to the canvas at the bottom and the right, -1..1."""
        canvas = self.config.canvas
        height, width = pictures.shape[-2:]
        if max(height, width) > canvas:
            raise ValueError(f"a picture of {height} x {width} is larger than the canvas of {canvas} pixels a side")
        square = F.pad(pictures, (0, canvas - width, 0, canvas - height), value=_PAD_GREY)
        return ((square.float() - _HALF_RANGE) / _HALF_RANGE).to(self.patch_embed.weight.dtype)

    def _positions(self) -> Tensor:
        """The table of positions stretched to the canvas: [1, N, hidden]."""
        side = self.config.side
        cls_position, table = self.positions[:, :1], self.positions[:, 1:]
        table_side = self.config.image_size // self.config.patch
        grid = table.mT.reshape(1, -1, table_side, table_side)
        stretched = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return torch.cat([cls_position, stretched.flatten(2).mT], dim=1)
