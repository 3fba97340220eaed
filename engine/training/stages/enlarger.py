"""Stage `enlarger`: large pictures, twice as wide, high and many, of the latents of a finished autoencoder.

All but the `Enlarger` stays as it is: what it reads of a latent is computed once and kept, in pieces of pictures most
of which are near a subject. The world is drawn at the large size and rate, so frames between two small ones are true
ones. Every third piece is of rendered latents. A piece's latents are enlarged one behind the other, each with what was
added to the frame before, as those of a video; before the first stands a share, from nothing to all, of what the true
frame has more than the small one.
The loss per pixel is L1 + MSE + 0.5 L1 of the change in time, + 2 of it where a latent begins, + 2 L1 of how steep each
neighbourhood is, weighed by that, which keeps an edge that is a little off as sharp as a true one, + 2 times what is
steeper than it is in truth, + 4 L1 of what recurs from cell to cell of the network's grid. There is no term of the
gradients themselves: it makes edges soft whose place is uncertain.
Shapes: `B` pieces, `T` latents, `F` large frames, `C` latent channels, `h` x `w` latent size.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.config import FRAMES_PER_LATENT
from engine.loading.options import autocast
from engine.loading.weights import load_component
from engine.perceptual.mini.enlarger import CELL_PX, LARGE_FRAMES, SCALE, Enlarger, enlarge, small_frames
from engine.perceptual.mini.vae import PATCH_PX, TinyVAE, TinyVAEState
from engine.training.run import LossAndFigures, TrainingStage
from engine.training.setup import StageSetup
from engine.training.sources.source import Segment, crop_start, pixels, psnr
from engine.training.stages.autoencoder import LATENT_NOISE, NEAR_SHARE
from engine.training.stages.decoder import COVERED
from engine.training.stages.renderer import RendererStage

LATENTS = 3  # of a piece
CROP = (8, 12)  # rows and columns of latents of a piece
BORDER_PX = 16  # at a piece's sides, which lack what is beside them
PLACES = 16  # of a segment that pieces are cut from
KINDS = (False, True, False)  # whether pieces of a place, and samples of a batch, are rendered
POOL_PIECES, START_PIECES, HELD_OUT_PIECES = 2400, 192, 96
REFRESH_PIECES = 0.3  # new ones per sample
STEEP_PX = 8  # side of a neighbourhood
STEEP_EVERY = 4  # frames, of which one counts
ALONG_PX = 5  # of an edge that lies level or upright
FLAT = 1e-6  # mean square gradient, far below that of a level a pixel: a root has no slope at 0
STEEP_WEIGHT = 2.0
START_WEIGHT = 2.0  # of changes where a latent begins, whose frames are made apart from those before
PATTERN_CELLS = 4  # each way, of a neighbourhood in which a pattern recurs
PATTERN_WEIGHT = 4.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the picture over some latents."""

    frames: Tensor  # float16 [T, 5, 3, H, W], as `Enlarger` reads them
    features: Tensor  # float16 [T, width, 2h, 2w], likewise
    video: Tensor  # uint8 [1 + F, 3, 2H, 2W], from the frame before on
    rendered: bool


