"""Placements for a budget of memory."""

from __future__ import annotations

from pathlib import Path

import checkpoint
import pytest
import torch
from tiny import tiny_config, write_weights
from torch import nn

from engine.config import PRESETS, preset
from engine.live.generator import Generator
from engine.live.offline import generate_frames
from engine.loading import placement
from engine.loading.model import load
from engine.loading.modules import autocast_dtypes, build
from engine.loading.placement import PLACEMENTS, Placement, check_memory, choose_placement, weight_bytes
from engine.runtime.fp8 import FP8, Fp8Linear

CPU = torch.device("cpu")
# T5-XXL, of which planner and renderer have one each, stored in bfloat16 and in 8 bits.
ENCODER_GB = {False: 9.52, True: 4.89}
RESERVE_GB = 1.5


@pytest.mark.parametrize("name", PRESETS)
def test_every_placement_holds_its_weights(name: str) -> None:
    """Weights, a text encoder or two, and the reserve fit what a placement needs; each gives up more than the last."""
    modules = build(preset(name))
    plain = autocast_dtypes(modules, torch.bfloat16)
    known = PLACEMENTS[name]
    assert [one.needs_gb for one in known] == sorted((one.needs_gb for one in known), reverse=True)
    assert known[0] == Placement(known[0].needs_gb) and known[0].dtypes(modules, plain) == plain
    for one in known:
        dtypes = one.dtypes(modules, plain)
        lowered = {target.partition(".")[0] for target, dtype in dtypes.items() if dtype == FP8}
        assert lowered == set(one.fp8) - {"text"}
        encoders = 0.0
        if preset(name).published:
            encoders = ENCODER_GB["text" in one.fp8] * (1 if one.text_on_demand else 2)
        assert weight_bytes(modules, dtypes) / 1e9 + encoders + RESERVE_GB < one.needs_gb


def test_as_little_as_possible_is_given_up() -> None:
    """24 GB keep the planner in bfloat16, 48 keep everything; below the least all placements are named."""
    assert choose_placement("landiff", 24) == Placement(24.0, True, ("text", "renderer"))
    assert choose_placement("landiff", 48) == choose_placement("landiff", 141) == Placement(45.6)
    assert choose_placement("landiff", 22).fp8 == ("text", "planner", "renderer")
    with pytest.raises(ValueError, match=r"'landiff' does not fit --memory 8; there are\n  45\.6 GB: (.|\n)*  22 GB: "):
        choose_placement("landiff", 8)


def test_weights_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size in float32 a small host is refused before anything is read."""

    class Host:
        available = 8_000_000_000

    monkeypatch.setattr(placement.psutil, "virtual_memory", lambda: Host)
    with pytest.raises(ValueError, match=r"need 21\.\d GB, but cpu has only 8\.0 GB free"):
        check_memory(build(preset("landiff")), CPU)
    check_memory({"part": nn.Linear(3, 3)}, CPU)


def test_a_model_is_loaded_as_its_placement_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With room nothing changes; with less, blocks are in 8 bits and a video is made; with too little it is refused."""
    monkeypatch.setitem(PLACEMENTS, "tiny", (Placement(4), Placement(2, fp8=("planner", "renderer"))))
    write_weights(tmp_path)
    plain = load(tiny_config(), tmp_path, CPU, torch.float32)
    with caplog.at_level("INFO"):
        rich = load(tiny_config(), tmp_path, CPU, torch.float32, memory_gb=4)
    assert "--memory 4: 4 GB: everything stays on the device, none in 8 bits" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(rich.renderer.parameters(), plain.renderer.parameters(), strict=True))
    model = load(tiny_config(), tmp_path, CPU, torch.float32, memory_gb=3)
    for network in (model.planner, model.renderer):
        assert any(isinstance(part, Fp8Linear) for part in network.modules())
    generator = Generator(model)
    batches = list(generate_frames(generator, generator.open("a red ball", 1), 30, []))
    assert sum(batch.frames for batch in batches) == 30
    with pytest.raises(ValueError, match="'tiny' does not fit --memory 1"):
        load(tiny_config(), tmp_path, CPU, torch.float32, memory_gb=1)


def test_published_text_encoders_are_stored_as_placed(published_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 8 bits they read a prompt nearly as before, and they leave the device after use."""
    monkeypatch.setitem(PLACEMENTS, "landiff", (Placement(1, text_on_demand=True, fp8=("text",)),))
    plain, small = (load(checkpoint.TINY, published_folder, CPU, torch.float32, memory_gb=size) for size in (None, 1))
    before, after = (model.text.embed(checkpoint.PROMPT).planner for model in (plain, small))
    assert 1e-4 < float((after - before).norm() / before.norm()) < 0.1
    assert small.text.config.reserve_bytes > 1e15
    monkeypatch.setitem(PLACEMENTS, "landiff", (Placement(1),))
    assert load(checkpoint.TINY, published_folder, CPU, torch.float32, memory_gb=1).text.config.reserve_bytes == 0
