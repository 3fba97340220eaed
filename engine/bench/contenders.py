"""A race of the engine as it runs with public libraries' models doing the same work.

What is compared takes turns in one process, so that a slow moment of the machine falls on all alike.

Rendering: the transformer's work for six new latents. Ours reads the context once and then denoises the new latents,
with the head; theirs computes whole windows at every step, since it has no cache for the context. Turning the plan into
features and features into the condition has no counterpart there and is timed apart. Planning: as many tokens of an
endless video with the same noise and sampler, ours several a pass, by a LLaMA with a static cache one by one.
Shapes: `B` guided rows, `T` latent frames, `C` latent channels, `H` x `W` latent size.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import StaticCache

from engine.bench import peers
from engine.live.generator import Generator
from engine.live.noise import normal, uniform
from engine.loading.model import Model
from engine.perceptual.solver import Solver, SolverState, guide, solver_of
from engine.semantic.sampling import gumbel, sample_token

CAPTION = "a red car drives slowly to the right through the desert"
SEED = 0
LEAD_IN = 3  # chunks before the first turn, after which every chunk has its full context
STAGES = ("plan", "features", "condition", "context", "steps", "decode")
WARM_UPS = 2  # rounds that are not counted
MS = 1e3  # in a second
TOTAL = "total"

# A turn's work; a dict that it returns holds seconds of its parts, and of its total where that is not all of it.
Turn = Callable[[], object]
Timings = dict[str, npt.NDArray[np.float64]]  # milliseconds of `TOTAL` and of parts, one number a round


def now_s(device: torch.device) -> float:
    """The time when the device's work is done, on a monotonic clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def race(turns: Mapping[str, Turn], rounds: int, device: torch.device) -> dict[str, Timings]:
    """Lets the contenders take turns, each first in as many rounds as the others."""
    order = deque(turns)
    timings: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    for _ in tqdm(range(WARM_UPS + rounds), unit="round"):
        for name in order:
            begin_s = now_s(device)
            parts = turns[name]()
            timings[name].append({TOTAL: now_s(device) - begin_s} | (parts if isinstance(parts, dict) else {}))
        order.rotate(-1)
    return {
        name: {part: MS * np.array([row[part] for row in rows[WARM_UPS:]]) for part in rows[0]}
        for name, rows in timings.items()
    }


