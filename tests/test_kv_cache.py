"""Static key and value cache."""

from __future__ import annotations

import pytest
import torch

from engine.runtime.kv_cache import KVCache


def cache() -> KVCache:
    return KVCache.allocate(layers=2, batch=2, heads=3, length=6, head_dim=4)


def test_a_number_returns_what_stands_so_far() -> None:
    """Writing at a number returns the keys and values from 0 up to the last new one."""
    state = cache()
    first, second = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 4)
    state.write(1, first, first + 1.0, 0)
    seen = state.write(1, second, second + 1.0, 4)
    assert torch.equal(seen.keys, torch.cat([first, second], dim=2))
    assert torch.equal(seen.values, torch.cat([first, second], dim=2) + 1.0)
    assert not state.keys[0].any()


@pytest.mark.parametrize("position", [torch.tensor(3), torch.tensor([3, 3])])
def test_a_tensor_position_writes_the_same(position: torch.Tensor) -> None:
    """A device tensor puts keys where the number puts them and returns the whole length."""
    by_number, by_tensor = cache(), cache()
    new = torch.randn(2, 3, 2, 4)
    by_number.write(0, new, -new, 3)
    seen = by_tensor.write(0, new, -new, position)
    assert torch.equal(by_tensor.keys, by_number.keys)
    assert torch.equal(by_tensor.values, by_number.values)
    assert seen.keys.shape == (2, 3, 6, 4)


def test_rows_have_positions_of_their_own() -> None:
    """Each row is written at its own position."""
    state = cache()
    new = torch.randn(2, 3, 1, 4)
    state.write(0, new, new, torch.tensor([1, 5]))
    assert torch.equal(state.keys[0, 0, :, 1], new[0, :, 0])
    assert torch.equal(state.keys[0, 1, :, 5], new[1, :, 0])
    assert state.keys.count_nonzero() == 2 * 3 * 4


def test_writes_are_in_place() -> None:
    """Memory stays where it was allocated."""
    state = cache()
    places = state.keys.data_ptr(), state.values.data_ptr()
    for position in (0, torch.tensor(2), 5):
        state.write(0, torch.ones(2, 3, 1, 4), torch.ones(2, 3, 1, 4), position)
    assert (state.keys.data_ptr(), state.values.data_ptr()) == places


def test_values_are_cast() -> None:
    """A bfloat16 cache takes float32 keys either way."""
    state = KVCache.allocate(1, 1, 1, 4, 2, dtype=torch.bfloat16)
    new = torch.full((1, 1, 1, 2), 1.5)
    assert state.write(0, new, new, 0).keys.dtype == torch.bfloat16
    assert state.write(0, new, new, torch.tensor(1)).keys[0, 0, 1, 0] == 1.5


def test_overrun_is_refused() -> None:
    """Positions behind the end and empty sizes raise and name the numbers."""
    with pytest.raises(ValueError, match="positions 5 to 6 do not fit a cache of length 6"):
        cache().write(0, torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 2, 4), 5)
    with pytest.raises(ValueError, match="positive sizes"):
        KVCache.allocate(1, 0, 1, 1, 1)
