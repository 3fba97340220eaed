"""Plans for a budget of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_config, write_weights
from torch import nn
from transformers import T5Config, T5EncoderModel

from engine.config import preset
from engine.live.generator import Generator
from engine.live.offline import film
from engine.loading import memory
from engine.loading.memory import (
    TEXTS,
    MemoryPlan,
    Needs,
    Part,
    Visitor,
    check_memory,
    plan_memory,
    visiting,
    weight_bytes,
)
from engine.loading.model import build, load, products
from engine.perceptual.mini.vae import TinyVAE
from engine.runtime.fp8 import FP8, Fp8Linear
from engine.text.published import PublishedTextConfig

GB = 1_000_000_000
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    return build(preset("landiff"))


@pytest.fixture(scope="module")
def landiff(modules: dict[str, nn.Module]) -> Needs:
    return Needs.of(preset("landiff"), modules, products(modules, torch.bfloat16))


def plan(needs: Needs, budget_gb: float) -> MemoryPlan:
    return needs.plan(round(budget_gb * GB))


@pytest.mark.parametrize("budget_gb", [24, 48, 80, 141])
def test_landiff_has_a_plan_for_common_devices(landiff: Needs, budget_gb: float) -> None:
    """Every phase fits the budget, and its parts add up."""
    made = plan(landiff, budget_gb)
    assert made.peak_bytes <= budget_gb * GB
    assert {part.component for part in made.parts} == {"tokenizer", "planner", "renderer", "vae", *TEXTS}
    assert {phase.name for phase in made.phases} == {"tokenizer", "planner", "renderer", "vae", "text"}
    always = sum(part.weight_bytes for part in made.parts if not part.on_demand)
    assert all(phase.weight_bytes >= always for phase in made.phases)
    assert f"memory for {budget_gb} GB" in made.table()


def test_nothing_is_given_up_without_need(landiff: Needs) -> None:
    """All is resident in bf16 where there is room; with less, the text encoders leave first, then 8 bits come."""
    rich = plan(landiff, 141)
    assert not any(part.on_demand or part.fp8 for part in rich.parts) and rich.host_bytes == 0
    assert plan(landiff, rich.peak_bytes / GB) == MemoryPlan(rich.peak_bytes, rich.parts, rich.phases)
    less = plan(landiff, rich.peak_bytes / GB - 1)
    assert {part.component for part in less.parts if part.on_demand} == set(TEXTS)
    assert not any(part.fp8 for part in less.parts)
    small = plan(landiff, 24)
    assert all(small.part(name).on_demand and small.part(name).fp8 for name in TEXTS)
    assert not small.part("tokenizer").fp8 and small.host_bytes < less.host_bytes


def test_too_little_memory_is_said_with_the_numbers(landiff: Needs) -> None:
    """Below the smallest plan the message has the budget, what it takes, and where it goes; with that much it works."""
    with pytest.raises(
        ValueError, match=r"preset 'landiff' does not fit 8 GB; the least it takes is \d+\.\d GB"
    ) as caught:
        plan(landiff, 8)
    assert "renderer_text" in str(caught.value) and "phase" in str(caught.value)
    least = float(str(caught.value).split("it takes is ")[1].split(" GB")[0])
    assert plan(landiff, least).peak_bytes <= least * GB


def test_a_plan_says_the_types(landiff: Needs, modules: dict[str, nn.Module]) -> None:
    """What is stored in 8 bits is what the plan says, and the bytes are those of the types."""
    made, plain = plan(landiff, 24), products(modules, torch.bfloat16)
    dtypes = made.dtypes(modules, plain)
    lowered = {name.partition(".")[0] for name, dtype in dtypes.items() if dtype == FP8}
    assert lowered == {part.component for part in made.parts if part.fp8 and part.component in modules} != set()
    for name, module in modules.items():
        assert weight_bytes({name: module}, dtypes) == made.part(name).weight_bytes
    rich = plan(landiff, 141)
    assert rich.dtypes(modules, plain) == plain


def test_presets_without_other_text_encoders_have_plans() -> None:
    """A small model fits anywhere, and is told when it does not."""
    config = tiny_config()
    modules = build(config)
    made = plan_memory(config, modules, {}, 2 * GB)
    assert {part.component for part in made.parts} == {"tokenizer", "planner", "renderer", "vae"}
    with pytest.raises(ValueError, match="does not fit 0.1 GB"):
        plan_memory(config, modules, {}, GB // 10)


def test_weights_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size in float32 a small host is refused before anything is read."""

    class Host:
        available = 8 * GB

    monkeypatch.setattr("engine.loading.memory.psutil.virtual_memory", lambda: Host)
    with pytest.raises(ValueError, match=r"need 21\.\d GB, but cpu has only 8\.0 GB free"):
        check_memory(build(preset("landiff")), CPU)
    check_memory({"part": nn.Linear(3, 3)}, CPU)


