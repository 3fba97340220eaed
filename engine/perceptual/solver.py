"""Solvers: from noise to clean latents, one denoising step at a time.

A solver holds the coefficients of a run and nothing that changes; what changes is a `SolverState`, so that the engine
can interleave the steps of several runs. Shapes: `B` batch, `T` latent frames, `C` channels, `H` x `W` latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.perceptual.multistep import multistep_weights
from engine.perceptual.schedule import DiffusionSchedule, FlowSchedule


@dataclass(frozen=True, slots=True)
class SolverState:
    """Where a run stands."""

    x: Tensor  # [B, T, C, H, W] float32, noisy; clean after the last step
    clean: Tensor | None = None  # the estimate of the step before
    earlier: Tensor | None = None  # the one of the step before that, for solvers of third order


class Solver(Protocol):
    """A run of `steps` steps, numbered from 0."""

    @property
    def steps(self) -> int: ...

    def time(self, index: int) -> float:
        """What the network is told at a step."""
        ...

    def clean(self, index: int, x: Tensor, output: Tensor) -> Tensor:
        """The clean latents that a network output for `x` stands for, float32."""
        ...

    def guidance(self, index: int) -> float:
        """How far to go from the estimate without text to the one with it; 1 needs no estimate without."""
        ...

    def noised(self, index: int, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents brought to a step's noise level."""
        ...

    def draws(self, index: int) -> int:
        """How many noises the reference draws at a step; the last of them is the one that `step` takes."""
        ...

    def step(self, index: int, state: SolverState, clean: Tensor, noise: Tensor | None = None) -> SolverState:
        """The state after a step; `clean` is the (guided) estimate for `state.x`, `noise` as large as it."""
        ...

    def table(self) -> Tensor | None:
        """All numbers of all steps as `kernels.guidance.guided_step` takes them, [S, 8] float32 on the CPU.

        None if a step needs more than that knows.
        """
        ...


class MultistepSolver:
    """Deterministic steps along a path, through the estimates of up to three steps."""

    def __init__(self, alphas: Sequence[float], sigmas: Sequence[float], order: int, look_ahead: bool) -> None:
        """Of the levels from noise to clean, one more than steps; the rest as for `multistep_weights`."""
        self.steps = len(alphas) - 1
        self._alphas, self._sigmas = alphas, sigmas
        self._weights = multistep_weights(alphas, sigmas, order, look_ahead)

    def noised(self, index: int, clean: Tensor, noise: Tensor) -> Tensor:
        return self._alphas[index] * clean + self._sigmas[index] * noise

    def draws(self, index: int) -> int:
        return 0

    def step(self, index: int, state: SolverState, clean: Tensor, noise: Tensor | None = None) -> SolverState:
        """x_next = keep x + weighted estimates."""
        keep, *weights = self._weights[index]
        x = keep * state.x
        for weight, estimate in zip(weights, (clean, state.clean, state.earlier), strict=False):
            assert estimate is not None, "a step looks back no further than the run goes"
            x = x + weight * estimate
        return SolverState(x, clean, state.clean)

    def _table(self, outputs: Sequence[tuple[float, float]], guidance: Sequence[float]) -> Tensor | None:
        """As `table`; `outputs` are the factors of x and of the network's output in a clean estimate."""
        if max(map(len, self._weights)) > 3:
            return None
        rows = [
            (skip, out, scale, keep, -1.0, now, -before[0] if before else 0.0, 0.0)
            for (skip, out), scale, (keep, now, *before) in zip(outputs, guidance, self._weights, strict=True)
        ]
        return torch.tensor(rows)


class FlowSolver(MultistepSolver):
    """For a rectified flow whose network predicts clean latents."""

    def __init__(self, schedule: FlowSchedule, steps: int) -> None:
        times: list[float] = schedule.times(steps).tolist()
        # The shipped weights: 2 to 4 times less error than without looking ahead, at 4 to 8 steps of second order.
        super().__init__(times, [1 - time for time in times], schedule.order, look_ahead=True)

    def time(self, index: int) -> float:
        return self._alphas[index]

    def clean(self, index: int, x: Tensor, output: Tensor) -> Tensor:
        return output.float()

    def guidance(self, index: int) -> float:
        return 1.0

    def table(self) -> Tensor | None:
        return self._table([(0.0, 1.0)] * self.steps, [1.0] * self.steps)


class FewStepSolver(MultistepSolver):
    """For the published network where there are few steps: trailing spacing, from pure noise."""

    def __init__(self, schedule: DiffusionSchedule, steps: int) -> None:
        self._times, alphas = schedule.trailing(steps)
        sigmas = [*(math.sqrt(1 - alpha**2) for alpha in alphas), 0.0]
        # The last step starts at much noise, from where looking ahead goes astray.
        super().__init__([*alphas, 1.0], sigmas, schedule.order, look_ahead=False)
        self._guidance = [schedule.guidance_at(index / steps) for index in range(steps)]

    def time(self, index: int) -> float:
        return self._times[index]

    def clean(self, index: int, x: Tensor, output: Tensor) -> Tensor:
        return self._alphas[index] * x.float() - self._sigmas[index] * output.float()

    def guidance(self, index: int) -> float:
        return self._guidance[index]

    def table(self) -> Tensor | None:
        outputs = [(alpha, -sigma) for alpha, sigma in zip(self._alphas, self._sigmas, strict=True)]
        return self._table(outputs[:-1], self._guidance)


