"""Schedules against the reference's full-scale tables, and their errors."""

from __future__ import annotations

import pytest
import torch

from engine.perceptual.schedule import DiffusionSchedule, FlowSchedule
from tests import golden


@pytest.mark.parametrize("steps", [10, 25, 50])
def test_levels_equal_reference(steps: int) -> None:
    """Alphas, times, snapped alphas and guidance of real runs equal the reference's."""
    case = golden.load("fullscale_tables")
    levels = DiffusionSchedule().levels(steps)
    name = f"n{steps}"
    alphas = case[f"{name}/alpha_cumprod_sqrt_descending_noise"]
    assert golden.relative_error(levels.alphas[:-1], alphas) < 1e-6
    assert levels.alphas[0] == 0 and levels.alphas[-1] == 1
    assert torch.equal(levels.times.flip(0), case[f"{name}/timesteps_ascending"])
    assert torch.equal(levels.snapped_index, case[f"{name}/denoiser_table_index"])
    assert golden.relative_error(levels.snapped, case[f"{name}/quantised_alpha_used_by_denoiser"]) < 1e-6
    assert golden.relative_error(levels.guidance, case[f"{name}/guidance_scale_num_steps{steps}"]) < 1e-9


def test_training_table_equals_reference() -> None:
    """The table of all training steps equals the reference's."""
    case = golden.load("fullscale_tables")
    levels = DiffusionSchedule().levels(1000)
    assert golden.relative_error(levels.alphas[:-1], case["n1000/alpha_cumprod_sqrt_descending_noise"]) < 1e-6
    assert torch.equal(levels.times.flip(0), case["n1000/timesteps_ascending"])


def test_flow_times_run_from_noise_to_clean() -> None:
    """Times rise from 0 to 1, evenly without shift, and a shift above 1 keeps them noisier for longer."""
    even, shifted = FlowSchedule().times(4), FlowSchedule(shift=3.0).times(4)
    torch.testing.assert_close(even, torch.tensor([0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    assert shifted[0] == 0 and shifted[-1] == 1
    assert bool((shifted[1:-1] < even[1:-1]).all()) and bool((shifted.diff() > 0).all())


def test_flow_mix_is_per_row() -> None:
    """Every row is mixed at its own time."""
    clean, noise = torch.full((2, 3, 1, 2, 2), 4.0), torch.full((2, 3, 1, 2, 2), 2.0)
    mixed = FlowSchedule.mix(clean, noise, torch.tensor([0.0, 0.75]))
    assert bool((mixed[0] == 2.0).all()) and bool((mixed[1] == 3.5).all())


def test_errors_name_the_numbers() -> None:
    """Impossible steps and configurations are refused."""
    with pytest.raises(ValueError, match="1001 sampling steps"):
        DiffusionSchedule().levels(1001)
    with pytest.raises(ValueError, match="1 sampling steps"):
        DiffusionSchedule().levels(1)
    with pytest.raises(ValueError, match="shift 0.5"):
        DiffusionSchedule(shift=0.5)
    with pytest.raises(ValueError, match="betas must rise"):
        DiffusionSchedule(beta_start=0.1)
    with pytest.raises(ValueError, match="0 sampling steps"):
        FlowSchedule().times(0)
    with pytest.raises(ValueError, match="shift 0"):
        FlowSchedule(shift=0)
