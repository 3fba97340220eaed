"""Stage `renderer`: flow matching with the prompt half clean (paper Eq. 5 and 6), base and control branch together.

The network sees x = t clean + (1 - t) noise for the new half and predicts the clean latents. The prompt half is given
at time 0.999, and in a third of the samples there is none, as at the start of a video. A flaw of the prompt half goes
on in the new frames and fades there, so that neither errors pile up over hops nor a seam shows. Later in the training
many prompt halves are the model's own, from videos that it has gone on with for many hops: so it learns to mend what it
does itself, which no noise resembles.
Shapes: `B` batch, `T` latent frames, `C` channels, `h` x `w` latent size.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.config import EngineConfig
from engine.loading.weights import save_component
from engine.perceptual.mini.vae import TinyVAE, TinyVAEState
from engine.perceptual.renderer import Renderer, WindowCache
from engine.perceptual.schedule import FlowSchedule
from engine.perceptual.solver import FlowSolver, SolverState
from engine.training.latent_pool import LatentPool, Quantise, Window, cut
from engine.training.stages.autoencoder import psnr
from engine.training.world import teacher

MASKED_SHARE = 0.35  # samples without a prompt half
NULL_TEXT_SHARE = 0.1
NULL_PLAN_SHARE = 0.05  # samples whose features are 0, so that the renderer can be watched without a plan
FLAW = 0.2  # largest amplitude of what is added to the prompt half, so that its own flaws are borne
FLAW_KEPT = 0.8  # of a flaw from one new frame to the next: it fades instead of vanishing at the seam
SUBJECT_WEIGHT = 6.0
FIRST_STEP_SHARE = 0.35  # samples at pure noise, where every sampling run starts
POOL_CLIPS = 384
START_CLIPS = 96
REFRESH = 0.05  # clips replaced per sample
MADE_FROM = 2000  # step from which a new model goes on with its own prompt halves; earlier they teach nothing
HELD_OUT = 24

EncodeText = Callable[[list[str]], Tensor]  # captions to [B, L, K]


def start_noise(like: Tensor) -> Tensor:
    """What sampling starts from, as large as `like` [B, T, C, h, w]: the same for all frames of a window."""
    return torch.randn_like(like[:, :1]).expand_as(like)


def pixel_weights(vae: TinyVAE) -> Tensor:
    """[C, 1, 1], how much a change of each channel moves pixels. What nobody sees would otherwise be most of a loss."""
    shown = 1 / vae.latent_scale
    return (shown / shown.mean())[:, None, None]


def matrices(renderer: Renderer) -> list[nn.Parameter]:
    """What Muon trains of a small renderer, if it is trained at all: not modulations, which are large, so that
    orthogonalising them would cost more than the model."""
    head = ("base.head.blocks.", "condition.")
    chosen = []
    for name, p in renderer.named_parameters():
        if not p.requires_grad:
            continue
        convolution = p.ndim == 4 and min(p.shape[:2]) > 8 and name.startswith(head) and ".waves" not in name
        if convolution or (p.ndim == 2 and ".blocks." in name and "modulation" not in name and min(p.shape) > 8):
            chosen.append(p)
    return chosen


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step of training sees."""

    prompt: Tensor  # [B, P, C, h, w] with flaws
    clean: Tensor  # [B, T, C, h, w] the new latents
    noise: Tensor  # [B, T, C, h, w]
    features: Tensor  # [B, P + T, D, g, k]
    text: Tensor  # [B, L, K]
    weight: Tensor  # [B, T, 1, h, w] of the cells

    def read(self, renderer: Renderer) -> WindowCache:
        """What `Renderer.denoise` needs of everything but the new latents."""
        return renderer.read(self.prompt, self.text, renderer.condition(self.features, self.prompt.shape[1]))


