"""Stage `renderer`: latents from features, text and context (paper Eq. 5 and 6), for any preset.

The loss is the squared error of the prediction: velocity (`landiff`) or clean latents (`mini`). For `mini` channels are
weighted by their effect on pixels, and cells near subjects more; an error is added to the context that fades over the
new frames of the target, so that errors do not accumulate over chunks and no seam shows. Later in training half of the
contexts are rendered by the model itself: it learns to correct its own errors, which no noise resembles.
Shapes: `B` batch, `T` new latent frames, `P` of context, `C` channels, `h` x `w` latent size, `g` x `k` feature grid,
`D` feature channels, `L` text tokens of width `K`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.loading.options import autocast
from engine.loading.weights import load_component
from engine.perceptual.mini.vae import TinyVAE
from engine.perceptual.renderer import DiTRenderer, WindowCache
from engine.perceptual.schedule import FlowSchedule
from engine.perceptual.solver import FlowSolver, SolverState
from engine.semantic import world_maps
from engine.training.latent_pool import LatentPool, TrainingWindow
from engine.training.run import LossAndFigures, TrainingStage
from engine.training.setup import PARTS, StageSetup
from engine.training.world import teacher

MASKED_SHARE, PUBLISHED_MASKED_SHARE = 0.35, 0.2  # samples without a context (0.2: paper 2.3)
NULL_TEXT_SHARE = 0.1
LARGEST_ERROR = 0.2  # amplitude of the error added to a context
ERROR_KEPT = 0.8  # share of the error from one new frame of the target to the next: no step at the seam
SUBJECT_WEIGHT = 6.0
SUBJECT_COVERED = 0.05  # least share of a cell covered by a subject that counts as near it
FIRST_STEP_SHARE = 0.35  # samples at pure noise, the start of every sampling run
POOL_SEGMENTS, START_SEGMENTS, HELD_OUT_SEGMENTS = 384, 96, 24
POOL_BYTES = 8 << 30  # of features, which limit the pools of large presets
REFRESH = 0.05  # segments replaced per sample
RENDERED_FROM = 2000  # first step with rendered contexts; those of a new model are useless


@torch.no_grad()
def start_control(renderer: DiTRenderer) -> None:
    """Copies the first layers of the base into the control branch, whose residuals start at 0 (paper 2.3)."""
    renderer.control.load_state_dict(renderer.base.state_dict(), strict=False)
    for zero in renderer.control.zeros.parameters():
        nn.init.zeros_(zero)


@torch.no_grad()
def start_details(renderer: DiTRenderer) -> None:
    """Initialises the details of subjects for features that are the world's teacher maps."""
    details = renderer.condition.details
    if details is not None:
        for waves in (details.fine.waves, details.sketch.strokes.waves):
            waves.weight.copy_(teacher.wave_weights(len(waves.weight))[:, :, None, None])
        details.sketch.opacity.weight.copy_(teacher.opacity_weights()[None, :, None, None])


@dataclass(frozen=True, slots=True)
class RendererBatch:
    """The tensors of a training step."""

    context: Tensor  # [B, P, C, h, w] latents, with errors
    clean: Tensor  # [B, T, C, h, w] the new latents
    noise: Tensor  # [B, T, C, h, w]
    features: Tensor  # [B, P + T, D, g, k]
    text: Tensor  # [B, L, K]
    weight: Tensor  # [B, T, 1, h, w] of the cells

    def read(self, renderer: DiTRenderer) -> WindowCache:
        """The window for `DiTRenderer.denoise`: everything but the new latents."""
        condition = renderer.condition(self.features, self.context.shape[1])
        return renderer.open_window(self.context, renderer.read_text(self.text), condition)


