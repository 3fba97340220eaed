"""Steps that take the layers' work of earlier ones: which they are, what is spared, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from recorder import FakeRecorder
from test_denoiser import _guided
from tiny import tiny_model

from engine.bench.curve import relative_error
from engine.live.denoiser import Denoiser
from engine.loading.model import Model
from engine.perceptual.dit import DiT
from engine.perceptual.reuse import reused_steps
from engine.perceptual.schedule import FlowSchedule
from engine.runtime.graphs import Graphs

STEPS = 12
NEAR, FAR = 2.0, 1e6  # random embeddings move far


def _run(model: Model, reach: float, graphs: Graphs, given: int = 7) -> torch.Tensor:
    """A hop's latents with noise, prompt half and condition that depend on nothing."""
    model = replace(model, config=replace(model.config, reuse=reach))
    denoiser, dit = Denoiser(model, STEPS, graphs), model.config.renderer.dit
    generator = torch.Generator().manual_seed(4)
    prompt, condition = (
        torch.randn(1, count, channels, dit.height, dit.width, generator=generator)
        for count, channels in ((given, dit.channels), (13, dit.condition_channels))
    )
    text = torch.randn(1, dit.text_length, dit.text_dim, generator=generator)
    with torch.inference_mode():
        window = denoiser.open((1, 25, 9), text, prompt, condition)
        progress = denoiser.begin(window)
        for index in range(STEPS):
            progress = denoiser.step(window, index, progress)
    return progress.x


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every run of the base network's layers."""
    seen: list[int] = []
    plain = DiT.forward

    def counted(self: DiT, x: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(len(x))
        return plain(self, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DiT, "forward", counted)
    return seen


@pytest.mark.parametrize("make", [tiny_model, _guided], ids=["half-causal", "full attention, guided"])
def test_off_every_step_runs_and_on_fewer_do_at_a_small_error(make, runs: list[int]) -> None:  # type: ignore[no-untyped-def]
    """Without reuse nothing changes; with it, layers run less often and the latents are off by a few per cent."""
    exact = _run(make(), 0.0, Graphs(None))
    assert len(runs) == STEPS
    runs.clear()
    reused = _run(make(), NEAR, Graphs(None))
    assert 2 < len(runs) <= STEPS * 2 // 3
    assert 0 < relative_error(reused, exact) < 0.1


def test_a_reach_that_no_step_falls_into_changes_nothing(runs: list[int]) -> None:
    """A tiny reach runs every step, with the same result bit for bit as none."""
    exact = _run(tiny_model(), 0.0, Graphs(None))
    torch.testing.assert_close(_run(tiny_model(), 1e-9, Graphs(None)), exact, rtol=0, atol=0)
    assert len(runs) == 2 * STEPS


def test_a_first_hop_reuses_as_well(runs: list[int]) -> None:
    """Without a prompt half the same steps are left out."""
    assert relative_error(_run(tiny_model(), NEAR, Graphs(None), 0), _run(tiny_model(), 0.0, Graphs(None), 0)) < 0.1
    assert len(runs) < 2 * STEPS


@pytest.mark.parametrize("make", [tiny_model, _guided], ids=["half-causal", "full attention, guided"])
def test_captured_steps_reuse_like_eager_ones(make) -> None:  # type: ignore[no-untyped-def]
    """Steps that run, keep and take are graphs of their own, and give the eager latents."""
    recorder = FakeRecorder()
    captured, eager = _run(make(), NEAR, Graphs(recorder)), _run(make(), NEAR, Graphs(None))
    torch.testing.assert_close(captured, eager, rtol=1e-4, atol=1e-4)
    assert recorder.replays == STEPS and recorder.records > 2


def test_which_steps_follow_from_embeddings_and_rows() -> None:
    """Moves add up to the reach; ends always run; so does a step that needs the other half as well."""
    embedded = torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4, 1.5])[:, None].expand(-1, 4)
    assert reused_steps(embedded, [1] * 6, 0.0) == (False,) * 6
    assert reused_steps(embedded, [1] * 6, 0.2) == (False, True, True, False, True, False)
    assert reused_steps(embedded, [1] * 6, FAR) == (False, True, True, True, True, False)
    assert reused_steps(embedded, [1, 1, 2, 2, 2, 2], FAR) == (False, True, False, True, True, False)
    assert reused_steps(embedded[:1], [1], FAR) == (False,)


def test_a_wrong_reach_is_refused() -> None:
    """A negative number, and none at all, name themselves."""
    config = tiny_model().config
    for reach in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"reuse {reach} is not a number from 0 on"):
            replace(config, schedule=FlowSchedule(), reuse=reach)
