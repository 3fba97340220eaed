"""Vector quantizer: the codebook between the tokenizer's encoder and decoder (REFERENCE 1.7).

Shapes: `B` batch, `N` tokens, `M` = B * N vectors of a batch, `D` token width, `K` codes, `C` code width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.codebook import lookup_project, nearest_code

Metric = Literal["euclidean", "cosine"]

_KMEANS_STEPS = 10
_SMOOTHING = 1e-5  # of the cluster sizes, so that an empty code divides by something


@dataclass(frozen=True, slots=True)
class QuantizerConfig:
    """`landiff` by default. The cosine metric normalises vectors and codes to length one (the paper's way)."""

    dim: int = 768
    codebook_size: int = 2048
    codebook_dim: int = 16
    metric: Metric = "euclidean"
    decay: float = 0.8  # of the moving averages that the codes are, per training step
    dead_threshold: float = 2.0  # vectors a step, on average, below which a code is moved

    def __post_init__(self) -> None:
        if min(self.dim, self.codebook_size, self.codebook_dim) < 1:
            raise ValueError(
                f"sizes must be positive: dim {self.dim}, codebook_size {self.codebook_size}, "
                f"codebook_dim {self.codebook_dim}"
            )
        if self.metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric {self.metric!r} is not 'euclidean' or 'cosine'")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay {self.decay} is not in [0, 1)")
        if self.dead_threshold < 0.0:
            raise ValueError(f"dead_threshold {self.dead_threshold} is negative; 0 keeps dead codes")


@dataclass(frozen=True, slots=True)
class Quantized:
    """The result of quantizing a batch."""

    output: Tensor  # [B, N, D]; its gradient passes to the input as if nothing were rounded
    indices: Tensor  # [B, N] int64
    commitment: Tensor  # [] mean squared distance from the projected input to its code
    perplexity: Tensor  # [] effective number of codes the batch uses, 1..K


class VectorQuantizer(nn.Module):
    """Nearest code of a codebook that follows its inputs by moving averages while training.

    In evaluation mode it changes nothing. All of it computes in float32, also under autocast.
    """

    initialized: Tensor
    cluster_size: Tensor
    code_sum: Tensor
    codes: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.project_in = nn.Linear(config.dim, config.codebook_dim)
        self.project_out = nn.Linear(config.codebook_dim, config.dim)
        codes = self._on_sphere(torch.randn(1, config.codebook_size, config.codebook_dim))
        self.register_buffer("initialized", torch.zeros(1))
        self.register_buffer("cluster_size", torch.ones(1, config.codebook_size))
        self.register_buffer("code_sum", codes.clone())
        self.register_buffer("codes", codes)

    def encode(self, x: Tensor) -> Tensor:
        """[B, N, D] -> int64 [B, N]; of equally near codes the first."""
        with torch.autocast(x.device.type, enabled=False):
            return self._nearest(self.project(x).flatten(0, 1), self.codes[0].float()).view(x.shape[:2])

    def decode(self, indices: Tensor) -> Tensor:
        """int64 [B, N] -> [B, N, D]."""
        return lookup_project(indices, self.codes[0], self.project_out.weight, self.project_out.bias)

    def project(self, x: Tensor) -> Tensor:
        """[B, N, D] -> float32 [B, N, C], where codes are compared."""
        weight, bias = self.project_in.weight.float(), self.project_in.bias.float()
        return self._on_sphere(F.linear(x.float(), weight, bias))

    def forward(self, x: Tensor) -> Quantized:
        """[B, N, D] -> `Quantized`; in training mode the codebook moves towards the batch first."""
        with torch.autocast(x.device.type, enabled=False):
            vectors = self.project(x)
            flat = vectors.detach().flatten(0, 1)
            if self.training:
                self.update(flat)
            indices = self._nearest(flat, self.codes[0].float())
            code = F.embedding(indices, self.codes[0].float()).view_as(vectors)
            passed = vectors + (code - vectors).detach()
            share = torch.bincount(indices, minlength=self.config.codebook_size).float() / len(indices)
            return Quantized(
                output=F.linear(passed, self.project_out.weight.float(), self.project_out.bias.float()),
                indices=indices.view(x.shape[:2]),
                commitment=F.mse_loss(vectors, code),
                perplexity=torch.exp(-torch.special.xlogy(share, share).sum()),
            )

    def bypass(self, x: Tensor) -> Quantized:
        """[B, N, D] -> what `forward` gives, without rounding to codes and without moving the codebook."""
        with torch.autocast(x.device.type, enabled=False):
            vectors = self.project(x)
            return Quantized(
                output=F.linear(vectors, self.project_out.weight.float(), self.project_out.bias.float()),
                indices=torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device),
                commitment=torch.zeros((), device=x.device),
                perplexity=torch.zeros((), device=x.device),
            )

    @torch.no_grad()
    def update(self, flat: Tensor) -> None:
        """Moves the codebook by one step: k-means over the first batch, then moving averages, then revival.

        Args:
            flat: [M, C] float32 projected vectors.
        """
        if not bool(self.initialized):
            self._start(flat)
        indices = self._nearest(flat, self.codes[0])
        count, total = self._clusters(flat, indices)
        self.cluster_size[0].lerp_(count, 1.0 - self.config.decay)
        self.code_sum[0].lerp_(total, 1.0 - self.config.decay)
        size = self.cluster_size[0]
        # Laplace smoothing: the sizes keep their sum.
        smooth = (size + _SMOOTHING) / (size.sum() + len(size) * _SMOOTHING) * size.sum()
        self.codes[0].copy_(self._on_sphere(self.code_sum[0] / smooth[:, None]))
        self._revive(flat)

    def _start(self, flat: Tensor) -> None:
        codes = self._sample(flat, self.config.codebook_size)
        for _ in range(_KMEANS_STEPS):
            count, total = self._clusters(flat, self._nearest(flat, codes))
            mean = self._on_sphere(total / count.clamp(min=1.0)[:, None])
            codes = torch.where(count[:, None] > 0, mean, codes)
        count, total = self._clusters(flat, self._nearest(flat, codes))
        self.codes[0].copy_(codes)
        self.cluster_size[0].copy_(count)
        self.code_sum[0].copy_(total)
        self.initialized.fill_(1.0)

    def _revive(self, flat: Tensor) -> None:
        """Moves every code that hardly anything chose onto a random vector of the batch."""
        dead = self.cluster_size[0] < self.config.dead_threshold
        fresh = self._sample(flat, len(dead))
        size = self.config.dead_threshold
        self.codes[0].copy_(torch.where(dead[:, None], fresh, self.codes[0]))
        self.code_sum[0].copy_(torch.where(dead[:, None], fresh * size, self.code_sum[0]))
        self.cluster_size[0].masked_fill_(dead, size)

    def _clusters(self, flat: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of vectors that chose each code [K], and their sums [K, C]."""
        count = torch.bincount(indices, minlength=self.config.codebook_size).float()
        total = torch.zeros_like(self.codes[0]).index_add_(0, indices, flat)
        return count, total

    def _nearest(self, flat: Tensor, codes: Tensor) -> Tensor:
        """[M, C], [K, C] -> [M] int64."""
        return nearest_code(flat, codes, self.config.metric == "cosine")

    def _on_sphere(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.config.metric == "cosine" else x

    @staticmethod
    def _sample(flat: Tensor, count: int) -> Tensor:
        """`count` vectors of the batch, without repeats as long as there are enough."""
        if len(flat) >= count:
            return flat[torch.randperm(len(flat), device=flat.device)[:count]]
        return flat[torch.randint(len(flat), (count,), device=flat.device)]
