"""Backends of attention: which run here, that they agree, and how one is chosen."""

from __future__ import annotations

import logging
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tolerances import DEVICE

from engine.runtime import attention, backends
from kernels.tools import memo

DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
SHAPE = (1, 2, 64, 32)
META = torch.device("meta")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv(memo.FOLDER, str(tmp_path))
    monkeypatch.delenv(backends.FORCED, raising=False)
    monkeypatch.setattr(backends, "_choices", {})
    yield


def _operands(tokens: int, keys: int | None = None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 3, count, 32) for count in (tokens, keys or tokens, keys or tokens)]
    return [torch.randn(shape, generator=generator).to(DEVICE, DTYPE) for shape in shapes]


def _pretend(monkeypatch: pytest.MonkeyPatch, able: dict[str, float]) -> list[str]:
    """Only some backends can run, at given times; lists those that were timed."""
    timed: list[str] = []
    monkeypatch.setattr(backends, "unsupported_reason", lambda name, *rest: None if name in able else "no such kernel")
    monkeypatch.setattr(backends, "BACKENDS", tuple(backends._RUNS))
    monkeypatch.setattr(
        backends, "_RUNS", {name: (lambda *operands, name=name: timed.append(name)) for name in backends._RUNS}
    )
    return timed


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", backends.BACKENDS)
def test_every_backend_that_runs_agrees_with_float32(name: str, causal: bool) -> None:
    """Forced to one backend, attention of an odd length equals the float32 reference."""
    reason = backends.unsupported_reason(name, DEVICE, DTYPE, 32)
    if reason is not None:
        pytest.skip(f"{name} cannot run here: {reason}")
    choice = backends.choose(DEVICE, DTYPE, SHAPE, name)
    assert choice.name == name
    q, k, v = _operands(131)
    with warnings.catch_warnings(), torch.inference_mode():
        # Not compiled, FlexAttention warns that it is slow.
        warnings.simplefilter("ignore")
        result = attention.attend(q, k, v, causal=causal)
    truth = backends.attention_reference(q.float(), k.float(), v.float(), None, causal)
    torch.testing.assert_close(result.float(), truth, atol=2e-2 if DTYPE == torch.bfloat16 else 1e-5, rtol=0)


def test_torch_math_and_flex_run_everywhere() -> None:
    """The test above cannot skip everything."""
    assert backends.unsupported_reason("math", DEVICE, DTYPE, 32) is None
    assert backends.unsupported_reason("flex", DEVICE, DTYPE, 32) is None


@pytest.mark.skipif(DEVICE.type == "cuda", reason="it runs there")
def test_a_forced_backend_that_cannot_run_names_those_that_can() -> None:
    """cuDNN on a CPU is an error with the reason and the alternatives; so is an unknown name."""
    with pytest.raises(ValueError, match=r"attention 'cudnn' cannot run on cpu.*Those that can: .*math.*flex"):
        backends.choose(DEVICE, DTYPE, SHAPE, "cudnn")
    with pytest.raises(ValueError, match=r"'sage' cannot run.*no such backend.*Those that can: .*math"):
        backends.choose(DEVICE, DTYPE, SHAPE, "sage")


def test_the_environment_forces(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The variable has the say where the caller has none, and the choice is logged."""
    monkeypatch.setenv(backends.FORCED, "math")
    with caplog.at_level(logging.INFO):
        assert backends.choose(DEVICE, DTYPE, SHAPE).name == "math"
    assert f"attention on {DEVICE} in {DTYPE}: math" in caplog.text


def test_a_cpu_keeps_torchs_own_order() -> None:
    """Nothing is timed there, so the same video comes out however busy the machine is."""
    choice = backends.choose(torch.device("cpu"), torch.float32, SHAPE, timer=lambda call: pytest.fail("timed"))
    assert choice.name == "torch"
    assert backends.chosen(torch.zeros(SHAPE)) is None


def test_the_fastest_is_chosen_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that run the quickest is taken; `math` is not even timed; the next process asks the disk."""
    timed = _pretend(monkeypatch, {"flash": 3.0, "cudnn": 1.0, "math": 0.1})
    seconds = iter([3.0, 1.0])

    def timer(call: object) -> float:
        assert callable(call)
        call()
        return next(seconds)

    monkeypatch.setattr(torch, "randn", lambda *shape, **options: torch.zeros(()))
    monkeypatch.setattr(torch, "Generator", lambda device: torch.default_generator)
    assert backends.choose(META, DTYPE, SHAPE, timer=timer).name == "cudnn"
    assert timed == ["flash", "cudnn"]
    again = backends.choose(META, DTYPE, SHAPE, timer=lambda call: pytest.fail("timed again"))
    assert (again.name, again.seconds) == ("cudnn", 1.0)


def test_what_was_remembered_must_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is gone since is not taken from the disk."""
    memo.remember(backends.SUBJECT, META, {f"{DTYPE} {list(SHAPE)}": {"name": "xformers", "seconds": 1.0}})
    _pretend(monkeypatch, {"efficient": 1.0})
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: torch.zeros(()))
    monkeypatch.setattr(torch, "Generator", lambda device: torch.default_generator)
    assert backends.choose(META, DTYPE, SHAPE, timer=lambda call: 2.0).name == "efficient"


def test_a_library_that_cannot_load_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """xformers installed but unable to load leaves the others, and the log says why; not installed it is no matter."""
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").write_text("")
    (tmp_path / "xformers" / "ops.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "xformers"]:
        monkeypatch.delitem(sys.modules, name)
    backends.unsupported_reason.cache_clear()
    with caplog.at_level(logging.INFO):
        choice = backends._fastest(DEVICE, DTYPE, SHAPE, lambda call: 1.0)
    backends.unsupported_reason.cache_clear()
    # The broken package is no other test's.
    for name in ("xformers", "xformers.ops"):
        sys.modules.pop(name, None)
    assert choice.name != "xformers"
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "attention xformers cannot run: libcudart.so.12: cannot open shared object file" in warned[0]


def test_a_wrong_backend_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that runs and gives wrong numbers counts as unable."""
    library = types.ModuleType("xformers.ops")
    library.LowerTriangularMask = lambda: None  # type: ignore[attr-defined]
    library.memory_efficient_attention = lambda q, k, v, attn_bias: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers.ops", library)
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    backends.unsupported_reason.cache_clear()
    reason = backends.unsupported_reason("xformers", DEVICE, DTYPE, 32)
    backends.unsupported_reason.cache_clear()
    assert reason is not None and "its results are off by" in reason


def test_other_calls_are_left_to_torch() -> None:
    """A choice holds for the head width and type that were tried, and not for calls that learn."""
    backends.choose(DEVICE, DTYPE, SHAPE, "math")
    q = _operands(5)[0]
    assert backends.chosen(q) is not None
    assert backends.chosen(q[..., :16]) is None
    assert backends.chosen(q.half()) is None
    assert backends.chosen(q.requires_grad_()) is None


def test_a_call_that_a_torch_backend_does_not_cover_goes_to_another() -> None:
    """Chosen for long sequences, a backend may decline one query; torch's others serve it."""
    backends.choose(DEVICE, DTYPE, SHAPE, "math")
    q, k, v = _operands(1, 70)
    run = backends.chosen(q)
    assert run is not None
    truth = backends.attention_reference(q.float(), k.float(), v.float(), None, False)
    torch.testing.assert_close(run(q, k, v, False).float(), truth, atol=2e-2, rtol=0)
