"""Golden cases of full-size constants: schedules, guidance, positions, masks and embeddings of preset `landiff`."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from engine.perceptual.dit import DiTConfig, position_table
from engine.perceptual.schedule import DiffusionSchedule
from engine.perceptual.solver import DiffusionSolver
from engine.published.reference_case import Case
from engine.runtime.layers import sinusoid
from engine.semantic.masks import decoder_mask, encoder_mask
from engine.semantic.tokenizer import TokenizerConfig, group_angles

_MASKS = {"VideoEncoderMask": encoder_mask, "VideoDecoderMask": decoder_mask}
_ROWS = 512  # of a mask summed at a time; a whole sum in int64 would take gigabytes


def check_tables(case: Case) -> None:
    """Every table that the case holds."""
    for steps in sorted({int(match[1]) for name in case.tensors if (match := re.match(r"n(\d+)/", name))}):
        _check_schedule(case, steps)
    if "pos/rows" in case:
        config = DiTConfig()
        rows = position_table(config)[0, config.text_length + case["pos/token_index"].cpu()]
        case.close("pos/rows", rows)
    for name in _MASKS:
        _check_mask(case, name)
    if "rope3d/pos" in case:
        angles = torch.stack([_angles(place) for place in case["rope3d/pos"].tolist()])
        case.close("rope3d/cos", angles.cos())
        case.close("rope3d/sin", angles.sin())
    for name in list(case.tensors):
        if match := re.fullmatch(r"timestep_embedding/dim(\d+)", name):
            case.close(name, sinusoid(case["timestep_embedding/t"], int(match[1])))


def _check_schedule(case: Case, steps: int) -> None:
    levels, name = DiffusionSchedule().levels(steps), f"n{steps}/"
    case.close(name + "alpha_cumprod_sqrt_descending_noise", levels.alphas[:-1])
    case.same(name + "timesteps_ascending", levels.times.flip(0))
    case.close(name + "quantised_alpha_used_by_denoiser", levels.snapped)
    if name + "denoiser_table_index" in case:
        case.same(name + "denoiser_table_index", levels.snapped_index)
    case.close(name + f"guidance_scale_num_steps{steps}", levels.guidance)
    multipliers = name + "mult1_mult2_mult3_mult4_multnoise"
    if multipliers in case:
        expected, actual = case[multipliers].clone(), DiffusionSolver(DiffusionSchedule(), steps).coefficients
        # The first step has no step before it, so the two factors of a pair of estimates mean nothing there.
        expected[0, 2:4] = actual[0, 2:4] = 0
        for column in range(expected.shape[1]):
            case.near(f"{multipliers}[{column}]", actual[:, column], expected[:, column])


def _check_mask(case: Case, name: str) -> None:
    rows, columns = f"mask/{name}_rowsum", f"mask/{name}_colsum"
    if rows not in case:
        return
    config = TokenizerConfig()
    frames = (len(case[rows]) - config.i_tokens + config.p_tokens) // (config.patches + config.p_tokens)
    mask = _MASKS[name](frames, config.patches, config.i_tokens, config.p_tokens)
    case.same(rows, torch.cat([part.sum(1, dtype=torch.int32) for part in mask.split(_ROWS)]))
    case.same(columns, torch.cat([part.sum(0, dtype=torch.int32) for part in mask.split(_ROWS, dim=1)]))


def _angles(place: list[int]) -> Tensor:
    """Angles at (time, row, column), out of a table large enough to hold the place."""
    config, (t, y, x) = TokenizerConfig(), place
    rows, columns = config.grid
    if t == y == x:
        # So stand latent tokens, however many.
        config = replace(config, frames=2 + t // config.p_tokens)
        return group_angles(config, config.frames, "cpu")[config.frames * config.patches + t]
    config = replace(config, frames=t + 1, grid=(max(rows, y + 1), max(columns, x + 1)))
    return group_angles(config, config.frames, "cpu")[(t * config.grid[0] + y) * config.grid[1] + x]
