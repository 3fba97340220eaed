"""The control branch: a second trunk that turns noisy latents plus condition into residuals of the base network.

Shapes: `B` batch, `N` tokens, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from engine.perceptual.block import KeysValues, Layout
from engine.perceptual.dit import DiTConfig, Trunk


class ControlBranch(Trunk):
    """Layers in series with their zero-initialised linear maps (FACTS 3.3).

    The output of a map is both the residual for the base network and the input of the next control layer: it is not a
    side tap. `final_norm` is part of the published files and is not used.
    """

    def __init__(self, config: DiTConfig, layers: int) -> None:
        super().__init__(config, layers)
        self.zeros = nn.ModuleList(nn.Linear(config.hidden, config.hidden, bias=False) for _ in range(layers))
        for parameter in self.zeros.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x: Tensor, layout: Layout, context: Sequence[KeysValues] | None = None, keep: bool = False
    ) -> tuple[list[Tensor], tuple[KeysValues, ...]]:
        """Runs the branch.

        Args:
            x: [B, N, D] tokens of latents plus condition.
            layout: of these tokens.
            context: for every layer, the keys and values of tokens before these.
            keep: whether the keys and values of these tokens are wanted; at full size they are 8 GB in bfloat16.

        Returns:
            The residual of each layer, [B, N, D], and, if kept, each layer's keys and values of the N tokens.
        """
        residuals, caches = [], []
        for index, (block, zero) in enumerate(zip(self.blocks, self.zeros, strict=True)):
            x, cache = block(x, layout, None if context is None else context[index])
            x = zero(x)
            residuals.append(x)
            if keep:
                caches.append(cache)
        return residuals, tuple(caches)
