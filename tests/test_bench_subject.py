"""The model that is measured, and the conditions."""

import json
from dataclasses import replace

import torch
from tiny import tiny_config, tiny_model

from engine.bench.contender import conditions, shipped, subject
from engine.bench.hop_cost import advance
from engine.config import preset
from engine.live.generator import Generator


def test_a_preset_without_weights_gets_random_ones() -> None:
    """Matrix products in the type asked for, the same weights every time, and hops that run."""
    config = tiny_config()
    assert not shipped(config)
    assert shipped(preset("mini"))
    models = [subject(config, torch.device("cpu"), torch.bfloat16) for _ in range(2)]
    weights = [model.renderer.base.blocks[0].qkv.weight for model in models]
    assert weights[0].dtype == torch.bfloat16
    assert torch.equal(*weights)
    assert models[0].planner.head.weight.dtype == torch.float32
    generator = Generator(models[0])
    channel = generator.open("a prompt", 0)
    advance(generator, channel)
    assert channel.hop == 1


def test_conditions_name_machine_code_and_settings() -> None:
    """Everything that a reader needs to judge a figure, and it is JSON."""
    model = tiny_model()
    facts = conditions(["--json", "f"], replace(model, config=replace(model.config, steps=3)))
    assert facts["command"] == "python -m engine.bench --json f"
    assert (facts["preset"], facts["weights"], facts["steps"], facts["dtype"]) == ("tiny", "random", 3, "float32")
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["diffusers"]
    assert facts["device"] and facts["cores"] >= 1 and facts["threads"] >= 1
    json.dumps(facts, allow_nan=False)
