"""A whole model at a size that tests can afford, with random weights."""

from __future__ import annotations

import string
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn
from transformers import T5Tokenizer

from engine.config import PRESETS, EngineConfig
from engine.live.process import serve
from engine.loading.model import Model, assemble
from engine.loading.modules import COMPONENTS, build
from engine.loading.weights import save_component, write_description
from engine.perceptual.dit import DiTConfig
from engine.perceptual.mini.details import DetailsConfig
from engine.perceptual.mini.enlarger import EnlargerConfig
from engine.perceptual.mini.sketch import SketchConfig
from engine.perceptual.mini.vae import TinyVAEConfig
from engine.perceptual.mini.waves import WavesConfig
from engine.perceptual.renderer import RendererConfig
from engine.perceptual.schedule import FlowSchedule
from engine.perceptual.upsampler import ConditionConfig
from engine.semantic.planner import PlannerConfig
from engine.semantic.quantizer import QuantizerConfig
from engine.semantic.sampling import SamplingConfig
from engine.semantic.theia import TheiaConfig
from engine.semantic.tokenizer import TokenizerConfig
from engine.text.small_t5 import TOKENIZER_FOLDER, SmallT5, SmallT5Config
from engine.wire.ring import RingWriter
from engine.wire.settings import EngineSettings
from engine.wire.state_memory import StateMemory

WAVES = WavesConfig(count=8, width=8)
SKETCH = SketchConfig(channels=4, back=2, ahead=1, sight=8, hints=2, waves=WAVES)
DETAILS = DetailsConfig(grid=(2, 3), waves=WAVES, channels=2, sketch=SKETCH, place_width=4, place_channels=1)
WORDS = ("red", "blue", "ball", "boat", "sea", "a", "the")


def tiny_config(context_gops: int = 1, picture: str = "small") -> EngineConfig:
    """`mini` in everything but size: 32x48 pixels, I frames of 6 tokens, P frames of 3."""
    quantizer = QuantizerConfig(dim=16, codebook_size=32, codebook_dim=4, metric="cosine")
    dit = DiTConfig(
        hidden=32, heads=2, layers=2, patch=2, height=4, width=6, channels=4, time_dim=16, time_scale=1000.0,
        text_length=6, text_dim=16, position_scale=1.0, half_causal=True, head="conv",
        head_width=16, head_blocks=1, head_details=DETAILS.total,
    )  # fmt: skip
    condition = ConditionConfig(
        feature_dim=6, width=16, multipliers=(1.0, 1.0), blocks=1, out_channels=8, latent_channels=4, groups=4,
        details=DETAILS,
    )  # fmt: skip
    return EngineConfig(
        name="tiny",
        height_px=32,
        width_px=48,
        fps=8.0,
        steps=2,
        text=SmallT5Config(hidden=16, layers=1, heads=2, mlp=32, vocabulary=64, max_length=6),
        theia=TheiaConfig(
            hidden=16, layers=1, heads=2, mlp=32, image_size=48, patch=16, canvas=48, output_shape=(2, 3), feature_dim=6
        ),
        tokenizer=TokenizerConfig(
            feature_dim=6, grid=(2, 3), width=32, layers=1, heads=2, i_tokens=6, p_tokens=3, quantizer=quantizer
        ),
        planner=PlannerConfig(
            hidden=32, layers=2, heads=2, mlp=48, codebook_size=32, text_dim=16, micro_freq=8, micro_hidden=8,
            i_tokens=6, p_tokens=3, context_gops=context_gops, pooled_text=True, null_micro=True,
        ),
        sampling=SamplingConfig(guidance=1.0),
        renderer=RendererConfig(dit=dit, condition=condition, control_layers=1, prediction="x0"),
        schedule=FlowSchedule(),
        vae=TinyVAEConfig(
            latent_channels=4, encoder_width_8=8, encoder_width_4=8, decoder_width_8=8, decoder_width_4=8,
            blocks_8=1, blocks_4=1,
        ),  # fmt: skip
        enlarger=EnlargerConfig(width=8, blocks=1),
    ).with_picture(picture)  # fmt: skip


def tiny_tokenizer() -> T5Tokenizer:
    """A few words and all small letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -3.0) for word in WORDS)]
    letters = [(letter, -20.0) for letter in ("▁", *string.ascii_lowercase)]
    return T5Tokenizer(vocab=[*pieces, *letters], extra_ids=0)


def randomize(name: str, module: nn.Module) -> None:
    """Weights that let every input matter, the same in every process; `name` keys them."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)  # norms start at one
            else:
                parameter.copy_(1.5 * parameter[0].numel() ** -0.5 * noise)
            if key.endswith("sketch.opacity.weight"):
                parameter.mul_(0.1)  # an opaque sketch would hide the rest
    if name == "vae":
        module.get_buffer("basis").normal_(0.0, 0.2, generator=generator)  # empty without training


def tiny_model(context_gops: int = 1, picture: str = "small") -> Model:
    """In float32 on the CPU."""
    config = tiny_config(context_gops, picture)
    # Modules draw what `randomize` leaves alone, such as biases and the codebook.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = SmallT5(config.text, tiny_tokenizer().get_vocab()).requires_grad_(False).eval()
        modules = build(config, "cpu")
    for name, module in {"text": text, **modules}.items():
        randomize(name, module)
    return assemble(config, text, modules, torch.device("cpu"), torch.float32)


def write_weights(folder: Path) -> None:
    """The tiny model as a weights folder."""
    model = tiny_model()
    for name in ("text", *COMPONENTS):
        save_component(folder, name, getattr(model, name))
    write_description(folder, "tiny", "a test")
    tiny_tokenizer().save_pretrained(str(folder / TOKENIZER_FOLDER))


def tiny_engine(settings: EngineSettings, ring: RingWriter, control: Connection, memory: StateMemory) -> None:
    """An engine process of preset `tiny`, on one thread, so that its bits depend on nothing."""
    torch.set_num_threads(1)
    PRESETS["tiny"] = tiny_config
    serve(settings, ring, control, memory)
