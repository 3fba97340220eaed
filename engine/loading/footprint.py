"""How much memory a call needs beside its weights, counted on modules that take no memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.config import EngineConfig
from engine.perceptual.cogvideox.vae import VAE
from engine.perceptual.mini.vae import TinyVAE
from engine.perceptual.renderer import Renderer
from engine.perceptual.schedule import DiffusionSchedule
from engine.runtime.kv_cache import KVCache
from engine.semantic.planner import Planner
from engine.semantic.tokenizer import SemanticTokenizer
from engine.semantic.transformer import Geometry

PROMPT_TOKENS = 512  # of the longest caption, for the planner's prefix
_SLICES = (3, 2)  # latents that an autoencoder decodes at a time: first, later


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of what a call makes."""

    peak_bytes: int
    kept_bytes: int  # of that, what still stands afterwards in the states that the call was given

    @property
    def passing_bytes(self) -> int:
        """What the call needs while it runs, beside what it keeps."""
        return self.peak_bytes - self.kept_bytes


class _Count(TorchDispatchMode):
    """Adds up the storages that are made while it is on, and takes off those that are let go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size


class _FusedAttention(TorchFunctionMode):
    """Attention as GPUs run it: without the table of all pairs, which the meta device would make."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            queries, values = args[0], args[2]
            return queries.new_empty(*queries.shape[:-1], values.shape[-1])
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def footprint(run: Callable[[], object]) -> Footprint:
    """Counts one call. What `run` returns is let go, what it puts into states outside of it is kept."""
    with _Count() as count, _FusedAttention():
        run()
    return Footprint(count.peak, count.now)


def footprints(config: EngineConfig, modules: Mapping[str, nn.Module]) -> dict[str, Footprint]:
    """What each stage of endless generation needs, counted in float32, by component.

    Args:
        modules: tokenizer, planner, renderer and vae on the meta device.
    """
    # States and caches of the calls, which stand until all are counted.
    held: list[object] = []
    runs = {
        "planner": _planner(config, modules["planner"], held),
        "tokenizer": _tokenizer(config, modules["tokenizer"], held),
        "renderer": _renderer(config, modules["renderer"], held),
        "vae": _autoencoder(config, modules["vae"], held),
    }
    return {name: footprint(run) for name, run in runs.items()}


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _planner(config: EngineConfig, planner: nn.Module, held: list[object]) -> Callable[[], object]:
    assert isinstance(planner, Planner)
    own, rows = config.planner, 1 + config.sampling.guided
    length = own.max_len(PROMPT_TOKENS)

    def run() -> None:
        cache = KVCache.allocate(own.layers, rows, own.heads, length, own.head_dim, "meta")
        held.append(cache)
        planner.transform(_meta(rows, length - own.code_len(own.group_frames), own.hidden), cache, 0)

    return run


def _tokenizer(config: EngineConfig, tokenizer: nn.Module, held: list[object]) -> Callable[[], object]:
    assert isinstance(tokenizer, SemanticTokenizer)
    own, decoder = config.tokenizer, tokenizer.decoder
    visual = own.frames * own.patches
    total = visual + own.group_tokens

    def run() -> None:
        mask = torch.empty(total, total, dtype=torch.bool, device="meta")
        geometry = Geometry(cos=_meta(total, own.head_dim // 2), sin=_meta(total, own.head_dim // 2), mask=mask)
        held.append(geometry)
        decoder.blocks[0](_meta(1, total, own.width), geometry)
        decoder.head_out(decoder.head_in(_meta(visual, own.width)))

    return run


def _renderer(config: EngineConfig, renderer: nn.Module, held: list[object]) -> Callable[[], object]:
    assert isinstance(renderer, Renderer)
    dit = config.renderer.dit
    # The published sampler guides; `mini` renders with the prompt alone.
    rows = 2 if isinstance(config.schedule, DiffusionSchedule) else 1
    size = (dit.channels, dit.height, dit.width)

    def run() -> None:
        renderer.condition(_meta(1, dit.frames, config.tokenizer.feature_dim, *config.tokenizer.grid))
        given, new = _meta(rows, config.prompt_latents, *size), _meta(rows, config.new_latents, *size)
        condition = _meta(rows, dit.frames, dit.condition_channels, dit.height, dit.width)
        cache = renderer.read(given, _meta(rows, dit.text_length, dit.text_dim), condition)
        held.append(cache)
        renderer.denoise(new, _meta(rows), cache)

    return run


def _autoencoder(config: EngineConfig, vae: nn.Module, held: list[object]) -> Callable[[], object]:
    assert isinstance(vae, (VAE, TinyVAE))
    dit = config.renderer.dit

    def run() -> None:
        state: Any = vae.new_state()
        held.append(state)
        for latents in _SLICES:
            vae.decode(_meta(1, latents, dit.channels, dit.height, dit.width), state)

    return run
