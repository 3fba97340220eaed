"""All modules of one preset, filled from a weights folder and ready to compute."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor, nn

from engine.config import EngineConfig
from engine.loading.download import HUB_ID, fetch
from engine.loading.filling import lowered
from engine.loading.memory import Visitor, check_memory, plan_memory
from engine.loading.weights import SHIPPED, check_folder, load_weights, text_folders
from engine.perceptual.cogvideox.vae import VAE
from engine.perceptual.mini.vae import TinyVAE, TinyVAEConfig
from engine.perceptual.renderer import Renderer
from engine.runtime import fp8_products
from engine.runtime.backends import choose as choose_attention
from engine.runtime.packed_weights import pack
from engine.semantic.planner import Planner
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.published import PublishedText, PublishedTextConfig, load_text_model, text_bytes
from engine.text.small_t5 import SmallT5, TextConfig, load_tokenizer
from engine.wire.frames import TextEmbedding

logger = logging.getLogger(__name__)

COMPONENTS = ("tokenizer", "planner", "renderer", "vae")  # of every preset; the text encoder comes beside
TEXT_HUBS = ("google/flan-t5-xxl", f"{HUB_ID}, which has it")  # of the planner's encoder, of the renderer's
_MODULES_SHARE = 0.5  # of the time to load, beside the published text encoders
_BF16_CPUS = ("avx512_bf16", "amx_bf16", "bf16")  # names of torch.cpu.get_capabilities


class VideoState(Protocol):
    """What an autoencoder remembers of one direction of a video."""

    @property
    def started(self) -> bool: ...


class Autoencoder(Protocol):
    """`TinyVAE` or `VAE`; shapes as they say. A state goes back to the autoencoder that made it."""

    def new_state(self) -> VideoState: ...

    def begin_hop(self, state: Any) -> None: ...

    def encode(self, video: Tensor, state: Any) -> Tensor: ...

    def decode(self, latents: Tensor, state: Any) -> Tensor: ...


class TextEncoder(Protocol):
    """`SmallT5` or `PublishedText`, or what stands for no text."""

    def embed(self, prompt: str) -> TextEmbedding: ...


@dataclass(frozen=True, slots=True)
class Model:
    """The stages that generation needs, without gradients, in evaluation mode."""

    config: EngineConfig
    device: torch.device
    dtype: torch.dtype  # of matrix products; norms, tables and the solver stay in float32
    text: TextEncoder
    tokenizer: SemanticTokenizer
    planner: Planner
    renderer: Renderer
    vae: Autoencoder

    @property
    def vae_stays(self) -> bool:
        """Whether the autoencoder's weights stay on the device, as a captured graph of it needs."""
        return not isinstance(self.vae, Visitor)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Everything that runs a stage runs inside."""
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            yield


def pick_device(name: str) -> torch.device:
    """The device that 'auto', 'cpu' or 'cuda' stands for.

    Raises:
        ValueError: if it is not here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name!r} is not 'auto', 'cpu' or 'cuda'")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds no CUDA device here: use 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(capabilities.get(name) for name in _BF16_CPUS) else torch.float32


def use_cores() -> None:
    """One thread a physical core at most, which is fastest. Their number may decide the last bits of a video."""
    torch.set_num_threads(min(torch.get_num_threads(), psutil.cpu_count(logical=False) or torch.get_num_threads()))


def weights_folder(config: EngineConfig, given: str | None) -> Path:
    """The folder that `--weights` stands for: as given, downloaded from a hub, or shipped with the engine if None.

    Raises:
        ValueError: if the preset comes without weights, or there are none of that name; it says how to get them.
    """
    shipped = SHIPPED / config.name
    if given is not None:
        return fetch(given) if config.published else Path(given)
    if not shipped.is_dir():
        raise ValueError(
            f"preset {config.name!r} comes without weights: give --weights with a folder of "
            + (
                f"the published files, or --weights {HUB_ID} to download them; docs/PUBLISHED_MODEL.md says what else "
                "it takes"
                if config.published
                else "weights that were trained; docs/TRAINING.md says how"
            )
        )
    return shipped


def build(config: EngineConfig, device: str = "meta") -> dict[str, nn.Module]:
    """The modules of `COMPONENTS`; on the meta device they have shapes and take no memory."""
    with torch.device(device):
        modules: dict[str, nn.Module] = {
            "tokenizer": SemanticTokenizer(config.tokenizer),
            "planner": Planner(config.planner),
            "renderer": Renderer(config.renderer),
            "vae": TinyVAE(config.vae) if isinstance(config.vae, TinyVAEConfig) else VAE(config.vae),
        }
    return {name: module.requires_grad_(False).eval() for name, module in modules.items()}


