"""The release's two text encoders, as small real T5 models with sentencepiece tokenizers made here."""

from __future__ import annotations

import shutil
from pathlib import Path

import checkpoint
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from engine.text.published import PublishedText, PublishedTextConfig, load_text_model, text_bytes

CPU = torch.device("cpu")
PROMPT = checkpoint.PROMPT


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("t5")
    return checkpoint.make_text(folder / "flan", 1), checkpoint.make_text(folder / "v1_1", 2)


@pytest.fixture
def text(folders: tuple[Path, Path]) -> PublishedText:
    config = PublishedTextConfig(planner_tokens=40, renderer_tokens=32, cached_prompts=2)
    planner, renderer = (load_text_model(folder, torch.float32) for folder in folders)
    return PublishedText(config, planner, renderer, CPU)


def pieces(folder: Path, prompt: str) -> list[int]:
    """What sentencepiece itself makes of a prompt, and the end of sentence."""
    return [*sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model")).encode(prompt), 1]


@torch.inference_mode()
def test_planner_reads_the_prompt_and_its_end(text: PublishedText, folders: tuple[Path, Path]) -> None:
    """The embedding is the encoder's for sentencepiece's pieces and </s>, without padding."""
    ids = torch.tensor([pieces(folders[0], PROMPT)])
    expected = T5EncoderModel.from_pretrained(folders[0]).eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(text.embed(PROMPT).planner, expected)


@torch.inference_mode()
def test_renderer_attends_to_its_padding(text: PublishedText, folders: tuple[Path, Path]) -> None:
    """The prompt is filled up on the right and no token is masked."""
    ids = pieces(folders[1], PROMPT)
    assert len(ids) < 32
    model = T5EncoderModel.from_pretrained(folders[1]).eval()
    padded = torch.tensor([ids + [0] * (32 - len(ids))])
    got = text.embed(PROMPT).renderer
    torch.testing.assert_close(got, model(input_ids=padded, attention_mask=torch.ones(1, 32)).last_hidden_state)
    masked = model(input_ids=padded, attention_mask=(padded > 0).long()).last_hidden_state
    assert (got - masked).abs().max() > 1e-3


def test_long_prompts_are_cut_and_keep_their_end(text: PublishedText, folders: tuple[Path, Path]) -> None:
    """A prompt of any length gives at most the configured tokens, the last being the end of sentence."""
    embedding = text.embed("blue sea " * 300)
    assert embedding.planner.shape == (1, 40, 16) and embedding.renderer.shape == (1, 32, 16)
    ids = pieces(folders[0], "blue sea " * 300)
    cut = torch.tensor([[*ids[:39], 1]])
    with torch.inference_mode():
        expected = T5EncoderModel.from_pretrained(folders[0]).eval()(input_ids=cut).last_hidden_state
    torch.testing.assert_close(embedding.planner, expected)


def test_autocast_does_not_reach_the_encoders(text: PublishedText) -> None:
    """The encoders compute in the type of their weights, whatever runs around them, and answer in float32."""
    expected = text._for_planner(PROMPT)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(text._for_planner(PROMPT), expected)
    assert expected.dtype == torch.float32


def test_a_prompt_is_encoded_once(text: PublishedText) -> None:
    """A known prompt gives the same object; the least recently used one is forgotten."""
    first = text.embed("a")
    text.embed("b")
    assert text.embed("a") is first
    text.embed("c")
    assert text.embed("a") is first
    assert text.embed("b") is not text.embed("a")
    assert len(text._cache) == 2


@pytest.mark.parametrize(("free", "stays"), [(None, True), (5, False), (15, True)])
def test_encoders_leave_a_full_device(folders: tuple[Path, Path], free: int | None, stays: bool) -> None:
    """Where less than the reserve is free, an encoder goes back to the host after use, and the result stays."""
    planner, renderer = (load_text_model(folder, torch.float32) for folder in folders)
    moves: list[str] = []
    for encoder in (planner.encoder, renderer.encoder):
        move = encoder.to
        encoder.to = lambda target, move=move: (moves.append(str(target)), move(target))[1]
    config = PublishedTextConfig(renderer_tokens=32, reserve_bytes=10)
    text = PublishedText(config, planner, renderer, CPU, lambda device: free)
    text.embed(PROMPT)
    targets = ["cpu"] if stays else ["cpu", "cpu"]
    assert moves == targets * 2


def test_a_wrong_folder_is_named(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """A folder without vocabulary, or without a model, raises with its name."""
    with pytest.raises(ValueError, match=r"spiece.model is missing"):
        load_text_model(tmp_path)
    (tmp_path / "spiece.model").write_bytes((folders[0] / "spiece.model").read_bytes())
    with pytest.raises(ValueError, match="holds no complete T5 encoder"):
        load_text_model(tmp_path)


def test_missing_weights_are_named(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """A tensor that the files lack raises instead of being left at random numbers."""
    shutil.copytree(folders[0], tmp_path / "t5")
    tensors = load_file(tmp_path / "t5" / "model.safetensors")
    del tensors["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    save_file(tensors, tmp_path / "t5" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks encoder.block.1.layer.1.DenseReluDense.wo.weight"):
        load_text_model(tmp_path / "t5")


@pytest.mark.parametrize("kept", [5, 500, -500])
def test_weights_cut_short_are_refused(tmp_path: Path, folders: tuple[Path, Path], kept: int) -> None:
    """A file that ends early raises with the folder and the cure."""
    path = shutil.copytree(folders[0], tmp_path / "t5") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"t5 holds no complete T5 encoder .*: download it anew"):
        load_text_model(tmp_path / "t5")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_must_be_finite(tmp_path: Path, folders: tuple[Path, Path], number: float) -> None:
    """A tensor with NaN or infinities is named before the encoder is used."""
    path = shutil.copytree(folders[0], tmp_path / "t5") / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    tensors[name].view(-1)[-1] = number
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"holds NaN or infinite numbers in {name}: download it anew"):
        load_text_model(tmp_path / "t5")


def test_pickled_encoders_are_not_read(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Of a folder's weights only safetensors count."""
    path = shutil.copytree(folders[0], tmp_path / "t5") / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(ValueError, match=r"holds no complete T5 encoder .*model\.safetensors"):
        load_text_model(tmp_path / "t5")


def test_size_is_known_before_loading(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Bytes are those of the loaded encoder; another width and a missing description are refused."""
    encoder = load_text_model(folders[0]).encoder
    assert text_bytes(folders[0], 16) == sum(value.nbytes for value in encoder.parameters())
    with pytest.raises(ValueError, match="a text encoder of width 16, expected 4096: download it anew"):
        text_bytes(folders[0], 4096)
    with pytest.raises(ValueError, match="config.json is missing: download"):
        text_bytes(tmp_path, 16)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="holds no complete T5 encoder"):
        text_bytes(tmp_path, 16)


def test_wrong_configuration_is_refused() -> None:
    """Numbers that cannot work are named."""
    with pytest.raises(ValueError, match="renderer_tokens 0"):
        PublishedTextConfig(renderer_tokens=0)
