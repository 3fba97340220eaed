"""Stage `renderer` on a folder of captioned videos, for any preset (paper Eq. 5 and 6).

Part by part as in the paper: `base`, the network without its control branch, from text alone; then `control`, whose
layers start as copies of the base's first ones behind zero maps, with the base frozen; `both` at once is what `mini`
does. The new half of a window is noised, the half before it is given clean; some samples have none. The loss is the
squared error of what the network predicts: velocity or, of `mini`, clean latents, whose channels count by how far they
move pixels.
Shapes: `B` batch, `T` latent frames, `P` of them given, `C` channels, `h` x `w` latent size, `H` x `W` pixels.
"""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.config import EngineConfig
from engine.loading.model import Autoencoder
from engine.loading.weights import load_component, save_component
from engine.perceptual.mini.vae import TinyVAE
from engine.perceptual.renderer import Renderer
from engine.perceptual.schedule import FlowSchedule
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.published import PublishedText
from engine.text.small_t5 import SmallT5
from engine.training.folder import HELD_OUT_SAMPLES, Footage, Place, kept
from engine.training.stages.autoencoder import pixels
from engine.training.stages.renderer import (
    FIRST_STEP_SHARE,
    MASKED_SHARE,
    NULL_TEXT_SHARE,
    matrices,
    pixel_weights,
    start_noise,
)

LEAD_LATENTS = 4  # before a window within a video, so that no latent of it stands for one frame
LEAD_SHARE = 0.7
KEPT_PLACES = 256  # of windows, of each kind
LEAST_PLACES = 64  # of those, before a sample comes from them again
NEW_SHARE = 0.25  # of the samples come from a new place
PUBLISHED_MASKED_SHARE = 0.2  # samples of the published preset without a prompt half (paper 2.3)
PARTS = ("both", "base", "control")
HELD_OUT_BATCHES = 8


