"""The benchmark's figures for people: tables in Markdown, put between two marks of a document, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.bench.hop_cost import DECODE, PARTS
from engine.training.run import write_atomically

Report = Mapping[str, Any]
_MS, _US = 1e3, 1e6  # a second


def marks(preset: str, command: str = "engine.bench") -> tuple[str, str]:
    """What stands before and after a preset's tables."""
    return f"<!-- {command} {preset}: begin -->", f"<!-- {command} {preset}: end -->"


def check_marks(document: Path, preset: str, command: str = "engine.bench") -> None:
    """Raises ValueError unless the document has both marks, once each and in order."""
    begin, end = marks(preset, command)
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{document} cannot be read: {error}") from error
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(
            f"{document} must hold the lines {begin!r} and then {end!r}, once each: tables go between them"
        )


def insert(report: Report, document: Path) -> None:
    """Replaces what stands between the marks by the tables."""
    place(document, report["conditions"]["preset"], tables(report))


def place(document: Path, preset: str, text: str, command: str = "engine.bench") -> None:
    """Replaces what stands between a command's marks by whole lines of text."""
    check_marks(document, preset, command)
    begin, end = marks(preset, command)
    whole = document.read_text(encoding="utf-8")
    before, after = whole.partition(begin)[0], whole.partition(end)[2]
    write_atomically(document, lambda path: _put(path, f"{before}{begin}\n{text}{end}{after}"))


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def tables(report: Report) -> str:
    """All figures as Markdown."""
    longest = {"growth": _growth, "compiled": _compiled, "kernels": _kernels}
    parts = [_conditions, _peers, _stages, _shares, *(part for name, part in longest.items() if name in report)]
    return "\n\n".join(part(report) for part in parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _conditions(report: Report) -> str:
    facts = report["conditions"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    checks = "; ".join(f"{check['what']} {check['error']:.1e} (≤ {check['allowed']:.0e})" for check in report["checks"])
    return (
        f"`{facts['command']}`\n\n"
        f"Conditions: {facts['device']}, {facts['cores']} cores, {facts['threads']} threads, {facts['dtype']}, preset "
        f"{facts['preset']} with {facts['weights']} weights, {facts['steps']} steps, commit {facts['commit']}, "
        f"{facts['date'][:10]}, load average {facts['load_average']:.1f} at the start; {versions}.\n\n"
        f"Right before anything was timed, by relative error: {checks}."
    )


def _peers(report: Report) -> str:
    transformer, planner, decoder = report["transformer"], report["planner"], report["autoencoder"]
    rows = [
        _transformer_row(transformer),
        [
            f"codes planned a second, {planner['rows']} row(s), against transformers' LLaMA with a static cache",
            f"{_rate(planner, 'ours'):.0f}",
            f"{_rate(planner, 'theirs'):.0f}",
            _times(planner["times_as_fast"]),
            _bar(planner["times_as_fast"], planner["bar"]),
        ],
        [
            "decoder, ms a video frame, against diffusers' autoencoder",
            f"{_frame_ms(decoder, 'ours'):.2f}",
            f"{_frame_ms(decoder, 'theirs'):.2f}",
            _times(decoder["times_less"]),
            "",
        ],
    ]
    head = ["medians of interleaved rounds", "ours", "theirs", "times better (middle half)", "bar"]
    return f"{table(head, rows)}\n\n{_fairness(report)}"


def _transformer_row(figures: Report) -> list[str]:
    ours, theirs = (_per_video_s(figures, name, "total") for name in ("ours", "theirs"))
    what = "renderer, s of compute for a second of new video, against diffusers' CogVideoX transformer"
    return [
        what,
        f"{ours:.4f}",
        f"{theirs:.4f}",
        _times(figures["times_less"]),
        _bar(figures["times_less"], figures["bar"]),
    ]


def _fairness(report: Report) -> str:
    transformer, planner, decoder = report["transformer"], report["planner"], report["autoencoder"]
    base, control = transformer["layers"]["ours"]
    sizes = decoder["parameters"]
    return (
        f"Equal: windows, {transformer['steps']} steps, {transformer['rows']} row(s), width, heads, dtype, and layers "
        f"({base} of base and {control} of control against {transformer['layers']['theirs']}). Not equal: ours reads "
        "the prompt half once a hop, and by the control branch the plan too, runs without Python between operators and "
        "counts our head of convolutions; theirs computes whole windows at every step, since it has no cache, and its "
        f"head is one linear layer. Planning: the same places, calls, noise and "
        f"sampler, {planner['codes']} codes a round with reading prompt and context; LLaMA's last norm is an RMS norm. "
        f"Decoders: the same compression (8x8 pixels, 4 frames) and latent channels, {sizes['ours']:,} against "
        f"{sizes['theirs']:,} parameters; ours goes on from the hop before and ends in I420 on the host, theirs begins "
        f"a video of {decoder['frames']['theirs']} frames and ends in RGB."
    )


def _stages(report: Report) -> str:
    ours, video_s = report["transformer"]["ours"], report["transformer"]["video_s"]
    names = {part: part for part in PARTS} | {DECODE: "decode to I420"}
    rows = [
        [what, f"{_MS * ours[part]['median_s']:.1f}", f"{_MS * ours[part]['middle_half_s']:.1f}"]
        for part, what in names.items()
    ]
    return table([f"a hop, {video_s:g} s of video", "median ms", "middle half ms"], rows)


def _shares(report: Report) -> str:
    shares, roofs = report["shares"], report["roofs"]
    step, code = shares["denoising_step"], shares["planned_code"]
    rows = [
        ["copy bandwidth, GB/s read and written", f"{roofs['copy_gb_s']:.1f}", ""],
        ["matrix product, GFLOP/s", f"{roofs['matrix_gflop_s']:.0f}", ""],
        ["a denoising step, GFLOP/s", f"{step['gflop_s']:.0f}", f"{step['of_matrix_rate']:.0%} of the matrix product"],
        ["a planned code, GB/s of weights and cache", f"{code['gb_s']:.1f}", f"{code['of_copy']:.0%} of the copy"],
    ]
    return table(["rate", "measured", "share"], rows)


def _growth(report: Report) -> str:
    growth = report["growth"]
    low, high = growth["ratio_middle_half"]
    verdict = "equal within noise" if growth["equal"] else "NOT equal"
    memory = growth["rss_mb"]
    rows = [
        [
            f"a hop at hop {growth['hops']} of a video, ms beside hop {growth['young_hops']} of another",
            f"{_MS * growth['old_hop_s']['median_s']:.1f}",
            f"{_MS * growth['young_hop_s']['median_s']:.1f}",
            f"ratio {growth['ratio']:.3f} ({low:.3f} to {high:.3f}): {verdict}",
        ],
        [
            "the video's last and first hops, ms",
            f"{_MS * growth['last_hops_s']['median_s']:.1f}",
            f"{_MS * growth['first_hops_s']['median_s']:.1f}",
            f"{growth['last_hops_s']['rounds']} hops each, minutes apart",
        ],
        [
            "memory, MB at the end and once settled",
            f"{memory['end']:.0f}",
            f"{memory['settled']:.0f}",
            f"{memory['growth']:+.1f} MB",
        ],
    ]
    return table(["as the video grows", "late", "early", ""], rows)


def _compiled(report: Report) -> str:
    rows = [
        [name, *(f"{_MS * entry[who]['median_s']:.2f}" for who in ("ours", "compiled")), _times(entry["times_less"])]
        if entry["obstacle"] is None
        else [name, "", "not compared", entry["obstacle"].replace("|", "/")]
        for name, entry in report["compiled"].items()
    ]
    return table(["beside torch.compile of the same modules", "ours, ms", "compiled, ms", "times less"], rows)


def _kernels(report: Report) -> str:
    measured = report["kernels"]
    if measured is None:
        return "Kernels: not measured, since there is no CUDA device; on a CPU their plain references run."
    rows = [
        [
            name,
            *(f"{entry[way]['median_us']:.1f}" for way in ("fused", "eager", "compiled")),
            f"{entry['share_of_copy']:.0%}",
        ]
        for name, entry in measured["kernels"].items()
    ]
    rows += [[failure, "wrong", "", "", ""] for failure in measured["failed"]]
    return table(["kernel", "fused µs", "eager µs", "compiled µs", "of a copy's bandwidth"], rows)


def _per_video_s(figures: Report, whose: str, part: str) -> float:
    return float(figures[whose][part]["median_s"] / figures["video_s"])


def _rate(figures: Report, whose: str) -> float:
    return float(figures["codes"] / figures[whose]["total"]["median_s"])


def _frame_ms(figures: Report, whose: str) -> float:
    return float(_MS * figures[whose]["total"]["median_s"] / figures["frames"][whose])


def _times(ratio: Report) -> str:
    low, high = ratio["middle_half"]
    return f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})"


def _bar(ratio: Report, bar: float | None) -> str:
    if bar is None:
        return ""
    return f"{bar:g}: {'reached' if ratio['median'] >= bar else 'MISSED'}"