class DiffusionSolver:
    """The published sampler: stochastic DPM-Solver++ (2M) on the variance-preserving path (FACTS 3.6, 3.8)."""

    def __init__(self, schedule: DiffusionSchedule, steps: int) -> None:
        self.steps = steps
        self.levels = schedule.levels(steps)
        self.coefficients = _coefficients(self.levels.alphas)

    def time(self, index: int) -> float:
        return float(self.levels.times[index])

    def clean(self, index: int, x: Tensor, output: Tensor) -> Tensor:
        """From the network's v, with the alpha of the training table nearest to the step's."""
        return clean_of_velocity(x, output, self.levels.snapped[index].to(x.device))

    def guidance(self, index: int) -> float:
        return float(self.levels.guidance[index])

    def table(self) -> Tensor | None:
        keep, move, now, before, scatter = self.coefficients.T
        snapped, guidance = self.levels.snapped[:-1], self.levels.guidance[:-1].float()
        rows = torch.stack([snapped, -(1 - snapped**2).sqrt(), guidance, keep, move, now, before, scatter], dim=1)
        a = self.levels.snapped[-1]
        scale = self.levels.guidance[-1].float()
        last = torch.stack([a, -(1 - a**2).sqrt(), scale, *torch.tensor([0.0, -1.0, 1.0, 0.0, 0.0])])
        return torch.cat([rows, last[None]])

    def draws(self, index: int) -> int:
        return 0 if index == self.steps - 1 else 1 if index == 0 else 2

    def noised(self, index: int, clean: Tensor, noise: Tensor) -> Tensor:
        alpha = self.levels.alphas[index].to(clean.device)
        return alpha * clean + (1 - alpha**2).sqrt() * noise

    def step(self, index: int, state: SolverState, clean: Tensor, noise: Tensor | None = None) -> SolverState:
        """One step; raises ValueError where a noise is needed and not given."""
        if index == self.steps - 1:
            return SolverState(clean)
        if noise is None:
            raise ValueError(f"step {index} of {self.steps} needs noise")
        keep, move, now, before, scatter = self.coefficients[index].to(clean.device)
        slope = clean if state.clean is None else now * clean - before * state.clean
        return SolverState(keep * state.x - move * slope + scatter * noise, clean)


def solver_of(schedule: FlowSchedule | DiffusionSchedule, steps: int) -> Solver:
    """The solver that belongs to a schedule and a number of steps."""
    if isinstance(schedule, FlowSchedule):
        return FlowSolver(schedule, steps)
    return FewStepSolver(schedule, steps) if steps < schedule.few_steps else DiffusionSolver(schedule, steps)


def clean_of_velocity(x: Tensor, velocity: Tensor, alpha: Tensor) -> Tensor:
    """The clean latents, float32, that a predicted velocity stands for; `alpha` is a scalar tensor (FACTS 3.6)."""
    return alpha * x.float() - (1 - alpha**2).sqrt() * velocity.float()


def _coefficients(alphas: Tensor) -> Tensor:
    """[S + 1] alphas -> [S - 1, 5] float32: of x, of the estimate, of its two parts, of the noise.

    The first step starts at alpha 0, whose log SNR is minus infinity: the infinities give the right limits. They are
    computed in float32 like the published ones, which they must equal.
    """
    now, after = alphas[:-2], alphas[1:-1]
    log_snr = (alphas[:-1] ** 2 / (1 - alphas[:-1] ** 2)).sqrt().log()
    gap = log_snr[1:] - log_snr[:-1]
    ratio = torch.cat([torch.tensor([torch.inf]), gap[:-1] / gap[1:]])
    keep = ((1 - after**2) / (1 - now**2)).sqrt() * (-gap).exp()
    move = torch.expm1(-2 * gap) * after
    scatter = (1 - after**2).sqrt() * (1 - (-2 * gap).exp()).sqrt()
    return torch.stack([keep, move, 1 + 1 / (2 * ratio), 1 / (2 * ratio), scatter], dim=1)


def guide(without: Tensor, with_text: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on clean estimates."""
    return without + scale * (with_text - without)


def sample_reference(
    solver: DiffusionSolver,
    noise: Tensor,
    estimate: Callable[[int, Tensor], Tensor],
    prefix: Tensor | None = None,
    renoise_prefix: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A whole run with the release's order of random draws (FACTS 3.8, 6).

    Args:
        solver: of the run.
        noise: [B, T, C, H, W] float32, where the run starts.
        estimate: step number and x -> guided clean latents of x.
        prefix: [B, P, C, H, W] clean first frames, put back before every step.
        renoise_prefix: put them back at the step's noise level, with a draw of their own before each step.
        generator: of the draws, on any device; the global one if None.

    Returns:
        [B, T, C, H, W] clean latents.
    """

    def draw(like: Tensor) -> Tensor:
        drawn_on = like.device if generator is None else generator.device
        return torch.randn(like.shape, generator=generator, device=drawn_on, dtype=like.dtype).to(like.device)

    state = SolverState(noise)
    for index in range(solver.steps):
        if prefix is not None:
            given = solver.noised(index, prefix, draw(prefix)) if renoise_prefix else prefix
            state = SolverState(torch.cat([given, state.x[:, prefix.shape[1] :]], dim=1), state.clean)
        clean = estimate(index, state.x)
        draws = [draw(state.x) for _ in range(solver.draws(index))]
        state = solver.step(index, state, clean, draws[-1] if draws else None)
    return state.x if prefix is None else torch.cat([prefix, state.x[:, prefix.shape[1] :]], dim=1)
