"""The control branch against the goldens."""

from __future__ import annotations

import json

import pytest
import torch

from engine.loading.published_names_perceptual import DIFFUSION
from engine.loading.published_names_semantic import to_ours, to_published
from engine.perceptual.control import ControlBranch
from engine.perceptual.dit import DiTConfig
from engine.perceptual.timesteps import Timestep
from engine.perceptual.upsampler import Condition, ConditionConfig
from engine.published.case_models import renderer
from engine.semantic.tokenizer import SemanticTokenizer, TokenizerConfig
from tests import golden


@pytest.mark.parametrize("name", ["dit_a", "dit_b"])
def test_residuals_equal_reference(name: str) -> None:
    """The residual of every control layer equals the reference's, text tokens included."""
    case = golden.load(name)
    model = renderer(case)
    with torch.inference_mode():
        condition = model.condition(case["semantic_feature_before_upsample"])
        tokens = model.control.embed(case["context"], case["x"] + condition)
        residuals = model.control(tokens, model.control.layout(Timestep(case["timesteps"])))
    assert golden.relative_error(condition, case["semantic_feature"]) < golden.TOLERANCE
    for index, residual in enumerate(residuals):
        assert golden.relative_error(residual, case[f"control_layer_{index}"]) < golden.TOLERANCE


def test_zero_map_cuts_the_chain() -> None:
    """With the first map at zero, later residuals no longer depend on the input: the maps are in series."""
    case = golden.load("dit_a")
    model = renderer(case)
    torch.nn.init.zeros_(model.control.zeros[0].weight)
    with torch.inference_mode():
        layout = model.control.layout(Timestep(case["timesteps"]))
        one = model.control(model.control.embed(case["context"], case["x"]), layout)
        other = model.control(model.control.embed(case["context"], -case["x"]), layout)
    assert one[1].abs().max() > 0
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)


def test_published_file_is_covered() -> None:
    """Every tensor of the published diffusion file is one of ours, of the same shape, and names read backwards."""
    keys = json.loads((golden.FOLDER.parent / "checkpoint_keys.json").read_text())
    published = keys["diffusion/1/mp_rank_00_model_states.pt"]
    published = {key: value[0] for key, value in published.items() if not key.startswith("__")}
    with torch.device("meta"):
        parts = {
            "control": ControlBranch(DiTConfig(), 15),
            "condition": Condition(ConditionConfig()),
            "tokenizer": SemanticTokenizer(TokenizerConfig()),
        }
    ours = {
        f"{part}.{key}": list(value.shape)
        for part, module in parts.items()
        for key, value in module.state_dict().items()
    }
    assert {to_ours(key, DIFFUSION): shape for key, shape in published.items()} == ours
    assert {to_published(key, DIFFUSION) for key in ours} == set(published)
