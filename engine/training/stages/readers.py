"""Linear readers of a tokenizer's vectors, which are trained with it and not exported.

Without them a tokenizer learns properties of the whole picture, such as colour or camera, very late: the encoder does
not write them as long as the decoder does not read them, and the other way round.
Shapes: `B` batch, `T` frames of a GOP, `D` feature channels, `h` x `w` feature grid, `L` latent tokens of width `E`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.semantic import reading, world_maps
from engine.semantic.tokenizer import TokenizerConfig, TokenizerOutput

MEANS, WORDS, PLACES, PATHS = 3.0, 0.3, 3.0, 0.1  # weights of the losses
PATH_UNIT_PX, PATH_MOST_PX = 4.0, 12.0  # unit and largest distance of paths
READ_WORDS = ("class", "colour", "scene", "class2", "colour2")
READ_PLACES = ("offset", "offset2", "scroll")


class FrameReader(nn.Module):
    """Linear maps from all vectors of a frame to numbers, one for I frames and one for P frames.

    Vectors are concatenated, as their mean has fewer dimensions than there are words, and divided by their number, so
    that a training step changes a number as much as if it were read from the mean.
    """

    def __init__(self, config: TokenizerConfig, numbers: int) -> None:
        super().__init__()
        self.config = config
        self.of_i = nn.Linear(config.i_tokens * config.quantizer.dim, numbers)
        self.of_p = nn.Linear(config.p_tokens * config.quantizer.dim, numbers)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, L, E] latents of T frames -> [B, T, numbers]."""
        config = self.config
        i_frame, rest = latents.float().tensor_split([config.i_tokens], dim=1)
        i_frame, p_frames = i_frame.flatten(1)[:, None], rest.unflatten(1, (-1, config.p_tokens)).flatten(2)
        return torch.cat([self.of_i(i_frame / config.i_tokens), self.of_p(p_frames / config.p_tokens)], dim=1)


class MeanReader(nn.Module):
    """Reads the mean features of each frame, for any video."""

    def __init__(self, config: TokenizerConfig, weights: Tensor) -> None:
        """`weights` [D, 1, 1] of the errors of channels."""
        super().__init__()
        self.means, self.weights = FrameReader(config, config.feature_dim), weights[:, 0, 0]

    def forward(self, output: TokenizerOutput, features: Tensor) -> dict[str, Tensor]:
        """Weighted squared error for features [B, T, D, h, w]; the I frame counts as much as all P frames together."""
        error = (self.means(output.latents) - features.mean((-2, -1))).square() * self.weights
        return {"means": MEANS * (error[:, 0].mean() + error[:, 1:].mean())}


class WorldReader(nn.Module):
    """Reads words from the I frame and places from each frame, for teacher maps of the drawn world."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.i_tokens, width = config.i_tokens, config.i_tokens * config.quantizer.dim
        self.words = nn.ModuleDict({name: nn.Linear(width, world_maps.WIDTHS[name]) for name in READ_WORDS})
        self.places = FrameReader(config, sum(world_maps.WIDTHS[name] for name in READ_PLACES))

    def forward(self, output: TokenizerOutput, features: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the words and squared errors of places and paths, for teacher maps [B, T, D, h, w]."""
        i_frame = output.latents[:, : self.i_tokens].float().flatten(1) / self.i_tokens
        words = torch.zeros((), device=features.device)
        for name in READ_WORDS:
            likely, right = features[:, 0, world_maps.channel(name)].mean((-2, -1)).max(1)
            errors = nnf.cross_entropy(self.words[name](i_frame), right, reduction="none")
            words = words + (errors * (likely > reading.THERE)).mean()
        maps = [features[:, :, world_maps.channel(name)] for name in READ_PLACES]
        # The scenery's angle differs from column to column, so that its mean says nothing.
        means = [map_.mean((-2, -1)) for map_ in maps[:-1]] + [maps[-1][..., 0, 0]]
        places = len(READ_PLACES) * nnf.mse_loss(self.places(output.latents), torch.cat(means, dim=2))
        paths = path_loss(output.reconstruction.float(), features)
        return {"words": WORDS * words, "places": PLACES * places, "paths": PATHS * paths}


def path_loss(read: Tensor, features: Tensor) -> Tensor:
    """Squared distance between the paths of subjects in two [B, T, D, h, w] of maps, in units of PATH_UNIT_PX.

    An error of the offset maps that is tiny in the loss moves a subject by pixels and changes its speed.
    """
    error = torch.zeros((), device=features.device)
    for second in (False, True):
        gap = reading.path(read, second)[0] - (true := reading.path(features, second))[0]
        gap = gap.clamp(-PATH_MOST_PX, PATH_MOST_PX) / PATH_UNIT_PX
        error = error + (gap.square().mean(-1) * (true[1] > reading.VISIBLE_CELLS)).mean()
    return error