def summary(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The median of at least one value, and the borders of the middle half."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "middle_half": [low, high]}


def contenders(generator: Generator) -> dict[str, Turn]:
    """`our_chunks` with `transformer` and `decoder`, `our_tokens` with `llama`.

    diffusers' autoencoder only begins videos and never goes on; its pictures stay on the device, as RGB.
    """
    model, config, dit = generator.model, generator.model.config, generator.model.config.renderer.dit
    layers, size = dit.layers + config.renderer.control_layers, (config.height_px, config.width_px)
    transformer = peers.placed(lambda: peers.transformer(dit, layers), model.device, model.dtype)
    decoder = peers.placed(lambda: peers.autoencoder(config.vae, *size), model.device, model.dtype)
    latents = normal((1, dit.channels, config.context_length, dit.height, dit.width), "bench latents")
    # As long as the engine's cache.
    length = config.planner.max_len(config.text.planner_tokens)
    llama = peers.placed(lambda: peers.llama(config.planner, length), model.device, model.dtype)
    tokens = their_tokens(model, llama, StaticCache(llama.config, max_cache_len=length))
    return {
        "our_chunks": our_chunks(generator),
        "transformer": their_chunks(model, transformer, solver_of(config.schedule, config.steps)),
        "decoder": partial(decoder.decode, latents.to(model.device, model.dtype), return_dict=False),
        "our_tokens": our_tokens(generator),
        "llama": lambda: [next(tokens) for _ in range(config.tokenizer.gop_tokens)],
    }


def our_chunks(generator: Generator) -> Callable[[], dict[str, float]]:
    """Chunk after chunk of one channel: seconds of each of `STAGES`; the total is that of context and steps."""
    model, channel = generator.model, generator.open(CAPTION, SEED)
    nested: dict[str, list[float]] = {}

    def chunk() -> dict[str, float]:
        parts, begin_s = dict.fromkeys(STAGES, 0.0), now_s(model.device)
        while generator.needs_plan(channel):
            generator.plan(channel)
        stage, last_s = "context", now_s(model.device)
        parts["plan"] = last_s - begin_s
        for unit in generator.chunk(channel).units:
            begin_s, last_s = last_s, now_s(model.device)
            parts["decode" if unit.stage == "vae" else stage] += last_s - begin_s
            stage = "steps"
        # The first unit runs these modules before it reads the context.
        for name, seconds in nested.items():
            parts[name] = sum(seconds)
            parts["context"] -= parts[name]
            seconds.clear()
        return parts | {TOTAL: parts["context"] + parts["steps"]}

    for _ in range(LEAD_IN):
        chunk()
    nested["features"] = time_calls(model.tokenizer.decoder, model.device)
    nested["condition"] = time_calls(model.renderer.condition, model.device)
    return chunk


def time_calls(module: nn.Module, device: torch.device) -> list[float]:
    """A list whose sum becomes the seconds of later calls; 0 on CUDA, where waiting would cost more than the call."""
    seconds: list[float] = []
    if device.type != "cuda":
        module.register_forward_pre_hook(lambda *_: seconds.append(-now_s(device)))
        module.register_forward_hook(lambda *_: seconds.append(now_s(device)))
    return seconds


def guided_rows(solver: Solver) -> int:
    """Rows of every denoising step: two where any step is guided."""
    return 2 if any(solver.guidance(index) != 1.0 for index in range(solver.steps)) else 1


def their_chunks(model: Model, peer: Any, solver: Solver) -> Turn:
    """All denoising steps of a window by diffusers' transformer."""
    config, dit, rows = model.config, model.config.renderer.dit, guided_rows(solver)
    window = normal((1, dit.frames, dit.channels, dit.height, dit.width), "bench window").to(model.device)
    context, noise = window.split([config.context_length, config.chunk_length], dim=1)
    text = normal((rows, dit.text_length, dit.text_dim), "bench text").to(model.device, model.dtype)

    def denoise() -> None:
        state = SolverState(noise)
        for index in range(solver.steps):
            latents = torch.cat([context, state.x], dim=1).to(model.dtype).expand(rows, -1, -1, -1, -1)
            times = torch.full((rows,), solver.time(index) * dit.time_scale, device=model.device)
            output = peer(latents, text, times, return_dict=False)[0][:, config.context_length :]
            clean = solver.clean(index, state.x, output)
            if rows == 2:
                clean = guide(clean[1:], clean[:1], solver.guidance(index))
            state = solver.step(index, state, clean, noise if solver.draws(index) else None)

    return denoise


def our_tokens(generator: Generator) -> Turn:
    """Plans as many frames of an endless video as a GOP has, from the second GOP on."""
    channel, frames = generator.open(CAPTION, SEED), generator.model.config.tokenizer.frames

    def plan() -> None:
        end = generator.planned(channel) + frames
        while generator.planned(channel) < end:
            generator.plan(channel)

    plan()
    return plan


def their_tokens(model: Model, peer: Any, cache: StaticCache) -> Iterator[Tensor]:
    """The tokens [1] of an endless plan by LLaMA, compiled on CUDA; each GOP reads prefix and context anew."""
    config, offsets, device = model.config.planner, model.config.tokenizer.offsets, model.device
    sampling, rows, embed = model.config.sampling, 1 + model.config.sampling.guided, peer.get_input_embeddings()
    decode: Any = torch.compile(peer, mode="reduce-overhead") if device.type == "cuda" else peer
    with model.computing():
        text_tokens = model.text.embed(CAPTION).planner.shape[1]
    prefix = normal((rows, config.prefix_len(text_tokens), config.hidden), "bench prefix").to(device, model.dtype)
    context_tokens = config.context_gops * config.plan_len(config.gop_frames) + 1
    context = torch.zeros((rows, context_tokens), dtype=torch.int64, device=device)
    borders = torch.tensor([[config.pframe_end, config.pframe_start]], device=device)
    token = borders[0, :1]
    for frame in count():
        in_gop = frame % config.gop_frames
        shape = (offsets[in_gop + 1] - offsets[in_gop], config.codebook_size)
        for place, noise in enumerate(gumbel(uniform(shape, SEED, "plan", frame)).to(device)):
            tokens = token[None] if place else torch.cat([token[None], borders], dim=1)
            forward, step = decode, embed(tokens.expand(rows, -1))
            if in_gop == place == 0:
                cache.reset()
                forward, step = peer, torch.cat([prefix, embed(context)], dim=1)
            # By place, as mask, positions and cache come: since transformers 5.24 the cache has another name.
            logits = forward(None, None, None, cache, step, use_cache=True, logits_to_keep=1, return_dict=False)[0]
            token = sample_token(logits[:, -1].float(), noise, sampling)
            yield token
