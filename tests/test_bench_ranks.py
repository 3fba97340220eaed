"""What several GPUs should make: the arithmetic, and that the table in the documents is its result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.bench.ranks import (
    Interconnect,
    Measured,
    attention_flops,
    chunk_s,
    linear_flops,
    main,
    step_s,
    table,
)
from engine.bench.rates import step_flops
from engine.config import preset
from engine.ranks.layout import RankLayout

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs/results/h200.json"
MEASURED = Measured.read(json.loads(REPORT.read_text()))
FREE = Interconnect(float("inf"), 0.0, 0.0)
CONFIG = preset("landiff")


def test_the_work_is_that_of_the_network() -> None:
    """The FLOPs by formula are within a hundredth of those that torch counts, head and embeddings included."""
    assert 2 * (linear_flops(CONFIG) + attention_flops(CONFIG)) == pytest.approx(step_flops(CONFIG), rel=0.01)


def test_one_gpu_is_what_was_measured() -> None:
    """A step of one rank takes its measured time, half of it for one row, and a chunk the sum of its stages."""
    one = RankLayout.of(CONFIG, 1)
    assert step_s(CONFIG, one, 2, MEASURED, Interconnect()) == pytest.approx(1.135 / 2)
    assert step_s(CONFIG, one, 1, MEASURED, Interconnect()) == pytest.approx(1.135 / 4)
    assert chunk_s(CONFIG, one, 50, MEASURED, Interconnect()) == pytest.approx(31, rel=0.02)  # as KERNELS.md says


def test_ranks_divide_a_step() -> None:
    """Where exchange is free, 2 and 6 ranks take a half and a sixth; 8 wait for those with one head more."""
    whole = step_s(CONFIG, RankLayout.of(CONFIG, 1), 2, MEASURED, FREE)
    for ranks in (2, 6):
        assert step_s(CONFIG, RankLayout.of(CONFIG, ranks), 2, MEASURED, FREE) == pytest.approx(whole / ranks, rel=1e-3)
    assert whole / 8 < step_s(CONFIG, RankLayout.of(CONFIG, 8), 2, MEASURED, FREE) < whole / 7.5
    slow = step_s(CONFIG, RankLayout.of(CONFIG, 8), 2, MEASURED, Interconnect(1.0))
    assert slow > whole  # over a network of 8 Gbit/s ranks only wait


def test_a_pipeline_is_as_fast_as_its_slowest_stage() -> None:
    """More ranks that render do not help where the planner is slower."""
    apart = RankLayout.of(CONFIG, 8, pipeline=True)
    slow = replace(MEASURED, token_s=1.0)
    assert chunk_s(CONFIG, apart, 12, slow, FREE) == pytest.approx(1218 / 13 * 6)


def test_the_documents_have_the_table() -> None:
    """docs/RANKS.md shows what the command computes."""
    assert table(MEASURED, Interconnect()) in (ROOT / "docs/RANKS.md").read_text()


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With other links it computes anew; a report without times is refused."""
    assert main([str(REPORT)]) == 0
    assert capsys.readouterr().out.strip() == table(MEASURED, Interconnect())
    assert main([str(REPORT), "--gb-s", "25"]) == 0
    assert capsys.readouterr().out.strip() != table(MEASURED, Interconnect())
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ValueError, match="has no times of a chunk's stages"):
        main([str(tmp_path / "empty.json")])
