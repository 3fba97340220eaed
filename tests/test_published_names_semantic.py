"""Published names of the semantic half's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.loading.published_names_semantic import PLANNER, THEIA, TOKENIZER, Rules, to_ours, to_published
from engine.semantic.planner import Planner, PlannerConfig
from engine.semantic.tokenizer import SemanticTokenizer, TokenizerConfig


def published_size(file: str) -> nn.Module:
    """A module of published size that takes no memory."""
    with torch.device("meta"):
        return Planner(PlannerConfig()) if file.startswith("llm") else SemanticTokenizer(TokenizerConfig())


@pytest.mark.parametrize(
    ("file", "rules"), [("tokenizer/model.safetensors", TOKENIZER), ("llm/model.safetensors", PLANNER)]
)
def test_every_published_tensor_has_one_of_ours(file: str, rules: Rules) -> None:
    """Names translate both ways, and the module of published size has exactly those tensors in those shapes."""
    listing = json.loads((Path(__file__).parent / "data" / "checkpoint_keys.json").read_text())
    ours = {name: list(value.shape) for name, value in published_size(file).state_dict().items()}
    assert {to_ours(name, rules): shape for name, (shape, _) in listing[file].items()} == ours
    assert {to_published(name, rules) for name in ours} == set(listing[file])


def test_groups_may_change_places() -> None:
    """A rule whose groups stand in another order on our side also reads backwards."""
    rules = ((r"(\d+)\.(weight|bias)", r"\2.of.\1"),)
    assert to_ours("3.bias", rules) == "bias.of.3"
    assert to_published("bias.of.3", rules) == "3.bias"


def test_a_rule_that_loses_a_group_is_refused() -> None:
    """A rule that could not be read backwards raises."""
    with pytest.raises(ValueError, match="no inverse"):
        to_published("layer.weight", ((r"layer\.(\d+)\.weight", r"layer.weight"),))


@pytest.mark.parametrize("rules", [TOKENIZER, PLANNER, THEIA])
def test_unknown_names_are_refused(rules: Rules) -> None:
    """A tensor that no rule knows raises with its name, both ways."""
    with pytest.raises(KeyError, match="surprise"):
        to_ours("surprise.weight", rules)
    with pytest.raises(KeyError, match="surprise"):
        to_published("surprise.weight", rules)
