"""Stage `tokenizer`: semantic features to tokens and back (paper Eq. 1-3), on the teacher's maps, without pixels.

Loss: mean squared error of the features, every map in units of its variance, plus the commitment of the codes; what
words, places and paths add is explained where they are computed.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.loading.weights import save_component
from engine.semantic.tokenizer import SemanticTokenizer, TokenizerConfig
from engine.training.world import drawing as world
from engine.training.world import reading, teacher
from engine.training.world.captions import Label, random_label

COMMITMENT = 0.25
CONTINUOUS_STEPS = 2700  # before the codebook starts, from clusters of what the encoder has learned by then
SHORT_FRAMES = 5  # length of most training groups; attention costs the square of it, and frames are causal
LONG_EVERY = 3  # every so many steps the groups have full length
SHARES = {
    "mask": 4.0,
    "depth": 0.5,
    "class": 2.0,
    "colour": 3.0,
    "offset": 20.0,
    "scene": 3.0,
    "ground": 1.0,
    "glow": 1.0,
    "cloud": 1.0,
    "mask2": 3.0,
    "class2": 1.0,
    "colour2": 1.5,
    "offset2": 10.0,
    "scroll": 1.0,
}
HELD_OUT = 200
READOUT = 0.3  # weight of the words' cross-entropy
PLACES = 3.0  # weight of the places' error
PATHS, PATH_UNIT_PX, PATH_MOST_PX = 0.1, 4.0, 12.0  # weight, unit and largest gap of the paths' error
READ_MAPS = ("class", "colour", "scene", "class2", "colour2")
READ_PLACES = ("offset", "offset2", "scroll")
LEAST_VARIANCE = 1e-3  # of a map, where few worlds show what it tells


def groups(rng: random.Random, size: int, frames: int, held_out: bool = False) -> tuple[Tensor, list[Label]]:
    """Teacher features [size, frames, D, h, w] of stretches anywhere in the worlds' time, and their labels."""
    labels = [random_label(rng, held_out) for _ in range(size)]
    spec = world.sample(labels, rng)
    start = torch.tensor([[4 * rng.randrange(100) if rng.random() < 0.7 else 0] for _ in labels])
    return teacher.maps(spec, start + torch.arange(0, frames * 4, 4)), labels


def channel_weights(features: Tensor) -> Tensor:
    """[D, 1, 1]: each map's error over its variance, times its share."""
    variance = features.var(dim=(0, 1, 3, 4))
    weights = torch.empty(teacher.FEATURE_DIM)
    for name, width in teacher.CHANNELS:
        maps = teacher.channel(name)
        weights[maps] = SHARES[name] / (variance[maps].mean().clamp(min=LEAST_VARIANCE) * width)
    return (weights * teacher.FEATURE_DIM / sum(SHARES.values()))[:, None, None]


def path_loss(read: Tensor, features: Tensor) -> Tensor:
    """Squared gap between the subjects' paths that two [B, T, D, h, w] of maps show, in units of PATH_UNIT_PX.

    An error of the offset maps that costs next to nothing is pixels of the subject, and makes another speed of it.
    """
    error = torch.zeros((), device=features.device)
    for second in (False, True):
        gap = reading.path(read, second)[0] - (true := reading.path(features, second))[0]
        gap = gap.clamp(-PATH_MOST_PX, PATH_MOST_PX) / PATH_UNIT_PX
        error = error + (gap.square().mean(-1) * (true[1] > reading.VISIBLE_CELLS)).mean()
    return error


