"""Tables and pictures of the benchmark."""

import copy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine.bench import plots, tables
from engine.bench.hop_cost import PARTS


def spread(seconds: float) -> dict[str, float]:
    return {"median_s": seconds, "middle_half_s": seconds / 10, "least_s": seconds, "rounds": 15}


def ratio(value: float) -> dict[str, Any]:
    return {"median": value, "middle_half": [0.9 * value, 1.1 * value]}


def made_up() -> dict[str, Any]:
    """A report with numbers that are easy to find again."""
    series = [{"hop": hop, "seconds": 0.4, "rss_mb": 600.0 + hop / 10, "device_mb": 0.0} for hop in range(1, 61)]
    return {
        "conditions": {
            "command": "python -m engine.bench --json F",
            "date": "2026-11-22T18:00:00+00:00",
            "commit": "abc123",
            "preset": "mini",
            "weights": "shipped",
            "steps": 4,
            "dtype": "bfloat16",
            "device": "a processor",
            "device_type": "cpu",
            "cores": 2,
            "threads": 2,
            "load_average": 0.25,
            "versions": {"torch": "2.13.0", "xformers": None},
        },
        "checks": [{"what": "one thing", "error": 1e-7, "allowed": 1e-5}],
        "roofs": {"copy_gb_s": 20.0, "matrix_gflop_s": 300.0},
        "transformer": {
            "layers": {"ours": [3, 3], "theirs": 6},
            "rows": 1,
            "steps": 4,
            "video_s": 3.0,
            "ours": {name: spread(0.03) for name in (*PARTS, "total")},
            "theirs": {"total": spread(0.09)},
            "times_less": ratio(3.0),
            "bar": 2.0,
        },
        "compiled": {
            "denoising step": {
                "obstacle": None,
                "ours": spread(0.021),
                "compiled": spread(0.042),
                "times_less": ratio(2.0),
            },
            "planned codes": {"obstacle": "no C++ compiler | here"},
        },
        "autoencoder": {
            "parameters": {"ours": 1168000, "theirs": 1316419},
            "frames": {"ours": 24, "theirs": 25},
            "ours": {"total": spread(0.048)},
            "theirs": {"total": spread(1.0)},
            "times_less": ratio(20.0),
        },
        "planner": {
            "codes": 128,
            "rows": 2,
            "ours": {"total": spread(0.5)},
            "theirs": {"total": spread(0.6)},
            "times_as_fast": ratio(1.2),
            "bar": 1.3,
        },
        "shares": {
            "denoising_step": {"gflop_s": 100.0, "of_matrix_rate": 0.33},
            "planned_code": {"gb_s": 3.0, "of_copy": 0.15},
        },
        "kernels": None,
        "growth": {
            "hops": 1000,
            "young_hops": 12,
            **{name: spread(0.4) for name in ("first_hops_s", "last_hops_s", "young_hop_s", "old_hop_s")},
            "ratio": 1.003,
            "ratio_middle_half": [0.99, 1.01],
            "equal": True,
            "rss_mb": {"settled": 600.0, "end": 601.5, "growth": 1.5},
            "device_mb": {"settled": 0.0, "end": 0.0, "growth": 0.0},
            "series": series,
        },
    }


def document(folder: Path, text: str) -> Path:
    path = folder / "doc.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_give_figures_bars_and_conditions() -> None:
    """What was reached and what was missed, per second of video, per code and per frame, with the conditions beside."""
    text = tables.tables(made_up())
    assert "| 0.0100 | 0.0300 | 3.00 (2.70 to 3.30) | 2: reached |" in text
    assert "| 256 | 213 | 1.20 (1.08 to 1.32) | 1.3: MISSED |" in text
    assert "| 2.00 | 40.00 | 20.00 (18.00 to 22.00) |" in text
    assert "ratio 1.003 (0.990 to 1.010): equal within noise" in text
    assert "a processor, 2 cores, 2 threads, bfloat16" in text
    assert "torch 2.13.0." in text
    assert "1,168,000 against 1,316,419 parameters" in text
    assert "not measured" in text
    assert "| denoising step | 21.00 | 42.00 | 2.00 (1.80 to 2.20) |" in text
    assert "| planned codes |  | not compared | no C++ compiler / here |" in text


def test_tables_say_what_is_not_equal() -> None:
    """A video that grows dearer, and kernels where they were measured."""
    report = made_up()
    report["growth"]["equal"] = False
    timing = {"median_us": 12.5, "spread_us": 0.5}
    entry = {"fused": timing, "eager": timing, "compiled": timing, "share_of_copy": 0.875}
    report["kernels"] = {"kernels": {"rms_norm": entry}, "failed": ["headnorm is off"]}
    text = tables.tables(report)
    assert "NOT equal" in text
    assert "| rms_norm | 12.5 | 12.5 | 12.5 | 88% |" in text
    assert "| headnorm is off | wrong |" in text


def test_tables_go_between_the_marks(tmp_path: Path) -> None:
    """The rest of the document stays byte for byte, and a second run replaces the first."""
    begin, end = tables.marks("mini")
    path = document(tmp_path, f"# Title\n\n{begin}\nold\n{end}\n\nafter\n")
    report = made_up()
    tables.insert(report, path)
    first = path.read_text(encoding="utf-8")
    assert first == f"# Title\n\n{begin}\n{tables.tables(report)}{end}\n\nafter\n"
    other = copy.deepcopy(report)
    other["conditions"]["commit"] = "def456"
    tables.insert(other, path)
    assert path.read_text(encoding="utf-8") == first.replace("abc123", "def456")
    assert [entry.name for entry in tmp_path.iterdir()] == ["doc.md"]


@pytest.mark.parametrize("text", ["nothing", "{begin}\n", "{end}\n{begin}\n", "{begin}\n{end}\n{begin}\n{end}\n"])
def test_a_document_without_the_marks_is_refused(tmp_path: Path, text: str) -> None:
    """The message says what it must hold; the document stays."""
    begin, end = tables.marks("mini")
    path = document(tmp_path, text.format(begin=begin, end=end))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="must hold the lines"):
        tables.insert(made_up(), path)
    assert path.read_bytes() == before


def test_pictures_are_whole_files(tmp_path: Path) -> None:
    """Two PNGs of some size, and nothing else in the folder; a short video is drawn, too."""
    report = made_up()
    for count in (60, 5):
        report["growth"]["series"] = report["growth"]["series"][:count]
        pictures = plots.draw(report, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bench_growth.png", "bench_peers.png"]
        for path in pictures:
            with Image.open(path) as picture:
                picture.verify()
                assert picture.width > 500