def load(
    config: EngineConfig,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[float], None] = lambda share: None,
    memory_gb: float | None = None,
) -> Model:
    """Every stage, with the weights of `folder`.

    Args:
        folder: in our own layout or as published.
        progress: told the share that is done, 0 to 1.
        memory_gb: most of the device's memory to use, 10^9 bytes; None plans nothing, and what fits stays.

    Raises:
        ValueError: if memory is too small, or a file is missing, cut short or of another model; it names the file and
            what is wrong.
    """
    eight_bits = fp8_products.wanted(device)
    check_folder(folder, config.name)
    modules = build(config)
    places = _text_places(config, folder)
    small = None
    if isinstance(config.text, TextConfig):
        with torch.device("meta"):
            small = modules["text"] = SmallT5(config.text, load_tokenizer(folder)).requires_grad_(False).eval()
    dtypes = products(modules, dtype)
    plan = None if memory_gb is None else plan_memory(config, modules, dtypes, round(memory_gb * 1e9))
    if plan is not None:
        dtypes = plan.dtypes(modules, dtypes)
        config = replace(config, text=plan.text(config.text))
        logger.info("%s", plan.table())
    _check_memory(modules, device, dtypes, _encoder_bytes(config, places), plan is not None)
    share = _MODULES_SHARE if places else 1.0
    load_weights(folder, modules, config.name, device, dtypes, lambda done, total: progress(share * done / total))
    if eight_bits:
        for name in ("planner", "renderer"):
            logger.info("%s: %d layers multiply in 8 bits", name, len(fp8_products.multiply_in_fp8(modules[name])))
    text = small or _read_text(config, places, device, lambda done: progress(share + (1 - share) * done))
    if plan is not None and isinstance(text, PublishedText):
        plan.store_text(text.planner.encoder, text.renderer.encoder)
    choose_attention(device, dtype, longest_attention(config))
    model = assemble(config, text, modules, device, dtype)
    if plan is not None and plan.part("vae").on_demand:
        return replace(model, vae=Visitor(modules["vae"].to("cpu"), device))
    return model


def longest_attention(config: EngineConfig) -> tuple[int, int, int, int]:
    """[B, H, N, D] of the renderer's attention over a whole window."""
    dit = config.renderer.dit
    return 1, dit.heads, dit.text_length + dit.frames * dit.frame_tokens, dit.hidden // dit.heads


def _text_places(config: EngineConfig, folder: Path) -> tuple[Path, ...]:
    """The folders of the published text encoders, which are there; none for a preset with its own."""
    if not config.published:
        return ()
    places = text_folders(folder)
    missing = [f"{place}: download {hub}" for place, hub in zip(places, TEXT_HUBS, strict=True) if not place.is_dir()]
    if missing:
        raise ValueError("text encoders are missing:\n" + "\n".join(missing))
    return places


def _encoder_bytes(config: EngineConfig, places: tuple[Path, ...]) -> list[int]:
    widths = (config.planner.text_dim, config.renderer.dit.text_dim)
    return [text_bytes(place, width) for place, width in zip(places, widths, strict=False)]


def _check_memory(
    modules: Mapping[str, nn.Module],
    device: torch.device,
    dtypes: Mapping[str, torch.dtype],
    encoders: list[int],
    planned: bool,
) -> None:
    """Raises ValueError where the weights do not fit; encoders are read onto the host and take turns on a device."""
    if device.type == "cpu":
        check_memory(modules, device, dtypes, sum(encoders))
        return
    # A plan has counted the encoders in the form in which they come to the device.
    check_memory(modules, device, dtypes, 0 if planned else max(encoders, default=0))
    check_memory({}, torch.device("cpu"), text_bytes=sum(encoders))


def _read_text(
    config: EngineConfig, places: tuple[Path, ...], device: torch.device, progress: Callable[[float], None]
) -> PublishedText:
    assert isinstance(config.text, PublishedTextConfig), "other presets have their text encoder among their modules"
    planner = load_text_model(places[0])
    progress(0.5)
    renderer = load_text_model(places[1])
    progress(1.0)
    return PublishedText(config.text, planner, renderer, device)


def products(modules: Mapping[str, nn.Module], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The types of weights that autocast would cast at every call, to the same values: COMPONENT.NAME -> type."""
    # The planner's head computes in float32, and its other ends are small.
    parts = {name: modules[name] for name in ("tokenizer", "renderer", "vae")}
    return lowered({**parts, "planner.blocks": modules["planner"].get_submodule("blocks")}, dtype)


def assemble(
    config: EngineConfig,
    text: TextEncoder,
    modules: Mapping[str, nn.Module],
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """A model of modules that have their weights: those of `COMPONENTS`."""
    tokenizer, planner, renderer, vae = (modules[name] for name in COMPONENTS)
    assert isinstance(tokenizer, SemanticTokenizer) and isinstance(planner, Planner)
    assert isinstance(renderer, Renderer) and isinstance(vae, (TinyVAE, VAE))
    pack(planner.blocks, 1 + config.sampling.guided)
    pack(renderer, config.new_latents * config.renderer.dit.frame_tokens)
    pack(vae, 1)
    return Model(config, device, dtype, text, tokenizer, planner, renderer, vae)