class RendererStage(TrainingStage):
    """Trains `DiTRenderer` or a part of it."""

    # No modulations: they are large, and orthogonalising them would cost more than the model itself.
    hidden = r"^(?!.*(modulation|waves))(condition\.|.*\.blocks\.)"

    def __init__(self, setup: StageSetup) -> None:
        """Raises ValueError if the part cannot be trained alone, or weights of earlier stages are missing."""
        head = setup.config.renderer.dit.head
        if setup.part == "base" and head != "linear":
            raise ValueError(f"the {head} head reads the condition: train part 'both'")
        self.config, self.device, self.source = setup.config, setup.device, setup.source()
        self.small, self.vae, self.text = not setup.config.published, setup.load("vae"), setup.text()
        tokenizer = setup.load("tokenizer") if setup.features == "tokens" else None
        torch.manual_seed(setup.seed)
        self.renderer = DiTRenderer(setup.config.renderer)
        if setup.config.tokenizer.feature_dim == world_maps.FEATURE_DIM:
            start_details(self.renderer)
        if setup.part == "control":
            load_component(setup.weights, "renderer", self.renderer)
            start_control(self.renderer)
        for name, parameter in self.renderer.named_parameters():
            parameter.requires_grad_(name.startswith(PARTS[setup.part]))
        # Mean effect of each latent channel on pixels, [C, 1, 1]: else most of the loss would be invisible.
        shown = 1 / self.vae.latent_scale if isinstance(self.vae, TinyVAE) else torch.ones(1, device=self.device)
        self.pixels = (shown / shown.mean())[:, None, None]
        self.rendered_from = 0 if setup.warm_start else RENDERED_FROM
        self.pool, self.held_out = (
            LatentPool(setup.config, self.source, self.vae, tokenizer, size, held_out)
            for size, held_out in ((POOL_SEGMENTS, False), (HELD_OUT_SEGMENTS, True))
        )
        super().__init__(setup.weights, self.renderer.to(self.device), renderer=self.renderer)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        pool = self.fresh_pool(step, rng, batch, held_out)
        with_context = rng.random() > (MASKED_SHARE if self.small else PUBLISHED_MASKED_SHARE)
        context = self.config.context_length if with_context else 0
        windows = [pool.window(rng, with_context) for _ in range(batch)]
        data = self.batch(windows, context, None if held_out else rng)
        error = self.errors(data)
        name = "with_context" if with_context else "first"
        figures = {f"error_{name}": error.mean().item()}
        if held_out and self.small:
            figures[f"rendered_{name}"] = ((self.render(data) - data.clean).square() * self.pixels).mean().item()
        return (error * data.weight * self.pixels).mean(), figures

    def fresh_pool(self, step: int, rng: random.Random, batch: int, held_out: bool) -> LatentPool:
        """The pool of training or held-out segments, after some of the training segments are replaced."""
        if held_out:
            self.held_out.fill(random.Random("held out"), HELD_OUT_SEGMENTS)
            return self.held_out
        pool = self.pool
        if not pool.segments:
            pool.fill(rng, 1)
            pool.size = max(2, min(pool.size, POOL_BYTES // (4 * pool.segments[0].segment.features.numel())))
        pool.fill(rng, START_SEGMENTS)
        for _ in range(int(batch * REFRESH + rng.random())):
            pool.refresh(rng, self.render_window if self.small and step >= self.rendered_from else None)
        return pool

    def batch(self, windows: list[TrainingWindow], context: int, rng: random.Random | None = None) -> RendererBatch:
        """A batch of windows as in generation or, with `rng`, with context errors and without some texts."""
        latents = torch.stack([window.latents for window in windows])
        features = torch.stack([window.features for window in windows])
        before, clean = latents[:, :context], latents[:, context:]
        text = self.read_text([window.caption for window in windows])
        if rng is not None:
            null = torch.tensor([rng.random() < NULL_TEXT_SHARE for _ in windows], device=self.device)
            text = text.masked_fill(null[:, None, None], 0.0)
        if rng is not None and context and self.small:
            error = self.context_error(clean[:, :1])
            added = error.clone()
            for row, window in enumerate(windows):
                if window.error is not None:  # the context is rendered, and has an error already
                    added[row], error[row] = 0.0, window.error
            fading = ERROR_KEPT ** torch.arange(1, clean.shape[1] + 1, device=self.device)
            before, clean = before + added, clean + error * fading[:, None, None, None]
        noise = torch.randn_like(clean[:, :1] if self.config.shared_noise else clean).expand_as(clean)
        covered = torch.stack([window.mask[context:] for window in windows]) > SUBJECT_COVERED
        near = nnf.max_pool2d(nnf.interpolate(covered.float(), scale_factor=2), 3, 1, 1).unsqueeze(2)
        return RendererBatch(before, clean, noise, features, text, 1 + (SUBJECT_WEIGHT - 1) * near)

    @torch.no_grad()
    def read_text(self, captions: list[str]) -> Tensor:
        """[B, L, K]."""
        # A copy, because tensors made in inference mode cannot be saved for the backward pass.
        return torch.cat([self.text.embed(caption).renderer for caption in captions]).clone().to(self.device)

    def context_error(self, like: Tensor) -> Tensor:
        """Noise [B, 1, C, h, w], fine or coarse and weak or strong by sample."""
        fine = torch.randn_like(like)
        coarse = nnf.interpolate(fine[:, 0, :, ::4, ::4], size=like.shape[-2:], mode="bilinear").unsqueeze(1)
        pick = torch.rand(len(like), 1, 1, 1, 1, device=like.device)
        return LARGEST_ERROR * pick.square() * torch.where(torch.rand_like(pick) < 0.5, fine, coarse)

    def errors(self, batch: RendererBatch) -> Tensor:
        """Squared error [B, T, C, h, w] of the prediction at random times."""
        noisy, time, target = self.noised(batch)
        with autocast(self.device):
            predicted = self.renderer.denoise(noisy, time, batch.read(self.renderer)).float()
        return (predicted - target).square()

    def noised(self, batch: RendererBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents [B, T, C, h, w], random times [B] as the network is told them, and what it should predict."""
        schedule, clean, noise, rows = self.config.schedule, batch.clean, batch.noise, len(batch.clean)
        if isinstance(schedule, FlowSchedule):
            drawn = torch.rand(rows, device=self.device) * (torch.rand(rows, device=self.device) > FIRST_STEP_SHARE)
            time = schedule.shifted(drawn)
            return schedule.mix(clean, noise, time), time, clean
        levels = schedule.levels(schedule.train_steps)
        index = torch.randint(schedule.train_steps, (rows,))
        alpha = levels.alphas[index].to(self.device)[:, None, None, None, None]
        sigma = (1 - alpha**2).sqrt()
        return alpha * clean + sigma * noise, levels.times[index].to(self.device), alpha * noise - sigma * clean

    def render_window(self, window: TrainingWindow, context: int) -> Tensor:
        """Renders the new latents [T, C, h, w] of a window with the current model."""
        return self.render(self.batch([window], context))[0]

    @torch.no_grad()
    def render(self, batch: RendererBatch) -> Tensor:
        """Renders the new latents [B, T, C, h, w] from the noise of the batch, in the preset's number of steps."""
        assert isinstance(self.config.schedule, FlowSchedule)
        solver, state = FlowSolver(self.config.schedule, self.config.steps), SolverState(batch.noise)
        with autocast(self.device):
            cache = batch.read(self.renderer)
            for index in range(solver.steps):
                time = torch.full((len(batch.noise),), solver.time(index), device=self.device)
                state = solver.step(index, state, self.renderer.denoise(state.x, time, cache).float())
        return state.x
