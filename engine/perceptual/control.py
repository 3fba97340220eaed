"""The control branch: a second trunk that turns noisy latents plus condition into residuals of the base network.

Shapes: `B` batch, `N` tokens, `D` width.
"""

from __future__ import annotations

from torch import Tensor, nn

from engine.perceptual.block import TokenLayout
from engine.perceptual.dit import DiTConfig, Trunk


class ControlBranch(Trunk):
    """Layers in series with their zero-initialised linear maps (REFERENCE 3.3).

    The output of a map is both the residual for the base network and the input of the next control layer: it is not a
    side tap. `final_norm` is part of the published files and is not used.
    """

    def __init__(self, config: DiTConfig, layers: int) -> None:
        super().__init__(config, layers)
        self.zeros = nn.ModuleList(nn.Linear(config.hidden, config.hidden, bias=False) for _ in range(layers))
        for parameter in self.zeros.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, layout: TokenLayout) -> list[Tensor]:
        """Runs the branch.

        Args:
            x: [B, N, D] tokens of latents plus condition.
            layout: of these tokens.

        Returns:
            The residual of each layer, [B, N, D].
        """
        residuals = []
        for block, zero in zip(self.blocks, self.zeros, strict=True):
            x = zero(block(x, layout)[0])
            residuals.append(x)
        return residuals
