"""The base network against the goldens, its position table, and its configuration's errors."""

from __future__ import annotations

import json

import pytest
import torch

from engine.config import preset
from engine.loading.published_names_perceptual import BASE
from engine.loading.published_names_semantic import to_ours, to_published
from engine.perceptual.dit import DiT, DiTConfig, position_table
from engine.perceptual.head import HeadInputs
from engine.perceptual.timesteps import Timestep
from engine.published.case_models import renderer
from tests import golden


@pytest.mark.parametrize("name", ["dit_a", "dit_b"])
def test_base_alone_equals_reference(name: str) -> None:
    """The base network without residuals equals the reference without control."""
    case = golden.load(name)
    model = renderer(case)
    x = case["x"]
    with torch.inference_mode():
        layout = model.base.layout(Timestep(case["timesteps"]))
        hidden = model.base(model.base.embed(case["context"], x), layout)
        output = model.base.output(hidden, layout, HeadInputs(x, None, None))
    assert golden.relative_error(output, case["out_without_control"]) < golden.TOLERANCE


@pytest.mark.parametrize("name", ["dit_a", "dit_b"])
def test_position_formula_equals_stored_table(name: str) -> None:
    """The formula gives the table that the files hold."""
    case = golden.load(name)
    model = renderer(case)
    torch.testing.assert_close(position_table(model.config.dit), model.base.positions, rtol=1e-6, atol=1e-6)


def test_position_rows_at_full_scale() -> None:
    """Rows of the published table equal the reference's."""
    case = golden.load("fullscale_tables")
    config = DiTConfig()
    rows = position_table(config)[0, config.text_length + case["pos/token_index"]]
    assert golden.relative_error(rows, case["pos/rows"]) < golden.TOLERANCE


def test_published_file_is_covered() -> None:
    """Every tensor of the published transformer file is one of ours, of the same shape, and names read backwards."""
    keys = json.loads((golden.FOLDER.parent / "checkpoint_keys.json").read_text())
    published = keys["CogVideoX-2b-sat/transformer/1000/mp_rank_00_model_states.pt"]
    published = {key: value[0] for key, value in published.items() if not key.startswith("__")}
    with torch.device("meta"):
        ours = {f"base.{key}": list(value.shape) for key, value in DiT(DiTConfig()).state_dict().items()}
    assert {to_ours(key, BASE): shape for key, shape in published.items()} == ours
    assert {to_published(key, BASE) for key in ours} == set(published)


def test_embedding_refuses_other_shapes() -> None:
    """Text, latents and windows that do not fit are refused with both sizes."""
    config = DiTConfig(
        hidden=32, heads=2, layers=1, frames=2, height=4, width=4, channels=3, time_dim=8, text_length=3, text_dim=5
    )
    model = DiT(config)
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(3, 5\)"):
        model.embed(torch.zeros(1, 4, 5), torch.zeros(1, 1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"\(3, 4, 6\).*\(3, 4, 4\)"):
        model.embed_frames(torch.zeros(1, 1, 3, 4, 6), 0)
    with pytest.raises(ValueError, match=r"1\.\.2 .* window of 2"):
        model.embed_frames(torch.zeros(1, 2, 3, 4, 4), 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": 1900}, "hidden 1900 is not a multiple of heads 30"),
        ({"hidden": 40, "heads": 2}, "hidden 40 is not a multiple of 16"),
        ({"patch": 4, "width": 90}, "60x90 .* patches of 4"),
        ({"head": "mlp"}, "'mlp' is neither"),
    ],
)
def test_config_errors(fields: dict[str, object], message: str) -> None:
    """A configuration that cannot work says why at construction."""
    with pytest.raises(ValueError, match=message):
        DiTConfig(**fields)  # type: ignore[arg-type]


def test_patches_are_the_same_in_bf16() -> None:
    """Tokens of `mini`'s patches in bf16 are those of float32, up to rounding."""
    torch.manual_seed(3)
    with torch.inference_mode():
        base = DiT(preset("mini").renderer.dit)
        frames = torch.randn(1, 6, 24, 16, 24)
        exact = base.embed_frames(frames, 7)
        places = position_table(base.config)[:, 192:216]
        torch.testing.assert_close(exact[:, :24], base.patch(frames[0, :1]).flatten(2).mT + places)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = base.embed_frames(frames, 7)
    assert golden.relative_error(rounded, exact) < 0.01
