"""3x3 convolutions in float32 with a quarter of the products.

F(4 x 4, 3 x 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308): tiles of
6 x 6 pixels are carried to where a convolution is one product at each of 36 places, and its answer is carried back, to
tiles of 4 x 4. All of it is matrix products. They round a little more: relative errors are 3e-6, where those of direct
convolutions are 6e-7.
Shapes: `N` pictures, `C` and `O` channels in and out, `H` x `W` pixels, `T` tiles of all pictures.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_CHANNELS = 72  # in and out: with fewer the way there and back costs more than the products save
VECTOR = 8  # of AVX2; channels that are no multiple make slow products
TILE, SEEN = 4, 6  # pixels a side that a tile gives and reads
# B^T, 24 G and A^T of that article, by which polynomials are multiplied at 0, 1, -1, 2, -2 and infinity.
_READ = (
    (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
)  # fmt: skip
_WEIGH = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))
_GIVE = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_EVERYWHERE = SEEN + 1  # the place (1, 1), of which every pixel of a tile takes all


def _both_ways(rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """What a matrix does to rows and then to columns of a tile, as one; float32."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


_READ_TILES, _GIVE_TILES = _both_ways(_READ), _both_ways(_GIVE)  # [36, 36], [16, 36]


class WinogradConv(nn.Module):
    """A convolution that goes this way. It has its weight as products take it alone, and so does not learn."""

    packed: Tensor  # [36, C, O]
    bias: Tensor | None  # [O]

    @staticmethod
    def suits(layer: nn.Conv2d) -> bool:
        """True for a layer that `of` may be called with, and that gains by it."""
        geometry = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
        widths = layer.in_channels, layer.out_channels
        return (
            geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
            and all(width >= LEAST_CHANNELS and width % VECTOR == 0 for width in widths)
            and layer.weight.dtype == torch.float32
        )

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Self:
        """The layer's answers, with a copy of its weight, which takes four times its memory."""
        made = cls()
        weigh = torch.tensor(_WEIGH, dtype=torch.float64) / 24
        weights = torch.einsum("ai,bj,ocij->abco", weigh, weigh, layer.weight.detach().double())
        made.register_buffer("packed", weights.flatten(0, 1).float().contiguous())
        made.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        return made.eval()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] float32 -> [N, O, H, W] float32, channels last in memory."""
        with torch.autocast("cpu", enabled=False):
            return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # Whole tiles: what lies beyond the picture is as empty as its border, and is cut off again.
        beyond = (0, 0, 1, 1 - width % -TILE, 1, 1 - height % -TILE)
        tiles = F.pad(x.movedim(1, -1), beyond).unfold(1, SEEN, TILE).unfold(2, SEEN, TILE).movedim(3, -1)
        grid, channels = tiles.shape[:3], x.shape[1]  # N, rows and columns of tiles
        read = torch.matmul(_READ_TILES, tiles.reshape(-1, SEEN**2, channels))  # [T, 36, C]
        products = torch.bmm(read.transpose(0, 1), self.packed)  # [36, T, O]
        if self.bias is not None:
            products[_EVERYWHERE] += self.bias
        given = torch.matmul(_GIVE_TILES, products.transpose(0, 1)).view(*grid, TILE, TILE, -1)
        pictures = given.transpose(2, 3).flatten(1, 2).flatten(2, 3).movedim(-1, 1)
        return pictures[..., :height, :width]
