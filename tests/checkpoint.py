"""A complete folder of published weights at tiny size, with random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from engine.config import EngineConfig
from engine.loading.filling import shapes_of
from engine.loading.modules import build
from engine.loading.published_files import EXTRACTOR, FILES, PublishedFile
from engine.loading.published_names_semantic import THEIA_SPELLINGS, to_published
from engine.loading.weights import load_weights, text_folders
from engine.perceptual.cogvideox.vae import VAEConfig
from engine.perceptual.dit import DiTConfig
from engine.perceptual.renderer import RendererConfig
from engine.perceptual.schedule import DiffusionSchedule
from engine.perceptual.upsampler import ConditionConfig
from engine.semantic.planner import PlannerConfig
from engine.semantic.quantizer import QuantizerConfig
from engine.semantic.sampling import SamplingConfig
from engine.semantic.theia import Theia, TheiaConfig
from engine.semantic.tokenizer import TokenizerConfig
from engine.text.published import PublishedTextConfig

PROMPT = "a red fish swims to the left"
TOKENIZER, PLANNER = "tokenizer/model.safetensors", "llm/model.safetensors"
DIFFUSION, VAE = "diffusion/1/mp_rank_00_model_states.pt", "CogVideoX-2b-sat/vae/3d-vae.pt"

TINY = EngineConfig(
    name="landiff",
    height_px=16,
    width_px=32,
    fps=8.0,
    steps=3,
    text=PublishedTextConfig(planner_tokens=12, renderer_tokens=5, cached_prompts=2),
    theia=TheiaConfig(hidden=6, layers=2, heads=2, mlp=12, image_size=16, patch=8, canvas=32, output_shape=(2, 4)),
    tokenizer=TokenizerConfig(
        feature_dim=6, grid=(2, 4), width=32, layers=1, heads=2, i_tokens=4, p_tokens=2,
        quantizer=QuantizerConfig(dim=16, codebook_size=20, codebook_dim=4),
    ),
    planner=PlannerConfig(
        hidden=32, layers=2, heads=2, mlp=48, codebook_size=20, text_dim=16, micro_freq=8, micro_hidden=16, i_tokens=4,
        p_tokens=2, context_gops=1,
    ),
    sampling=SamplingConfig(guidance=2.0),
    renderer=RendererConfig(
        dit=DiTConfig(
            hidden=32, heads=2, layers=2, height=4, width=8, channels=4, time_dim=16, text_length=5, text_dim=16
        ),
        condition=ConditionConfig(
            feature_dim=6, width=32, multipliers=(1.0, 1.0), blocks=1, out_channels=8, latent_channels=4
        ),
        control_layers=1,
    ),
    schedule=DiffusionSchedule(few_steps=0),
    vae=VAEConfig(latent_channels=4, width=32, multipliers=(1, 1, 1), blocks=0),
    motion_score=0.1,
    plan_frames=26,
    first_chunk_length=13,
)  # fmt: skip

MODULES = build(TINY)  # on the meta device
SHAPES = shapes_of(MODULES)


def read(folder: Path) -> dict[str, Tensor]:
    """COMPONENT.NAME -> tensor of a folder of either layout, loaded in float32 on the CPU."""
    modules = build(TINY)
    load_weights(folder, modules, TINY.name, torch.device("cpu"))
    return {f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()}


def published_file(name: str) -> PublishedFile:
    """The file of that name."""
    return next(file for file in FILES if file.name == name)


def published_tensors(name: str, seed: int, required: bool = True) -> dict[str, Tensor]:
    """Random numbers for every tensor of a file, or for every one that it may hold beside."""
    generator = torch.Generator().manual_seed(seed)
    names = published_file(name).keys(MODULES, required)
    return {key: _numbers(SHAPES[target], generator) for key, target in names.items()}


def _numbers(shape: list[int], generator: torch.Generator) -> Tensor:
    """Random numbers, scaled so that every input reaches the pictures without driving them out of range."""
    scale = torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.5
    return scale * torch.randn(shape, generator=generator)


def write(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """Writes one file of the release."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    inner = published_file(name).inner
    if inner is None:
        save_file(tensors, path)
    else:
        torch.save({inner: tensors, "iteration": 7}, path)


def stored(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors that a file of the release holds."""
    inner = published_file(name).inner
    if inner is None:
        return load_file(folder / name)
    tensors: dict[str, Tensor] = torch.load(folder / name, weights_only=True)[inner]
    return tensors


def edit(folder: Path, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the tensors that a file of the release holds."""
    tensors = stored(folder, name)
    change(tensors)
    write(folder, name, tensors)


def make_folder(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Writes the whole release; returns the tensors of each file."""
    contents = {file.name: published_tensors(file.name, seed) for seed, file in enumerate(FILES)}
    for name, tensors in contents.items():
        write(folder, name, tensors)
    (folder / "CogVideoX-2b-sat/transformer/latest").write_text("1000\n")
    (folder / "diffusion/latest").write_text("1")
    return contents


def make_text(folder: Path, seed: int) -> Path:
    """A T5 encoder of two layers and its sentencepiece tokenizer, as files; returns the folder."""
    folder.mkdir(parents=True)
    text = folder / "text.txt"
    text.write_text("\n".join(f"{PROMPT} and back, number {n}, under the blue sea" for n in range(40)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    text.unlink()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = T5Config(
            vocab_size=200, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
        )
        T5EncoderModel(sizes).save_pretrained(folder)
    return folder


def make_texts(folder: Path) -> None:
    """Both text encoders where a published folder has them."""
    for seed, place in enumerate(text_folders(folder)):
        make_text(place, seed)


def make_extractor(folder: Path, spelling: int = 0) -> dict[str, Tensor]:
    """Writes Theia's file under the names of one version of transformers; returns the tensors by our names."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Theia(TINY.theia).state_dict().items()}
    generator = torch.Generator().manual_seed(9)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    published = {to_published(name, THEIA_SPELLINGS[spelling]): value for name, value in tensors.items()}
    (folder / EXTRACTOR).parent.mkdir(parents=True, exist_ok=True)
    save_file(published | {"translator.head.weight": torch.zeros(2)}, folder / EXTRACTOR)
    return tensors
