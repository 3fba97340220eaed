"""What must be right before anything is timed: that the peers do our work, and that our short cuts change nothing.

Each check gives the relative error (norm of the difference over norm of what was expected) and what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.bench import peers
from engine.live.noise import normal
from engine.loading.model import Model
from engine.perceptual.renderer import Renderer
from engine.runtime.kv_cache import KVCache
from engine.semantic.planner import Planner

_LAYERS = 2  # show that one follows the other rightly; more show nothing new
_TOKENS = 48  # of a plan
_ALLOWED_FP32 = 1e-5
_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # where calls of other shapes round in another order


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison."""

    what: str
    error: float
    allowed: float

    @property
    def right(self) -> bool:
        """False for an error that is no number, too."""
        return self.error <= self.allowed


def relative(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    wide, truth = result.double(), expected.double()
    return float((wide - truth).norm() / truth.norm())


def checks(model: Model) -> list[Check]:
    """All of them; takes seconds."""
    # Convolutions on CUDA would round float32 to 10 bits.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(), exact:
        torch.manual_seed(0)
        beside = [
            Check("diffusers' transformer with our weights, float32", _transformer(model), _ALLOWED_FP32),
            Check("transformers' LLaMA with our weights, float32", _llama(model), _ALLOWED_FP32),
        ]
    allowed = _ALLOWED[model.dtype]
    with model.computing():
        return [
            *beside,
            Check("plan token by token against all at once", _cached_plan(model), allowed),
            Check("latents decoded in slices against all at once", _sliced_decoding(model), allowed),
        ]


def _transformer(model: Model) -> float:
    """diffusers' answer against our base network's, control at its start of zero and a linear head."""
    config = model.config.renderer
    dit = replace(config.dit, layers=_LAYERS, head="linear")
    with model.device:
        ours = Renderer(replace(config, dit=dit, control_layers=1)).eval()
        theirs = peers.transformer(dit, _LAYERS)
    _randomize(ours.base)
    peers.fill_transformer(theirs, ours.base)
    x = normal((1, dit.frames, dit.channels, dit.height, dit.width), "check x").to(model.device)
    text = normal((1, dit.text_length, dit.text_dim), "check text").to(model.device)
    time = torch.full((1,), 0.5, device=model.device)
    expected = ours.predict(x, time, text, x.new_zeros(1, dit.frames, dit.condition_channels, dit.height, dit.width))
    return relative(theirs(x, text, time * dit.time_scale, return_dict=False)[0], expected)


def _llama(model: Model) -> float:
    config = replace(model.config.planner, layers=_LAYERS)
    with model.device:
        ours = Planner(config).eval()
        theirs = peers.llama(config, _TOKENS)
    peers.fill_llama(theirs, ours)
    embeddings = _plan(model)
    return relative(theirs(inputs_embeds=embeddings, return_dict=False)[0], ours(embeddings))


def _cached_plan(model: Model) -> float:
    config, embeddings = model.config.planner, _plan(model)
    rows, half = len(embeddings), _TOKENS // 2
    cache = KVCache.allocate(config.layers, rows, config.heads, _TOKENS, config.head_dim, model.device, model.dtype)
    parts = [model.planner(embeddings[:, :half], cache, 0)]
    parts += [model.planner(embeddings[:, place : place + 1], cache, place) for place in range(half, _TOKENS)]
    return relative(torch.cat(parts, dim=1), model.planner(embeddings))


def _sliced_decoding(model: Model) -> float:
    """A first hop's latents by slices, as the engine decodes them, against one call."""
    dit = model.config.renderer.dit
    shape = (1, model.config.prompt_latents, dit.channels, dit.height, dit.width)
    latents = normal(shape, "check latents").to(model.device)
    state = model.vae.new_state()
    first, *later = latents.split(1, dim=1)
    slices = [torch.cat([first, *later[:2]], dim=1)]
    slices += [torch.cat(later[place : place + 2], dim=1) for place in range(2, len(later), 2)]
    whole = model.vae.decode(latents, model.vae.new_state())
    return relative(torch.cat([model.vae.decode(part, state) for part in slices], dim=1), whole)


def _plan(model: Model) -> Tensor:
    """[B, N, W] for guidance's rows."""
    shape = (1 + model.config.sampling.guided, _TOKENS, model.config.planner.hidden)
    return normal(shape, "check plan").to(model.device)


def _randomize(module: nn.Module) -> None:
    """Weights that let every part matter, also those that start at zero."""
    for parameter in module.parameters():
        scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.normal_(0.0, scale)
