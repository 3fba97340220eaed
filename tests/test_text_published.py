"""The release's two text encoders, as small real T5 models with sentencepiece tokenizers made here."""

from __future__ import annotations

from pathlib import Path

import checkpoint
import pytest
import sentencepiece
import torch
from transformers import T5EncoderModel

from engine.loading.text_files import read_text_model
from engine.loading.weights import text_folders
from engine.text.published import PublishedText, PublishedTextConfig

CPU = torch.device("cpu")
PROMPT = checkpoint.PROMPT


@pytest.fixture
def folders(published_folder: Path) -> tuple[Path, Path]:
    return text_folders(published_folder)


@pytest.fixture
def text(folders: tuple[Path, Path]) -> PublishedText:
    config = PublishedTextConfig(planner_tokens=40, renderer_tokens=32, cached_prompts=2)
    planner, renderer = (read_text_model(folder, torch.float32) for folder in folders)
    return PublishedText(config, planner, renderer, CPU)


def pieces(folder: Path, prompt: str) -> list[int]:
    """What sentencepiece itself makes of a prompt, and the end of sentence."""
    return [*sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model")).encode(prompt), 1]


@torch.inference_mode()
@pytest.mark.parametrize("prompt", [PROMPT, "blue sea " * 300])
def test_planner_reads_the_prompt_and_its_end(text: PublishedText, folders: tuple[Path, Path], prompt: str) -> None:
    """The embedding is the encoder's for sentencepiece's pieces and </s>, cut to the configured tokens, not padded."""
    ids = torch.tensor([[*pieces(folders[0], prompt)[:-1][:39], 1]])
    expected = T5EncoderModel.from_pretrained(folders[0]).eval()(input_ids=ids).last_hidden_state
    embedding = text.embed(prompt)
    torch.testing.assert_close(embedding.planner, expected)
    assert embedding.renderer.shape == (1, 32, 16)


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
    planner, renderer = (read_text_model(folder, torch.float32) for folder in folders)
    moves: list[str] = []
    for encoder in (planner.encoder, renderer.encoder):
        move = encoder.to
        encoder.to = lambda target, move=move: (moves.append(str(target)), move(target))[1]
    config = PublishedTextConfig(renderer_tokens=32, reserve_bytes=10)
    text = PublishedText(config, planner, renderer, CPU, lambda device: free)
    text.embed(PROMPT)
    targets = ["cpu"] if stays else ["cpu", "cpu"]
    assert moves == targets * 2


def test_wrong_configuration_is_refused() -> None:
    """Numbers that cannot work are named."""
    with pytest.raises(ValueError, match="renderer_tokens 0"):
        PublishedTextConfig(renderer_tokens=0)
