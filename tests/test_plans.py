"""What plans hold, before anything is rendered."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from engine.config import preset
from engine.loading.model import assemble, build
from engine.loading.weights import SHIPPED, load_component
from engine.semantic.theia import Theia
from engine.text.small_t5 import SmallT5, TextConfig, load_tokenizer
from engine.training import plans
from engine.training.world import drawing as world
from engine.training.world.captions import random_label

MINI = SHIPPED / "mini"


def _reader(name: str) -> plans.Reader:
    """Of a preset with the shipped autoencoder and extractor; nothing else of it has weights."""
    config = preset(name)
    assert isinstance(config.text, TextConfig)
    modules, theia = build(config, "cpu"), Theia(config.theia).eval()
    load_component(MINI, "vae", modules["vae"])
    load_component(MINI, "theia", theia)
    text = SmallT5(config.text, load_tokenizer(MINI)).eval()
    return plans.Reader(assemble(config, text, modules, torch.device("cpu"), torch.float32), theia)


@pytest.mark.parametrize("name", ["mini", "mini-arlon"])
@torch.no_grad()
def test_features_of_a_true_video_say_its_words(name: str) -> None:
    """Semantic features and latents are both read, each in its own shape."""
    reader, label = _reader(name), random_label(random.Random(1), held_out=True)
    clip = world.draw(world.sample([label], random.Random(1)), torch.arange(49)[None])[0]
    features = reader.features(clip)
    tokenizer = reader.model.config.tokenizer
    assert features.shape == (1, 13, tokenizer.feature_dim, *tokenizer.grid)
    assert all(reader.read(features).right(label).values())
    assert not all(reader.read(torch.zeros_like(features)).right(label).values())


def test_shipped_plans_follow_their_captions(tmp_path: Path) -> None:
    """The command writes shares of planned words and of those that tokens keep, with what they were measured with."""
    out = tmp_path / "plans.json"
    assert plans.main(["--captions", "3", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["conditions"]["command"] == f"python -m engine.training plans --captions 3 --json {out}"
    assert figures["planned"]["words"]["share"] > 0.7 and figures["through_tokens"]["words"]["share"] > 0.7
    assert figures["planned"]["scene"]["n"] == figures["planned"]["all"]["n"] == 3


def test_plans_without_guidance_are_others(tmp_path: Path) -> None:
    """The preset's guidance is its own unless another is given."""
    config = preset("mini")
    assert config.guided(None) is config and config.guided(1.0).sampling.guidance == 1.0
    out = tmp_path / "plans.json"
    assert plans.main(["--captions", "1", "--guidance", "1", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["conditions"]["guidance"] == 1.0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--captions", "0"], "captions 0"),
        (["--preset", "mini-arlon"], "comes without weights"),
        (["--preset", "landiff", "--weights", str(MINI)], "'landiff' does not know the drawn world"),
        (["--weights", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_read_is_refused(
    wrong: list[str], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Status 2, the value and no file."""
    out = tmp_path / "plans.json"
    assert plans.main([*wrong, "--json", str(out)]) == 2
    assert words in caplog.text and not out.exists()