def test_a_visit_leaves_the_host_as_it_was() -> None:
    """Inside, weights are on the device; afterwards the host's own tensors are back, even after an error."""
    module = nn.BatchNorm1d(4)
    own = {name: value.data_ptr() for name, value in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), visiting(module, torch.device("meta")):
        assert all(value.is_meta for value in module.state_dict().values())
        raise RuntimeError("stop")
    assert {name: value.data_ptr() for name, value in module.state_dict().items()} == own
    assert module(torch.randn(3, 4)).shape == (3, 4)


def test_a_visiting_autoencoder_is_the_same() -> None:
    """An autoencoder that is on the device only while it works gives the same video, state after state."""
    config = tiny_config()
    torch.manual_seed(0)
    vae = TinyVAE(config.vae).eval()
    visitor = Visitor(vae, CPU)
    latents = torch.randn(1, 5, 4, 4, 6)
    states = vae.new_state(), visitor.new_state()
    for part in latents.split((3, 2), dim=1):
        assert torch.equal(visitor.decode(part, states[1]), vae.decode(part, states[0]))


def test_the_plan_is_carried_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model loaded under a plan has what the plan says; too little memory is said before a file is opened."""
    write_weights(tmp_path)
    config = tiny_config()
    with caplog.at_level("INFO"):
        model = load(config, tmp_path, CPU, torch.float32, memory_gb=4)
    assert "memory for 4 GB" in caplog.text
    plain = load(config, tmp_path, CPU, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.renderer.parameters(), plain.renderer.parameters(), strict=True))
    with pytest.raises(ValueError, match="does not fit 0.2 GB; the least it takes is 1.6 GB"):
        load(config, tmp_path, CPU, torch.float32, memory_gb=0.2)


def test_a_tight_plan_is_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything is given up, blocks are stored in 8 bits, the autoencoder visits, and a video is made."""
    write_weights(tmp_path)
    monkeypatch.setattr(Needs, "plan", lambda self, budget: memory._plan(budget, self, frozenset(memory._WAYS)))
    model = load(tiny_config(), tmp_path, CPU, torch.float32, memory_gb=1)
    assert isinstance(model.vae, Visitor) and not model.vae_stays
    for network in (model.planner, model.renderer):
        assert any(isinstance(part, Fp8Linear) for part in network.modules())
    generator = Generator(model)
    chunks = list(film(generator, generator.open("a red ball", 1), 30, []))
    assert sum(chunk.frames for chunk in chunks) == 30


@torch.inference_mode()
def test_published_text_encoders_are_stored_as_planned(caplog: pytest.LogCaptureFixture) -> None:
    """T5 in 8 bits reads a prompt nearly as before, and the log says how far its weights are off."""
    sizes = T5Config(
        vocab_size=50, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(0)
    encoder = T5EncoderModel(sizes).eval()
    ids = torch.arange(20)[None]
    before = encoder(input_ids=ids).last_hidden_state
    parts = tuple(Part(name, 1, on_demand=True, fp8=name == TEXTS[0]) for name in TEXTS)
    made = MemoryPlan(1, parts, ())
    with caplog.at_level("INFO"):
        made.store_text(encoder, nn.Module())
    after = encoder(input_ids=ids).last_hidden_state
    assert 1e-3 < float((after - before).norm() / before.norm()) < 0.1
    assert "planner_text stored in 8 bits: 2." in caplog.text
    assert made.text(PublishedTextConfig()).reserve_bytes > 1e15
    stays = MemoryPlan(1, tuple(Part(name, 1) for name in TEXTS), ())
    assert stays.text(PublishedTextConfig()).reserve_bytes == 0
