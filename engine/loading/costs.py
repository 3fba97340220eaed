"""What a second of video costs: arithmetic and memory traffic of each stage, counted on modules that take no memory.

Traffic counts what must pass from memory at least: the weights once a call, and the planner's keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.perceptual.cogvideox.causal import CausalState
from engine.perceptual.cogvideox.vae import VAE
from engine.perceptual.mini.vae import TinyVAE, TinyVAEState
from engine.perceptual.renderer import Renderer
from engine.perceptual.schedule import DiffusionSchedule
from engine.runtime.kv_cache import KVCache
from engine.semantic.planner import Planner
from engine.semantic.tokenizer import SemanticTokenizer
from engine.semantic.transformer import Geometry

PROMPT_TOKENS = 100  # of a long caption, for the planner's prefix
_WEIGHT_BYTES = 2  # bf16
_VAE_LATENTS = 2  # decoded at a time


@dataclass(frozen=True, slots=True)
class Stage:
    """One call of a stage, and how many a group of the plan or a hop of the renderer takes."""

    name: str
    flops: float
    traffic_bytes: float
    calls: float
    span_s: float  # seconds of video that these calls make

    def per(self, video_s: float) -> tuple[float, float]:
        """FLOPs and bytes for so many seconds of video."""
        share = self.calls * video_s / self.span_s
        return self.flops * share, self.traffic_bytes * share

    def bound_ms(self, video_s: float, tflops: float, gb_s: float) -> float:
        """The least time on a device of that arithmetic and that bandwidth, in milliseconds."""
        flops, traffic = self.per(video_s)
        return 1e3 * max(flops / (tflops * 1e12), traffic / (gb_s * 1e9))


def group_s(config: EngineConfig) -> float:
    """Seconds of video of a group."""
    return config.planner.group_frames * FRAMES_PER_LATENT / config.fps


def hop_s(config: EngineConfig) -> float:
    """Seconds of video of a hop that has a prompt half."""
    return config.new_latents * FRAMES_PER_LATENT / config.fps


def stages(config: EngineConfig, modules: Mapping[str, nn.Module]) -> list[Stage]:
    """Every stage of endless generation, text encoding excepted: a prompt is encoded once.

    Args:
        modules: tokenizer, planner, renderer and vae on the meta device.
    """
    tokenizer, planner, renderer, vae = (modules[name] for name in ("tokenizer", "planner", "renderer", "vae"))
    assert isinstance(tokenizer, SemanticTokenizer) and isinstance(planner, Planner) and isinstance(renderer, Renderer)
    assert isinstance(vae, (VAE, TinyVAE))
    with torch.inference_mode():
        group = [_planner_stage(config, planner), _tokenizer_stage(tokenizer)]
        hop = [_condition_stage(config, renderer), *_renderer_stages(config, renderer), _vae_stage(config, vae)]
    spans = [(stage, group_s(config)) for stage in group] + [(stage, hop_s(config)) for stage in hop]
    return [Stage(name, flops, traffic, calls, span) for (name, flops, traffic, calls), span in spans]


_Counted = tuple[str, float, float, float]


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _flops(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def _weights(*modules: nn.Module) -> float:
    return float(sum(_WEIGHT_BYTES * weight.numel() for module in modules for weight in module.parameters()))


def _planner_stage(config: EngineConfig, planner: Planner) -> _Counted:
    own = planner.config
    rows = 1 + config.sampling.guided
    length = own.max_len(PROMPT_TOKENS)
    tokens = own.code_len(own.group_frames)
    # Work grows evenly with the position, so the one in the middle stands for all.
    middle = length - tokens // 2
    cache = KVCache.allocate(own.layers, rows, own.heads, length, own.head_dim, "meta")
    flops = _flops(lambda: planner.transform(_meta(rows, 1, own.hidden), cache, middle))
    flops += 2 * rows * own.hidden * own.vocab
    attended = 2 * rows * own.layers * own.hidden * middle * _WEIGHT_BYTES
    return "plan a token", flops, _weights(planner.blocks, planner.head) + attended, tokens


def _tokenizer_stage(tokenizer: SemanticTokenizer) -> _Counted:
    config, decoder = tokenizer.config, tokenizer.decoder
    visual, latents = config.frames * config.patches, config.group_tokens
    total = visual + latents
    geometry = Geometry(
        cos=_meta(total, config.head_dim // 2),
        sin=_meta(total, config.head_dim // 2),
        mask=torch.empty(total, total, dtype=torch.bool, device="meta"),
    )
    flops = config.layers * _flops(lambda: decoder.blocks[0](_meta(1, total, config.width), geometry))
    flops += _flops(lambda: decoder.embed(_meta(latents, config.quantizer.dim)))
    flops += _flops(lambda: decoder.head_out(decoder.head_in(_meta(visual, config.width))))
    return "decode a group", flops, _weights(decoder), 1


def _condition_stage(config: EngineConfig, renderer: Renderer) -> _Counted:
    features = _meta(1, renderer.config.dit.frames, config.tokenizer.feature_dim, *config.tokenizer.grid)
    return "condition", _flops(lambda: renderer.condition(features)), _weights(renderer.condition), 1


def _renderer_stages(config: EngineConfig, renderer: Renderer) -> list[_Counted]:
    dit = renderer.config.dit
    # The published sampler guides; `mini` renders with the prompt alone.
    rows = 2 if isinstance(config.schedule, DiffusionSchedule) else 1
    size = (dit.channels, dit.height, dit.width)
    text = _meta(rows, dit.text_length, dit.text_dim)
    given, new = _meta(rows, config.prompt_latents, *size), _meta(rows, config.new_latents, *size)
    condition = _meta(rows, dit.frames, dit.condition_channels, dit.height, dit.width)
    base, control = _weights(renderer.base), _weights(renderer.control)
    traffic = base + control
    windows = 2 if config.anchors else 1
    counted = []
    if dit.half_causal:
        counted.append(("open a window", _flops(lambda: renderer.read(given, text, condition)), traffic, windows))
    cache = renderer.read(given, text, condition)
    flops = _flops(lambda: renderer.denoise(new, _meta(rows), cache))
    return [*counted, ("denoising step", flops, base if dit.half_causal else traffic, windows * config.steps)]


def _vae_stage(config: EngineConfig, vae: VAE | TinyVAE) -> _Counted:
    dit = config.renderer.dit
    latents = _meta(1, _VAE_LATENTS, dit.channels, dit.height, dit.width)
    if isinstance(vae, TinyVAE):
        tiny = TinyVAEState()
        vae.decode(latents, tiny)
        flops = _flops(lambda: vae.decode(latents, tiny))
    else:
        state = CausalState()
        vae.decode(_meta(1, _VAE_LATENTS + 1, *latents.shape[2:]), state)
        flops = _flops(lambda: vae.decode(latents, state))
    weights = [weight for name, weight in vae.named_parameters() if name.startswith("decode")]
    traffic = float(sum(_WEIGHT_BYTES * weight.numel() for weight in weights))
    return "decode latents", flops, traffic, config.new_latents / _VAE_LATENTS
