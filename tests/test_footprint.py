"""Memory of calls, counted without any."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tiny import tiny_config
from torch import Tensor

from engine.loading.footprint import footprint, footprints
from engine.loading.model import build

NUMBERS, BYTES = 1 << 20, 4 << 20


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def test_only_what_stands_at_once_is_counted() -> None:
    """A chain of ten products needs its input's next two, not ten; nothing is kept."""

    def run() -> None:
        x = meta(NUMBERS)
        for _ in range(10):
            x = x * 2

    counted = footprint(run)
    assert counted.peak_bytes == 2 * BYTES and counted.kept_bytes == 0 and counted.passing_bytes == 2 * BYTES


def test_what_a_state_holds_is_kept() -> None:
    """Tensors that outlive the call are told apart from those that pass; views count once."""
    state: list[Tensor] = []

    def run() -> None:
        state.append(meta(NUMBERS).view(-1, 2))
        torch.cat([meta(NUMBERS), meta(NUMBERS)])

    counted = footprint(run)
    assert counted.kept_bytes == BYTES and counted.passing_bytes == 4 * BYTES


def test_attention_makes_no_table_of_pairs() -> None:
    """Attention over 100,000 tokens counts queries, keys, values and the answer."""

    def run() -> None:
        q, k, v = (meta(1, 1, 100_000, 64) for _ in range(3))
        F.scaled_dot_product_attention(q, k, v)

    assert footprint(run).peak_bytes == 4 * 100_000 * 64 * 4


def test_every_stage_is_counted() -> None:
    """All four stages of a preset need memory, and those with states keep some."""
    config = tiny_config()
    counted = footprints(config, build(config))
    assert counted.keys() == {"planner", "tokenizer", "renderer", "vae"}
    assert all(need.passing_bytes > 0 and need.kept_bytes > 0 for need in counted.values())


def test_a_longer_window_needs_more() -> None:
    """The planner's cache grows with the groups that it remembers, and nothing else does."""
    short, long = (footprints(config, build(config)) for config in (tiny_config(1), tiny_config(30)))
    assert long["planner"].kept_bytes > 1.5 * short["planner"].kept_bytes
    assert long["vae"] == short["vae"] and long["renderer"] == short["renderer"]