class FrameReader(nn.Module):
    """Linear readers of numbers from each frame's vectors, one for I frames and one for all others.

    A reader sees a frame's vectors side by side: their mean has no more dimensions than a code, fewer than there are
    words. Divided by their number, so that a step of training moves an answer no further than it would move one read
    from the mean.
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


class ReadTokenizer(nn.Module):
    """The tokenizer and, for its training only, linear readers: of words from the I frame, of places from each frame.

    What is the same in every cell, like the colour, or moves all of them, like the camera, is otherwise learned very
    late: the encoder does not write it as long as the decoder does not read it, and the other way round.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.tokenizer = SemanticTokenizer(config)
        widths, places = dict(teacher.CHANNELS), sum(dict(teacher.CHANNELS)[name] for name in READ_PLACES)
        i_frame = config.i_tokens * config.quantizer.dim
        self.words = nn.ModuleDict({name: nn.Linear(i_frame, widths[name]) for name in READ_MAPS})
        self.places = FrameReader(config, places)

    def word_loss(self, latents: Tensor, features: Tensor) -> Tensor:
        """Cross-entropy of the words of [B, T, D, h, w] teacher maps, read from [B, L, E] latents."""
        i_tokens = self.tokenizer.config.i_tokens
        i_frame = latents[:, :i_tokens].float().flatten(1) / i_tokens
        losses = []
        for name in READ_MAPS:
            likely, words = features[:, 0, teacher.channel(name)].mean((-2, -1)).max(1)
            there = likely > 0.5  # of a second subject, that there is one
            wrong = nnf.cross_entropy(self.words[name](i_frame), words, reduction="none")
            losses.append((wrong * there).mean())
        return torch.stack(losses).sum()

    def place_loss(self, latents: Tensor, features: Tensor) -> Tensor:
        """Squared error of the places in [B, T, D, h, w] teacher maps, read from [B, L, E] latents frame by frame."""
        places = []
        for name in READ_PLACES:
            maps = features[:, :, teacher.channel(name)]
            # The scenery's angle differs from column to column, so that its mean says nothing.
            places.append(maps[..., 0, 0] if name == "scroll" else maps.mean((-2, -1)))
        return len(READ_PLACES) * nnf.mse_loss(self.places(latents), torch.cat(places, dim=2))


class TokenizerStage:
    """Trains `SemanticTokenizer`."""

    def __init__(self, config: TokenizerConfig, seed: int, device: str, weights: Path) -> None:
        torch.manual_seed(seed)
        self.seed, self.device, self.weights = seed, device, weights
        self.reading = ReadTokenizer(config).to(device)
        self.tokenizer = self.reading.tokenizer
        self.module: nn.Module = self.reading
        features, self.held_out_labels = groups(random.Random(f"tokens {seed}"), HELD_OUT, config.frames, held_out=True)
        self.held_out = features.to(device)
        self.scale = channel_weights(features).to(device)

    def hidden(self) -> list[nn.Parameter]:
        blocks = (*self.tokenizer.encoder.blocks.parameters(), *self.tokenizer.decoder.blocks.parameters())
        return [p for p in blocks if p.ndim == 2]

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        frames = self.tokenizer.config.frames if step % LONG_EVERY == 0 else SHORT_FRAMES
        features, _ = groups(random.Random(f"tokenizer {self.seed} {step}"), batch, frames)
        features = features.to(self.device)
        with torch.autocast(self.device, torch.bfloat16):
            output = self.tokenizer(features, quantize=step >= CONTINUOUS_STEPS)
        error = ((output.reconstruction.float() - features).square() * self.scale).mean()
        words = self.reading.word_loss(output.latents, features)
        places = self.reading.place_loss(output.latents, features)
        paths = path_loss(output.reconstruction.float(), features)
        figures = {"error": error.item(), "words": words.item(), "places": places.item(), "paths": paths.item()}
        figures["perplexity"] = output.perplexity.item()
        return error + COMMITMENT * output.commitment + READOUT * words + PLACES * places + PATHS * paths, figures

    def evaluate(self) -> dict[str, float]:
        again = torch.cat([self.tokenizer.decode(self.tokenizer.encode(part)) for part in self.held_out.split(20)])
        error = ((again - self.held_out).square() * self.scale).mean()
        gap = (reading.path(again)[0] - reading.path(self.held_out)[0]).norm(dim=-1)
        seen = reading.path(self.held_out)[1] > 1
        figures = {"error": float(error), "position_px": float(gap[seen].median())}
        return figures | reading.shares(reading.read(again), self.held_out_labels)

    def export(self) -> None:
        save_component(self.weights, "tokenizer", self.tokenizer)
