"""Rates that the device reaches, and the work of a denoising step and of a planned token to hold against them."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.bench.contenders import MS, TOTAL, guided_rows, race, summary
from engine.config import EngineConfig
from engine.loading.model import Model
from engine.perceptual.renderer import DiTRenderer
from engine.perceptual.solver import solver_of
from engine.semantic.planner import Planner

COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}  # far beyond any cache
MATRIX_ROWS = {"cpu": 2048, "cuda": 8192}  # of a square matrix
ROUNDS = 9
PROMPT_TOKENS = 100  # of a long caption


def rates(model: Model, step_s: float, token_s: float) -> dict[str, float]:
    """Rates of a plain copy, bytes read and written, and of a large matrix product, and what a denoising step and a
    planned token of so many seconds reach of them."""
    device, size_bytes, rows = model.device, COPY_BYTES[model.device.type], MATRIX_ROWS[model.device.type]
    source, target = torch.ones(2, size_bytes, dtype=torch.uint8, device=device)
    left, right = torch.randn(2, rows, rows, device=device).to(model.dtype)
    turns = {"copy": partial(target.copy_, source), "multiply": partial(torch.mm, left, right)}
    seconds = {name: summary(parts[TOTAL])["median"] / MS for name, parts in race(turns, ROUNDS, device).items()}
    found = {
        "copy_gb_s": 2 * size_bytes / seconds["copy"] / 1e9,
        "matrix_product_gflop_s": 2 * rows**3 / seconds["multiply"] / 1e9,
        "denoising_step_gflop_s": step_flops(model.config) / step_s / 1e9,
        "planned_token_gb_s": token_bytes(model.config, model.dtype) / token_s / 1e9,
    }
    return found | {
        "denoising_step_share": found["denoising_step_gflop_s"] / found["matrix_product_gflop_s"],
        "planned_token_share": found["planned_token_gb_s"] / found["copy_gb_s"],
    }


def step_flops(config: EngineConfig) -> int:
    """FLOPs of a denoising step after the context was read, counted on a renderer that takes no memory."""
    dit, rows = config.renderer.dit, guided_rows(solver_of(config.schedule, config.steps))
    with torch.device("meta"), torch.inference_mode():
        renderer = DiTRenderer(config.renderer).eval()
        latents = torch.empty(rows, dit.frames, dit.channels, dit.height, dit.width)
        context, new = latents.split([config.context_length, config.chunk_length], dim=1)
        condition = torch.empty(rows, dit.frames, dit.condition_channels, dit.height, dit.width)
        text = renderer.read_text(torch.empty(rows, dit.text_length, dit.text_dim))
        cache = renderer.open_window(context, text, condition)
        with FlopCounterMode(display=False) as counter:
            renderer.denoise(new, torch.empty(rows), cache)
    return int(counter.get_total_flops())


def token_bytes(config: EngineConfig, dtype: torch.dtype) -> int:
    """Bytes that must be read to plan a token: weights, and keys and values at the middle of a GOP."""
    planner = config.planner
    with torch.device("meta"):
        module = Planner(planner)
    weights = sum(weight.numel() for part in (module.blocks, module.head) for weight in part.parameters())
    positions = planner.max_len(PROMPT_TOKENS) - planner.plan_len(planner.gop_frames) // 2
    cached = 2 * (1 + config.sampling.guided) * planner.layers * planner.hidden * positions
    return dtype.itemsize * (weights + cached)
