"""The published text encoders' folders: whether they are there, how large they are, and reading them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from engine.config import EngineConfig
from engine.loading.download import HUB_ID
from engine.loading.hub_names import VARIANTS
from engine.loading.placement import EVERYTHING_STAYS, Placement
from engine.loading.tensor_files import is_finite, pieces
from engine.loading.weights import text_folders
from engine.runtime.fp8 import store_fp8
from engine.text.published import PublishedText, PublishedTextConfig, TextModel

TEXT_HUBS = ("google/flan-t5-xxl", f"{HUB_ID}, which has it")  # the planner's encoder, the renderer's


@dataclass(frozen=True, slots=True)
class TextFolder:
    """A published text encoder's files."""

    path: Path
    size_bytes: int  # of the encoder in bfloat16


def find_text_encoders(config: EngineConfig, folder: Path) -> tuple[TextFolder, ...]:
    """The planner's and the renderer's encoder in a weights folder of either layout; none for a preset with its own.

    Raises:
        ValueError: naming those that are missing, with their hubs, or as `text_bytes` does.
    """
    if not config.published:
        return ()
    places = text_folders(folder)
    missing = [f"{place}: download {hub}" for place, hub in zip(places, TEXT_HUBS, strict=True) if not place.is_dir()]
    if missing:
        raise ValueError("text encoders are missing:\n" + "\n".join(missing))
    widths = (config.planner.text_dim, config.renderer.dit.text_dim)
    return tuple(TextFolder(place, text_bytes(place, width)) for place, width in zip(places, widths, strict=True))


def text_bytes(folder: Path, width: int) -> int:
    """Bytes of an encoder in bfloat16; only its `config.json` is read.

    Args:
        width: expected width of its embeddings.

    Raises:
        ValueError: if there is no such file, or it is of an encoder of another width.
    """
    # Takes as long to load as all that preset `mini` needs.
    from transformers import T5Config, T5EncoderModel

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder / 'config.json'} is missing: download the text encoder's folder anew")
    try:
        sizes = T5Config.from_pretrained(str(folder))
        with torch.device("meta"):
            encoder = T5EncoderModel(sizes)
    except (OSError, ValueError, TypeError) as error:
        raise _incomplete(folder, error) from error
    if sizes.d_model != width:
        raise ValueError(f"{folder} holds a text encoder of width {sizes.d_model}, expected {width}: download it anew")
    count: int = sum(value.numel() for value in encoder.parameters())
    return count * torch.bfloat16.itemsize


def read_text_encoders(
    config: EngineConfig,
    encoders: Sequence[TextFolder],
    device: torch.device,
    placement: Placement = EVERYTHING_STAYS,
    progress: Callable[[float], None] = lambda share: None,
) -> PublishedText:
    """Both encoders, on the host until a prompt comes.

    Args:
        encoders: as `find_text_encoders` gives them.
        device: where they compute.
        placement: whether they are stored in 8 bits, and leave the device after each prompt.
        progress: told the share that is done, 0 to 1.

    Raises:
        ValueError: as `read_text_model` does.
    """
    assert isinstance(config.text, PublishedTextConfig), "other presets have their text encoder among their modules"
    planner = read_text_model(encoders[0].path)
    progress(0.5)
    renderer = read_text_model(encoders[1].path)
    progress(1.0)
    text = config.text
    if placement.text_on_demand:
        text = replace(text, reserve_bytes=sys.maxsize)
    elif placement is not EVERYTHING_STAYS:
        text = replace(text, reserve_bytes=0)
    if "text" in placement.fp8:
        store_fp8(planner.encoder)
        store_fp8(renderer.encoder)
    return PublishedText(text, planner, renderer, device)


def read_text_model(folder: Path, dtype: torch.dtype = torch.bfloat16) -> TextModel:
    """An encoder with its vocabulary, on the host.

    Args:
        folder: with `config.json`, weights and `spiece.model`.
        dtype: bfloat16 in the release.

    Raises:
        ValueError: naming what the folder lacks, or which tensors are not finite.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import T5EncoderModel

    vocabulary = folder / "spiece.model"
    if not vocabulary.is_file():
        raise ValueError(f"{vocabulary} is missing: download the text encoder's folder anew")
    try:
        tokenizer = SentencePieceProcessor(model_file=str(vocabulary))
        # Pickles may hold code, and `convert` leaves them behind.
        encoder, report = T5EncoderModel.from_pretrained(
            str(folder), dtype=dtype, output_loading_info=True, use_safetensors=True, variant=_variant(folder)
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _incomplete(folder, error) from error
    # transformers leaves missing tensors at random numbers.
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks {', '.join(sorted(report['missing_keys']))}: download it anew")
    bad = [
        name for name, value in encoder.named_parameters() if not all(is_finite(piece) for piece in pieces(value.data))
    ]
    if bad:
        raise ValueError(f"{folder} holds NaN or infinite numbers in {', '.join(bad)}: download it anew")
    return TextModel(encoder.eval(), tokenizer)


def _variant(folder: Path) -> str | None:
    """The number format that stands in the names of the files; None where none does, or plain names are there too."""
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        return None
    return next((variant for variant in VARIANTS if any(folder.glob(f"model*.{variant}*"))), None)


def _incomplete(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{folder} holds no complete T5 encoder ({str(error).splitlines()[0]}): download it anew")
