"""Denoising steps: what is done once, what is skipped, and that neither shows in the result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from recorder import FakeRecorder
from tiny import tiny_model

from engine.live.denoiser import Denoiser, DenoisingWindow
from engine.loading.model import Model
from engine.perceptual.renderer import DiTRenderer
from engine.perceptual.schedule import DiffusionSchedule
from engine.runtime.graphs import Graphs

STEPS = 3  # below `few_steps`: the first one's guidance is 1


def _guided() -> Model:
    """The tiny model with full attention, velocities and guidance, like the published one."""
    model = tiny_model()
    dit = replace(model.config.renderer.dit, half_causal=False, head="linear", time_scale=1.0)
    renderer = DiTRenderer(replace(model.config.renderer, dit=dit, prediction="v")).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in renderer.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    config = replace(model.config, renderer=renderer.config, schedule=DiffusionSchedule())
    return replace(model, config=config, renderer=renderer)


def _window(denoiser: Denoiser, model: Model, text: torch.Tensor) -> DenoisingWindow:
    dit = model.config.renderer.dit
    generator = torch.Generator().manual_seed(4)
    prompt, condition = (
        torch.randn(1, count, channels, dit.height, dit.width, generator=generator)
        for count, channels in ((7, dit.channels), (13, dit.condition_channels))
    )
    return denoiser.open(1, 9, text, prompt, condition, STEPS)


def _run(model: Model, graphs: Graphs) -> torch.Tensor:
    denoiser, dit = Denoiser(model, graphs), model.config.renderer.dit
    with torch.inference_mode():
        text = torch.randn(1, dit.text_length, dit.text_dim, generator=torch.Generator().manual_seed(5))
        window = _window(denoiser, model, text)
        progress = denoiser.begin(window)
        for index in range(STEPS):
            progress = denoiser.step(window, index, progress)
    return progress.x


def test_a_step_without_guidance_computes_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guidance is 1 the half without text is not computed, and the video is as if it had been."""
    model, rows = _guided(), []
    plain = DiTRenderer.denoise

    def counted(self: DiTRenderer, x: object, time: object, cache: object) -> torch.Tensor:
        rows.append(cache.rows)  # type: ignore[attr-defined]
        return plain(self, x, time, cache)  # type: ignore[arg-type]

    monkeypatch.setattr(DiTRenderer, "denoise", counted)
    skipped = _run(model, Graphs(None))
    assert rows == [1, 2, 2]
    almost = DiffusionSchedule(guidance_scale=6.0)
    monkeypatch.setattr(DiffusionSchedule, "guidance_at", lambda self, done: _nearly(almost, done))
    torch.testing.assert_close(_run(model, Graphs(None)), skipped, rtol=1e-3, atol=1e-3)
    assert rows == [1, 2, 2, 2, 2, 2]


def _nearly(schedule: DiffusionSchedule, done: float, plain=DiffusionSchedule.guidance_at) -> float:  # type: ignore[no-untyped-def]
    """The schedule's guidance, but never 1 exactly."""
    return float(plain(schedule, done)) + 1e-7


def test_captured_steps_equal_eager_ones() -> None:
    """Guided steps of one row and of two, captured, give the eager latents."""
    recorder = FakeRecorder()
    torch.testing.assert_close(_run(_guided(), Graphs(recorder)), _run(_guided(), Graphs(None)), rtol=1e-4, atol=1e-4)
    assert (recorder.records, recorder.replays) == (2, STEPS)


def test_a_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows under the same prompt share its tokens; another prompt has its own."""
    model, reads = _guided(), []
    plain = DiTRenderer.read_text
    monkeypatch.setattr(DiTRenderer, "read_text", lambda self, text: reads.append(len(text)) or plain(self, text))
    denoiser, dit = Denoiser(model, Graphs(None)), model.config.renderer.dit
    with torch.inference_mode():
        text, other = torch.randn(2, 1, dit.text_length, dit.text_dim)
        windows = [_window(denoiser, model, each) for each in (text, text, other, text)]
    assert reads == [2, 2]
    assert windows[0].text is windows[1].text is windows[3].text is not windows[2].text


def test_noise_belongs_to_the_place() -> None:
    """A chunk starts from the same noise whenever it is rendered, and another chunk from other noise."""
    model = tiny_model()
    denoiser, dit = Denoiser(model, Graphs(None)), model.config.renderer.dit
    with torch.inference_mode():
        window = _window(denoiser, model, torch.zeros(1, dit.text_length, dit.text_dim))
        first, again, other = (denoiser.begin(w) for w in (window, window, replace(window, chunk=2)))
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)