class RendererStage:
    """Trains `Renderer` on windows of encoded clips."""

    def __init__(
        self,
        config: EngineConfig,
        vae: TinyVAE,
        encode_text: EncodeText | None,
        quantise: Quantise | None,
        seed: int,
        device: str,
        weights: Path,
        part: str = "both",
    ) -> None:
        """Without `encode_text` every sample has the null text; `quantise` as for `LatentPool`.

        Raises:
            ValueError: if `part` is neither 'both' nor 'head', the head alone.
        """
        if part not in ("both", "head"):
            raise ValueError(f"part {part!r} is learned from videos: give --data, or part 'both' or 'head'")
        torch.manual_seed(seed)
        self.config, self.seed, self.device, self.weights = config, seed, device, weights
        self.encode_text, self.vae = encode_text, vae.to(device).eval()
        self.renderer = Renderer(config.renderer).to(device)
        self.module: nn.Module = self.renderer
        if part == "head":
            self.renderer.requires_grad_(False)
            self.renderer.base.head.requires_grad_(True)
        self.made_from = MADE_FROM
        self.pixels = pixel_weights(self.vae)
        details = self.renderer.condition.details
        if details is not None and config.tokenizer.feature_dim == teacher.FEATURE_DIM:
            with torch.no_grad():
                for waves in (details.fine.waves, details.sketch.strokes.waves):
                    waves.weight.copy_(teacher.wave_weights(len(waves.weight))[:, :, None, None])
                details.sketch.opacity.weight.copy_(teacher.opacity_weights()[None, :, None, None])
        self.schedule = FlowSchedule()
        self.pool = LatentPool(config, self.vae, quantise, POOL_CLIPS)
        rng = random.Random(f"renderer held out {seed}")
        clips = [self.pool.make(rng, held_out=True, changes=False) for _ in range(HELD_OUT)]
        self.held_out = [cut(clip, 0, config.prompt_latents + config.new_latents) for clip in clips]

    def hidden(self) -> list[nn.Parameter]:
        return matrices(self.renderer)

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"renderer {self.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        self.fill(step)
        for _ in range(int(batch * REFRESH + rng.random())):
            self.pool.refresh(rng, self.next_latents if step >= self.made_from else None)
        prompted = rng.random() > MASKED_SHARE
        windows = [self.pool.window(rng, prompted) for _ in range(batch)]
        error, weight = self.errors(windows, prompted, rng)
        subject = (error * (weight > 1)).sum() / (weight > 1).sum().clamp(min=1) / error.shape[2]
        name = "prompted" if prompted else "first"
        figures = {f"error_{name}": error.mean().item(), f"subject_{name}": subject.item()}
        return (error * weight * self.pixels).mean(), figures

    def fill(self, step: int) -> None:
        """Draws clips until a step can begin."""
        while len(self.pool.clips) < START_CLIPS:
            self.pool.refresh(random.Random(f"pool {self.seed} {step} {len(self.pool.clips)}"))

    def errors(self, windows: list[Window], prompted: bool, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Squared error [B, T, C, h, w] of the new latents and the weights [B, T, 1, h, w] of their cells."""
        batch = self.batch(windows, prompted, rng)
        time = torch.rand(len(windows), device=self.device)
        time = time * (torch.rand_like(time) > FIRST_STEP_SHARE)
        noisy = self.schedule.mix(batch.clean, batch.noise, time)
        with torch.autocast(self.device, torch.bfloat16):
            predicted = self.renderer.denoise(noisy, time, batch.read(self.renderer)).float()
        return (predicted - batch.clean).square(), batch.weight

    def batch(self, windows: list[Window], prompted: bool, rng: random.Random) -> Batch:
        """The windows as training sees them, with or without their prompt halves."""
        latents = torch.stack([window.latents for window in windows]).to(self.device)
        planned = torch.tensor([float(rng.random() > NULL_PLAN_SHARE) for _ in windows], device=self.device)
        features = torch.stack([window.features for window in windows]).to(self.device)
        features = features * planned[:, None, None, None, None]
        text = self.text([window.caption for window in windows], rng)
        given = self.config.prompt_latents if prompted else 0
        prompt, clean = latents[:, :given], latents[:, given:]
        if given:
            flaw = self.flaw(clean[:, :1])
            own = [window.flaw is not None for window in windows]
            prompt = prompt + flaw.masked_fill(torch.tensor(own, device=self.device)[:, None, None, None, None], 0.0)
            for row, window in enumerate(windows):
                if window.flaw is not None:
                    flaw[row] = window.flaw
            fading = FLAW_KEPT ** torch.arange(1, clean.shape[1] + 1, device=self.device)
            clean = clean + flaw * fading[:, None, None, None]
        noise = start_noise(clean)
        mask = torch.stack([window.mask[given:] for window in windows]).to(self.device)
        near = nnf.max_pool2d(nnf.interpolate((mask > 0.05).float(), scale_factor=2), 3, 1, 1).unsqueeze(2)
        return Batch(prompt, clean, noise, features, text, 1 + (SUBJECT_WEIGHT - 1) * near)

    def flaw(self, like: Tensor) -> Tensor:
        """Noise as large as `like` [B, 1, C, h, w], fine or coarse and weak or strong from sample to sample."""
        fine = torch.randn_like(like)
        coarse = nnf.interpolate(fine[:, 0, :, ::4, ::4], scale_factor=4, mode="bilinear").unsqueeze(1)
        pick = torch.rand(len(like), 1, 1, 1, 1, device=like.device)
        return FLAW * pick.square() * torch.where(torch.rand_like(pick) < 0.5, fine, coarse)

    def text(self, captions: list[str], rng: random.Random) -> Tensor:
        """[B, L, K], some rows null."""
        dit = self.config.renderer.dit
        if self.encode_text is None:
            return torch.zeros(len(captions), dit.text_length, dit.text_dim, device=self.device)
        with torch.no_grad():
            text = self.encode_text(captions).to(self.device)
        null = torch.tensor([rng.random() < NULL_TEXT_SHARE for _ in captions], device=self.device)
        return text.masked_fill(null[:, None, None], 0.0)

    def next_latents(self, window: Window, given: int) -> Tensor:
        """A window's new latents [T, C, h, w] behind its first `given`, by the model as it is now."""
        prompt = window.latents[None, :given].to(self.device) if given else None
        return self.render(window, prompt, int(torch.randint(2**31, ())))[0].to(window.latents.device)

    def render(self, window: Window, prompt: Tensor | None, seed: int) -> Tensor:
        """The new latents [1, T, C, h, w] of a window, by the shipped number of steps."""
        given = 0 if prompt is None else prompt.shape[1]
        features = window.features[None].to(self.device)
        text = self.text([window.caption], random.Random(1))
        shape = (1, 1, *window.latents.shape[1:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        noise = noise.expand(-1, features.shape[1] - given, -1, -1, -1)
        solver, state = FlowSolver(self.schedule, self.config.steps), SolverState(noise)
        with torch.autocast(self.device, torch.bfloat16):
            condition = self.renderer.condition(features, given)
            cache = self.renderer.read(noise[:, :0] if prompt is None else prompt, text, condition)
            for index in range(solver.steps):
                time = torch.full((1,), solver.time(index), device=self.device)
                clean = self.renderer.denoise(state.x, time, cache).float()
                state = solver.step(index, state, clean)
        return state.x

    def evaluate(self) -> dict[str, float]:
        """PSNR of decoded new frames against the decoded true latents: after a true prompt, and as a first hop."""
        given, figures = self.config.prompt_latents, {}
        for name in ("prompted", "first"):
            errors, near = [], []
            for seed, window in enumerate(self.held_out):
                truth = window.latents[None].to(self.device)
                if name == "prompted":
                    made = torch.cat([truth[:, :given], self.render(window, truth[:, :given], seed)], dim=1)
                else:
                    first = replace(
                        window,
                        latents=window.latents[:given],
                        features=window.features[:given],
                        mask=window.mask[:given],
                    )
                    truth, made = truth[:, :given], self.render(first, None, seed)
                with torch.autocast(self.device, torch.bfloat16):
                    pictures = [self.vae.decode(z, TinyVAEState()).float().clamp(-1, 1) for z in (made, truth)]
                error = (pictures[0] - pictures[1]).square()[0]
                error = error[-4 * self.config.new_latents :]
                box = nnf.interpolate((window.mask[: truth.shape[1]] > 0.3).float()[None], scale_factor=16)[0]
                box = box[-self.config.new_latents :].repeat_interleave(4, 0)[:, None].to(self.device)
                errors.append(error.mean())
                near.append((error * box).sum() / (3 * box.sum()).clamp(min=1))
            figures[f"psnr_{name}_db"] = psnr(torch.stack(errors))
            figures[f"subject_{name}_db"] = psnr(torch.stack(near))
        return figures

    def export(self) -> None:
        save_component(self.weights, "renderer", self.renderer)
