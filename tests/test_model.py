"""All modules of a preset, filled and ready."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_model, write_weights

from engine.live.generator import Generator
from engine.live.offline import generate_frames
from engine.loading.model import load
from engine.loading.modules import COMPONENTS
from engine.loading.options import autocast, pick_device, pick_dtype


def test_loaded_model_computes_what_was_saved(tmp_path: Path) -> None:
    """Weights come back into every stage: two loads of one folder give the same frames, and progress ends at 1."""
    write_weights(tmp_path)
    shares: list[float] = []
    videos = []
    for _ in range(2):
        model = load(tiny_config(), tmp_path, torch.device("cpu"), torch.float32, shares.append)
        generator = Generator(model)
        videos.append(
            [batch.i420.tobytes() for batch in generate_frames(generator, generator.open("a red ball", 0), 9)]
        )
    assert videos[0] == videos[1]
    assert shares[-1] == 1.0 and shares[: len(shares) // 2] == sorted(shares[: len(shares) // 2])
    saved = tiny_model()
    for name in ("text", *COMPONENTS):
        for key, value in getattr(saved, name).state_dict().items():
            assert torch.allclose(getattr(model, name).state_dict()[key], value, rtol=1e-2, atol=1e-6), f"{name} {key}"


def test_model_is_ready_to_compute() -> None:
    """Every stage is in evaluation mode and without gradients."""
    model = tiny_model()
    for name in ("text", *COMPONENTS):
        module = getattr(model, name)
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_low_precision_changes_speed_not_meaning(tmp_path: Path) -> None:
    """Lowered weights give bit for bit what autocast gives with the weights in float32.

    Of seeds 0 to 19 three differ in a few last bits: a packed convolution may sum in another order.
    """
    write_weights(tmp_path)
    lowered = load(tiny_config(), tmp_path, torch.device("cpu"), torch.bfloat16)
    plain = load(tiny_config(), tmp_path, torch.device("cpu"), torch.float32)
    features = torch.randn(1, 7, 6, 2, 3, generator=torch.Generator().manual_seed(0))
    with lowered.computing():
        conditions = [model.renderer.condition(features) for model in (lowered, plain)]
    assert conditions[0].dtype == torch.bfloat16 and torch.equal(*conditions)
    assert lowered.tokenizer.quantizer.codes.dtype == torch.float32


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A folder that lacks files raises ValueError with their names."""
    write_weights(tmp_path)
    for component in ("text", *COMPONENTS):
        (tmp_path / f"{component}.safetensors").unlink()
    with pytest.raises(ValueError) as caught:
        load(tiny_config(), tmp_path, torch.device("cpu"), torch.float32)
    assert all(f"{component}.safetensors is missing" in str(caught.value) for component in ("text", *COMPONENTS))


def test_a_limited_processor_computes_in_float32() -> None:
    """With ATEN_CPU_CAPABILITY=avx2 bfloat16 would be emulated, whatever instructions there are."""
    words = "import torch; from engine.loading.options import pick_dtype; print(pick_dtype(torch.device('cpu')))"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    told = subprocess.run([sys.executable, "-c", words], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "torch.float32"


def test_devices() -> None:
    """Unknown and absent devices raise ValueError; 'auto' takes what is here."""
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="'tpu'"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            pick_device("cuda")


@pytest.mark.parametrize(
    ("instructions", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": False}, torch.float32),
        ({"avx2": True}, torch.float32),
    ],
)
def test_products_are_in_what_the_device_multiplies_fastest(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], dtype: torch.dtype
) -> None:
    """bfloat16 is never emulated, and not taken where float32 is faster."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