class FootageRenderer:
    """Trains `Renderer` or a part of it."""

    def __init__(
        self,
        config: EngineConfig,
        footage: Footage,
        vae: Autoencoder,
        tokenizer: SemanticTokenizer | None,
        text: SmallT5 | PublishedText,
        part: str,
        seed: int,
        weights: Path,
    ) -> None:
        """All given modules are frozen, with their weights. Without `tokenizer` features are not quantised.

        Raises:
            ValueError: for a part that is not of `PARTS`; for part 'control', if `weights` has no renderer to start
                from; for part 'base' of a preset whose head reads the condition.
        """
        if part not in PARTS:
            raise ValueError(f"part {part!r} is not learned from videos: give one of {', '.join(PARTS)}")
        if part == "base" and config.renderer.dit.head != "linear":
            raise ValueError(f"the {config.renderer.dit.head} head reads the condition: train part 'both'")
        torch.manual_seed(seed)
        self.config, self.footage, self.seed, self.weights = config, footage, seed, weights
        self.vae, self.tokenizer, self.text = vae, tokenizer, text
        dit = config.renderer.dit
        self.latents = kept(self._latents, 4 * dit.frames * dit.channels * dit.height * dit.width)
        # Where windows begin that are not `inside` a video, and such that are: kept for some samples each, as encoding
        # a stretch costs as much as a small renderer's step from it.
        self.places: tuple[deque[tuple[Place, int]], ...] = (deque(maxlen=KEPT_PLACES), deque(maxlen=KEPT_PLACES))
        self.renderer = Renderer(config.renderer)
        if part == "control":
            load_component(weights, "renderer", self.renderer)
            start_control(self.renderer)
        choose_part(self.renderer, part)
        self.module: nn.Module = self.renderer.to(footage.device)
        self.channels: Tensor | float = pixel_weights(vae).to(footage.device) if isinstance(vae, TinyVAE) else 1.0

    def hidden(self) -> list[nn.Parameter]:
        return [] if self.config.published else matrices(self.renderer)

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"renderer {self.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        loss = self.error(rng, batch, held_out=False)
        return loss, {"error": loss.item()}

    def error(self, rng: random.Random, batch: int, held_out: bool) -> Tensor:
        """Mean squared error of the predictions of some windows, all with their prompt half or all without."""
        config, device = self.config, self.footage.device
        masked = PUBLISHED_MASKED_SHARE if config.published else MASKED_SHARE
        given = config.prompt_latents if rng.random() > masked else 0
        length = given + (config.new_latents if given else config.first_latents)
        windows = [self.window(length, given > 0, rng, held_out) for _ in range(batch)]
        latents, features = (torch.cat(part) for part in list(zip(*windows, strict=True))[:2])
        texts = [self.text.embed(text).renderer * float(rng.random() > NULL_TEXT_SHARE) for _, _, text in windows]
        noisy, time, wanted = self.noised(latents[:, given:], rng)
        with torch.autocast(device, torch.bfloat16):
            condition = self.renderer.condition(features, given)
            cache = self.renderer.read(latents[:, :given], torch.cat(texts).clone().to(device), condition)
            predicted = self.renderer.denoise(noisy, time, cache).float()
        return ((predicted - wanted).square() * self.channels).mean()

    @torch.no_grad()
    def window(self, length: int, inside: bool, rng: random.Random, held_out: bool) -> tuple[Tensor, Tensor, str]:
        """Latents [1, T, C, h, w] and features [1, T, D, g, k] of a random window, and the caption.

        One that is not `inside` a video is its beginning, whose first latent stands for one frame.
        """
        places = self.places[inside]
        if held_out or len(places) < LEAST_PLACES or rng.random() < NEW_SHARE:
            place, lead = self.place(length, inside, rng, held_out)
            if not held_out:
                places.append((place, lead))
        else:
            place, lead = rng.choice(places)
        latents, features = self.latents(place)[:, lead:], self.footage.features(place)[:, lead:]
        if self.tokenizer is not None:
            groups = features.split(self.tokenizer.config.frames, dim=1)
            features = torch.cat([self.tokenizer.decode(self.tokenizer.encode(part)).float() for part in groups], dim=1)
        return latents, features, self.footage.caption(place)

    def place(self, length: int, inside: bool, rng: random.Random, held_out: bool) -> tuple[Place, int]:
        """A random stretch for a window, and how many of its latents are there before the window."""
        footage = self.footage
        number = footage.pick(rng, held_out)
        inside = inside and footage.fits(number, length + LEAD_LATENTS) and rng.random() < LEAD_SHARE
        lead = LEAD_LATENTS if inside else 0
        return footage.place(number, lead + length, rng), lead

    @torch.no_grad()
    def _latents(self, place: Place) -> Tensor:
        """[1, T, C, h, w] float32."""
        with torch.autocast(self.footage.device, torch.bfloat16):
            latents: Tensor = self.vae.encode(pixels(self.footage.video(place)), self.vae.new_state()).float()
        return latents

    def noised(self, clean: Tensor, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents [B, ...] at random times, those times [B] as the network is told them, and what it should
        predict."""
        schedule, device, rows = self.config.schedule, clean.device, len(clean)
        if isinstance(schedule, FlowSchedule):
            drawn = [rng.random() if rng.random() > FIRST_STEP_SHARE else 0.0 for _ in range(rows)]
            time = schedule.shifted(torch.tensor(drawn, device=device))
            return schedule.mix(clean, start_noise(clean), time), time, clean
        levels = schedule.levels(schedule.train_steps)
        index = torch.tensor([rng.randrange(schedule.train_steps) for _ in range(rows)])
        alpha, noise = levels.alphas[index].to(device)[:, None, None, None, None], torch.randn_like(clean)
        sigma = (1 - alpha**2).sqrt()
        return alpha * clean + sigma * noise, levels.times[index].to(device), alpha * noise - sigma * clean

    def evaluate(self) -> dict[str, float]:
        """Mean squared error on held-out windows, always the same, with their prompt half and without."""
        rng = random.Random(f"renderer held out {self.seed}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            errors = [self.error(rng, HELD_OUT_SAMPLES, held_out=True) for _ in range(HELD_OUT_BATCHES)]
        return {"error": float(torch.stack(errors).mean())}

    def export(self) -> None:
        save_component(self.weights, "renderer", self.renderer)


def choose_part(renderer: Renderer, part: str) -> None:
    """Lets a part of `PARTS` learn, and freezes the rest."""
    renderer.base.requires_grad_(part != "control")
    renderer.control.requires_grad_(part != "base")
    renderer.condition.requires_grad_(part != "base")


@torch.no_grad()
def start_control(renderer: Renderer) -> None:
    """Control layers as copies of the base's first ones, behind zero maps: residuals start at nothing (paper 2.3)."""
    base, control = renderer.base.state_dict(), renderer.control.state_dict()
    control |= {name: value.clone() for name, value in base.items() if name in control}
    renderer.control.load_state_dict(control)
    for zero in renderer.control.zeros.parameters():
        nn.init.zeros_(zero)
