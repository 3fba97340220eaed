"""The quality figures as lines of a table, for the HTML report and for Markdown documents alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.bench.tables import table

Figures = Mapping[str, Any]  # what `evaluate` writes
COMMAND = "engine evaluate"  # in the marks of a document


def rows(figures: Figures) -> list[tuple[str, str]]:
    """Names and values, those of long videos excepted."""
    held_out, changed, coded = figures["held_out"], figures["prompt_change"], figures["autoencoder"]
    lines = [(f"{_name(word)} right", share(held_out[word])) for word in held_out]
    lines += [
        (f"{_name(word)} right in the second hop after a change", share(changed[word]))
        for word in held_out
        if word in changed
    ]
    lines += [
        ("words that changed, right in the second hop", share(changed["changed_words"])),
        ("all words right in the second hop", share(changed["all"])),
        ("judge on true videos, least word", f"{_least(figures['judge_on_true_videos']):.3f}"),
        ("Fréchet distance of features", f"{figures['frechet']:.3f} ± {figures['frechet_half_width_95']:.3f}"),
        (f"seam ratio, {figures['seam_videos']} videos", _interval(figures, "seam_ratio")),
        ("jump at latents inside hops", _interval(figures, "latent_jump_ratio")),
        ("autoencoder, whole picture", f"{coded['psnr_db']:.1f} ± {coded['psnr_half_width_95']:.1f} dB"),
        (
            "autoencoder, box round the subject",
            f"{coded['subject_box_psnr_db']:.1f} ± {coded['subject_box_psnr_half_width_95']:.1f} dB",
        ),
    ]
    if "tokenizer_round_trip" in figures:
        lines.append(("words kept by the tokenizer", share(figures["tokenizer_round_trip"]["mean"])))
    flicker = figures["flicker"]
    if "ratio" in flicker:
        ratio = f"{flicker['ratio']:.2f} ± {flicker['half_width_95']:.2f}"
        levels = f"{flicker['levels']['mean']:.2f} levels of 255"
        lines.append(("flicker of still scenes, over that of true videos", f"{ratio} ({levels}, n = {flicker['n']})"))
    return lines


def share(figure: Mapping[str, float]) -> str:
    """A share with the half width of its 95 % interval."""
    return f"{figure['share']:.3f} ± {figure['half_width_95']:.3f} (n = {figure['n']})"


def ends(video: Figures) -> tuple[float, float]:
    """Mean share of right words in a long video's first and last minute."""
    first, last = (sum(video[end].values()) / len(video[end]) for end in ("first_minute", "last_minute"))
    return first, last


def markdown(figures: Figures) -> str:
    """All figures and what they were measured with."""
    facts = figures["conditions"]
    return (
        f"{table(['figure', 'measured'], rows(figures))}\n\n"
        f"{_long(figures['long'])}\n\n"
        f"Conditions: {facts['device']}, {facts['cores']} cores, {facts['dtype'].removeprefix('torch.')}, torch "
        f"{facts['torch']}, {facts['steps']} steps, commit {facts['commit']}, {facts['date']}; "
        f"`{facts['command'].strip()}`.\n"
    )


def _long(videos: Sequence[Figures]) -> str:
    head = ["long video", "minutes", "words right, first and last minute", "sharpness", "colour", "seam ratio"]
    lines = []
    for video in videos:
        first, last = ends(video)
        drifts = [f"{video['sharpness_drift']:+.1%}", f"{video['colour_drift']:.1%}", f"{video['seam_ratio']:.2f}"]
        lines.append([f"“{video['prompt']}”", f"{video['minutes']:g}", f"{first:.2f}, {last:.2f}", *drifts])
    return table(head, lines)


def _name(word: str) -> str:
    return {"camera": "panning camera", "subject2": "second subject", "colour2": "second colour"}.get(
        word, word.replace("_", " ")
    )


def _least(shares: Mapping[str, Mapping[str, float]]) -> float:
    return min(one["share"] for one in shares.values())


def _interval(figures: Figures, name: str) -> str:
    return f"{figures[name]:.2f} ± {figures[f'{name}_half_width_95']:.2f}"
