"""Nothing is timed unless it is right."""

import pytest
import torch
from tiny import tiny_model

from engine.bench.proofs import Check, checks, relative
from engine.runtime.kv_cache import KeysValues, KVCache


def test_a_sound_model_passes_every_check() -> None:
    """Peers do our work and short cuts change nothing; the caller's random numbers stay as they were."""
    state = torch.get_rng_state()
    found = checks(tiny_model())
    assert len(found) == 4
    assert [check.what for check in found if not check.right] == []
    assert torch.equal(torch.get_rng_state(), state)


def test_a_cache_that_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning from a cache without its newest value differs from planning at once."""
    write = KVCache.write

    def forgetful(self: KVCache, layer: int, keys: torch.Tensor, values: torch.Tensor, position: int) -> KeysValues:
        return write(self, layer, keys, torch.zeros_like(values), position)

    monkeypatch.setattr(KVCache, "write", forgetful)
    wrong = [check.what for check in checks(tiny_model()) if not check.right]
    assert wrong == ["plan token by token against all at once"]


def test_no_number_is_never_right() -> None:
    """NaN is an error, whatever is allowed."""
    assert Check("a", 1e-6, 1e-5).right
    assert not Check("a", float("nan"), 1e-5).right
    assert relative(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(4 / 3)