class EnlargerStage(TrainingStage):
    """Trains `Enlarger`."""

    hidden = r"read_features|blocks"

    def __init__(self, setup: StageSetup) -> None:
        """Raises ValueError if the preset has no large pictures, or weights of earlier stages are missing."""
        renders, self.device, config = RendererStage(setup), setup.device, setup.config
        if config.enlarger is None or not isinstance(renders.vae, TinyVAE):
            raise ValueError(f"preset {config.name!r} has no large pictures")
        setup.world()
        setup.require("renderer")
        load_component(setup.weights, "renderer", renders.renderer)
        self.renders, self.vae = renders, renders.vae
        torch.manual_seed(setup.seed)
        self.enlarger = Enlarger(config.enlarger, self.vae.config.decoder_width_4).to(self.device)
        self.pieces, self.held_out, self.owed = list[Piece](), list[Piece](), 0.0
        super().__init__(setup.weights, self.enlarger, enlarger=self.enlarger)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        pieces = self.fresh_pieces(rng, batch, held_out)
        kinds = {kind: [piece for piece in pieces if piece.rendered == kind] for kind in set(KINDS)}
        chosen = [rng.choice(kinds[KINDS[index % len(KINDS)]]) for index in range(batch)]
        video = pixels(torch.stack([piece.video for piece in chosen]).to(self.device))
        frames = torch.stack([piece.frames for piece in chosen]).to(self.device).float()
        features = torch.stack([piece.features for piece in chosen]).to(self.device).float()
        before, video = video[:, 0], video[:, 1:]
        shares = torch.tensor([rng.random() for _ in chosen], device=self.device)
        added = shares[:, None, None, None] * self.enlarger.detail(before, frames[:, 0, 0])
        with autocast(self.device):
            made, _ = enlarge(self.enlarger, frames, features, added)
        inside = slice(BORDER_PX, -BORDER_PX)
        made, video = made[..., inside, inside], video[..., inside, inside]
        with torch.no_grad():
            figures = {"sharpness": (steepness(made[:, ::8]).mean() / steepness(video[:, ::8]).mean()).item()}
        squares = (made - video).square().detach().mean((1, 2, 3, 4))
        for name, rendered in (("psnr_true_db", False), ("psnr_rendered_db", True)):
            rows = [row for row, piece in enumerate(chosen) if piece.rendered == rendered]
            figures |= {name: psnr(squares[rows])} if rows else {}
        return enlarging_loss(made, video), figures

    def fresh_pieces(self, rng: random.Random, batch: int, held_out: bool) -> list[Piece]:
        """Training or held-out pieces, after some of the training pieces are replaced."""
        with torch.random.fork_rng():
            if held_out:
                same = random.Random("held out")
                while len(self.held_out) < HELD_OUT_PIECES:
                    self.held_out += self.cut(same, held_out=True)
                return self.held_out
            self.owed += batch * REFRESH_PIECES
            while len(self.pieces) < START_PIECES or self.owed >= PLACES * len(KINDS):
                made = self.cut(rng)
                self.owed = max(0.0, self.owed - len(made))
                self.pieces = [*self.pieces, *made][-POOL_PIECES:]
        return self.pieces

    @torch.no_grad()
    def cut(self, rng: random.Random, held_out: bool = False) -> list[Piece]:
        """Pieces of a new segment, true and rendered."""
        pool = self.renders.held_out if held_out else self.renders.pool
        encoded = pool.render(pool.make(rng), self.renders.render_window, None, rng)
        assert encoded.rendered is not None and encoded.segment.redraw is not None, "the world is drawn and rendered"
        noise = LATENT_NOISE * rng.random() * torch.randn_like(encoded.latents)
        read = {kind: self.read(one) for kind, one in ((False, encoded.latents + noise), (True, encoded.rendered))}
        pieces = []
        for _ in range(PLACES):
            start = rng.randrange(1, len(encoded.latents) - LATENTS + 1)
            first = FRAMES_PER_LATENT * (start - 1)
            numbers = first + torch.arange(LARGE_FRAMES * LATENTS + 1, device=self.device) / SCALE
            video = encoded.segment.redraw(numbers, SCALE)
            for kind in KINDS:
                frames, features = (part[start : start + LATENTS] for part in read[kind])
                top, left = self.place(rng, encoded.segment, start + LATENTS // 2)
                pieces.append(_piece(frames, features, video, top, left, kind))
        return pieces

    def read(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What `Enlarger` reads of a video's latents [T, C, h, w]: frames [T, 5, 3, H, W], features [T, width, ...]."""
        config, state, parts = self.renders.config, TinyVAEState(), []
        chunks = latents[config.context_length :].split(config.chunk_length)
        with autocast(self.device):
            for chunk in (latents[: config.context_length], *chunks):
                self.vae.begin_chunk(state)
                parts.append(small_frames(self.vae, chunk[None], state))
        frames, features = (torch.cat([part[0] for part in kind]).half() for kind in zip(*parts, strict=True))
        return frames, features

    def place(self, rng: random.Random, segment: Segment, latent: int) -> tuple[int, int]:
        """Row and column of the first latent of a piece, often near a subject."""
        spots = (segment.mask[latent] > COVERED).nonzero().tolist()
        spot = rng.choice(spots) if spots and rng.random() < NEAR_SHARE else (None, None)
        dit, cells = self.renders.config.renderer.dit, segment.mask.shape[1:]
        top, left = (
            crop_start(rng, size, crop, None if at is None else (at + 0.5) * size / cell)
            for at, size, crop, cell in zip(spot, (dit.height, dit.width), CROP, cells, strict=True)
        )
        return top, left


def _piece(frames: Tensor, features: Tensor, video: Tensor, top: int, left: int, rendered: bool) -> Piece:
    def cropped(whole: Tensor, cell: int) -> Tensor:
        """A copy of the crop, of a tensor with so many points a latent each way."""
        (high, wide), (row, column) = CROP, (top * cell, left * cell)
        return whole[..., row : row + high * cell, column : column + wide * cell].clone()

    return Piece(
        cropped(frames, PATCH_PX), cropped(features, 2), cropped(video, SCALE * PATCH_PX), rendered
    )  # fmt: skip


def steepness(video: Tensor) -> Tensor:
    """Root mean square gradients in each neighbourhood, [B, F, 6, rows, columns], of a video [B, F, 3, H, W].

    Of squares, since a soft edge has the same mean gradient as a sharp one of the same height. The first three are of
    means of 2 x 2 pixels, or chessboards of single pixels were drawn where an edge is uncertain; the others of means
    along an edge that lies level or upright.
    """
    flat, trim = video.flatten(0, 1), ALONG_PX - 1
    means = nnf.avg_pool2d(flat, 2, 1)
    near = means.diff(dim=-1)[..., :-1, :].square() + means.diff(dim=-2)[..., :-1].square()
    across = nnf.avg_pool2d(flat, (ALONG_PX, 1), 1).diff(dim=-1)[..., : 1 - trim].square()
    down = nnf.avg_pool2d(flat, (1, ALONG_PX), 1).diff(dim=-2)[..., : 1 - trim, :].square()
    squares = torch.cat([near[..., : 2 - trim, : 2 - trim], across + down], dim=1)
    roots: Tensor = (nnf.avg_pool2d(squares, STEEP_PX, STEEP_PX // 2) + FLAT).sqrt().unflatten(0, video.shape[:2])
    return roots


def pattern(error: Tensor) -> Tensor:
    """What recurs from cell to cell of the network's grid, [B, F, 3 * 16, rows, columns], of an error [B, F, 3, H, W].

    Each pixel of a cell is a channel of its own to the network, and dots that recur are the cheapest steepness.
    """
    cells = nnf.avg_pool2d(nnf.pixel_unshuffle(error.flatten(0, 1), CELL_PX), PATTERN_CELLS, PATTERN_CELLS // 2)
    each = cells.unflatten(1, (3, CELL_PX**2))
    recurring: Tensor = (each - each.mean(2, keepdim=True)).flatten(1, 2).unflatten(0, error.shape[:2])
    return recurring


def enlarging_loss(made: Tensor, video: Tensor) -> Tensor:
    """Loss of large frames [B, F, 3, H, W]; each video begins with a latent."""
    error = made - video
    loss = error.abs().mean() + error.square().mean()
    jumps = error.diff(dim=1).abs()
    loss = loss + PATTERN_WEIGHT * pattern(error).abs().mean()
    loss = loss + 0.5 * jumps.mean() + START_WEIGHT * jumps[:, LARGE_FRAMES - 1 :: LARGE_FRAMES].mean()
    # Of some frames, since it costs as much as all the rest. What is missing counts where there are edges, or fine
    # stripes would do for what a surface lacks; what is too much counts everywhere.
    true = steepness(video[:, ::STEEP_EVERY])
    gap = steepness(made[:, ::STEEP_EVERY]) - true
    return loss + STEEP_WEIGHT * ((gap.abs() * true).mean() / true.mean() + gap.relu().mean())
