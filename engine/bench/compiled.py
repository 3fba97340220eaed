"""Our denoising step's network and our planner's token beside torch.compile of the same modules with plain layers.

Compiling is an alternative to be compared, not required: where there is no compiler, or a module cannot be compiled or
comes out wrong, the report says why. Shapes: `B` rows, `T` latent frames, `C` channels, `H` x `W` latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from engine.bench.hop_cost import guided_rows
from engine.bench.proofs import relative
from engine.bench.rounds import TOTAL, Clock, Contender, Spread, race
from engine.live.noise import normal
from engine.loading.model import Model, build
from engine.perceptual.renderer import Renderer, WindowCache
from engine.perceptual.solver import solver_of
from engine.perceptual.timesteps import Moment
from engine.runtime.graphs import Graphs
from engine.runtime.kv_cache import KVCache
from engine.semantic.planner import Planner
from kernels.tools.launch import preferring

TOKENS = 32  # of the planner, a turn
_ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 3e-2}  # relative; a compiler adds up in another order
_REASON_LENGTH = 200  # characters; compilers quote whole programs
_MODE = {"cpu": "default", "cuda": "reduce-overhead"}

Work = Callable[[], Tensor]


def measure_compiled(model: Model, steps: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """For each network the times of ours and of the compiled one, or the obstacle to having them."""
    reason = obstacle(model.device)
    entries: dict[str, Any] = {}
    for name, make in (("denoising step", _step), ("planned codes", _tokens)):
        entries[name] = {"obstacle": reason} if reason else _duel(name, model, make(model, steps), rounds, clock)
    return entries


def obstacle(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device here; None where a small function can."""
    try:
        torch.compile(_double, dynamic=False)(torch.ones(8, device=device))
    # Compilers fail in many ways: none is there, it does not know the machine, its cache cannot be written.
    except Exception as error:
        return _short(error)
    return None


def _double(x: Tensor) -> Tensor:
    return x + x


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_LENGTH]


def _duel(name: str, model: Model, works: Mapping[str, Work], rounds: int, clock: Clock) -> dict[str, Any]:
    """Both in turns, if the compiled one can run and is right."""
    with model.computing():
        expected = works["ours"]()
        begin_s = clock.now_s()
        try:
            error = relative(works["compiled"](), expected)
        except Exception as failure:
            return {"obstacle": _short(failure)}
        compile_s = clock.now_s() - begin_s
        allowed = _ALLOWED[model.dtype]
        if not error <= allowed:
            return {"obstacle": f"its results are off by {error:.1e}, {allowed:.0e} is allowed"}
        contenders = {"ours": _timed(works["ours"], clock), "compiled": _timed(works["compiled"], clock)}
        timings = race(contenders, rounds, f"{name}, compiled")
    return {
        "obstacle": None,
        "compile_s": compile_s,
        "error": error,
        **{who: asdict(Spread.of(parts[TOTAL])) for who, parts in timings.items()},
        **{f"{who}_s": parts[TOTAL] for who, parts in timings.items()},
    }


def _timed(work: Work, clock: Clock) -> Contender:
    return lambda: {TOTAL: clock.time(work)}


def _compile(function: Any, device: torch.device) -> Any:
    return torch.compile(function, dynamic=False, mode=_MODE[device.type])


def _plain(model: Model, name: str) -> Any:
    """A component with the same weights and none of our packed layers, which a compiler cannot look into."""
    module = build(model.config)[name]
    module.load_state_dict(getattr(model, name).state_dict(), assign=True)
    return module


def _step(model: Model, steps: int) -> dict[str, Work]:
    """The network's answer [B, T, C, H, W] in the middle of a hop, with all that a hop shares made before."""
    config, dit = model.config, model.config.renderer.dit
    solver = solver_of(config.schedule, steps)
    rows = guided_rows(solver)

    def drawn(name: str, count: int, channels: int = dit.channels) -> Tensor:
        return normal((1, count, channels, dit.height, dit.width), f"compiled {name}").to(model.device)

    x, prompt = drawn("x", config.new_latents), drawn("prompt", config.prompt_latents).expand(rows, -1, -1, -1, -1)
    condition = drawn("condition", dit.frames, dit.condition_channels)
    text = normal((rows, dit.text_length, dit.text_dim), "compiled text").to(model.device)

    def read(renderer: Renderer) -> tuple[Moment, WindowCache]:
        cache = renderer.read(prompt, text, condition)
        moment = Moment(torch.full((rows,), solver.time(steps // 2), device=model.device))
        # Makes the modulations, as the first hop does.
        renderer.denoise(x, moment, cache)
        return moment, cache

    plain, graphs = _plain(model, "renderer"), Graphs.on(model.device)
    with model.computing():
        own = read(model.renderer)
        # What a compiler shall find made already must be made without our kernels.
        with preferring("reference"):
            others = read(plain)
    compiled = _compile(plain.denoise, model.device)

    def ours(noisy: Tensor, lasting: tuple[()]) -> Tensor:
        with model.computing():
            return model.renderer.denoise(noisy, *own)

    return {"ours": lambda: graphs.call("step", ours, x), "compiled": lambda: compiled(x, *others)}


def _tokens(model: Model, steps: int) -> dict[str, Work]:
    """Logits [B, V] after `TOKENS` codes one by one, from the middle of the cache on."""
    config = model.config.planner
    length = config.max_len(model.config.text.planner_tokens)
    rows, first = 1 + model.config.sampling.guided, length // 2
    count = min(TOKENS, length - first)
    embedded = normal((count, rows, 1, config.hidden), "compiled codes").to(model.device)
    positions = torch.arange(length, device=model.device)
    caches = [
        KVCache.allocate(config.layers, rows, config.heads, length, config.head_dim, model.device, model.dtype)
        for _ in range(2)
    ]
    for tensor in (caches[1].keys, caches[1].values):
        # Else a compiler copies it, or does without graphs.
        torch._dynamo.mark_static_address(tensor)
    plain: Planner = _plain(model, "planner")
    graphs, compiled = Graphs.on(model.device), _compile(plain, model.device)

    def captured(changing: tuple[Tensor, Tensor], lasting: tuple[()]) -> Tensor:
        with model.computing():
            logits: Tensor = model.planner(changing[0], caches[0], changing[1])
            return logits

    def ours() -> Tensor:
        for index in range(count):
            place = first + index
            if graphs.captures:
                logits: Tensor = graphs.call("code", captured, (embedded[index], positions[place : place + 1]))
            else:
                logits = model.planner(embedded[index], caches[0], place)
        return logits[:, -1]

    def theirs() -> Tensor:
        for index in range(count):
            # The position on the device, so that one compiled program serves all places.
            logits: Tensor = compiled(embedded[index], caches[1], positions[first + index : first + index + 1])
        last: Tensor = logits[:, -1].clone()
        return last

    return {"ours": ours, "compiled": theirs}
