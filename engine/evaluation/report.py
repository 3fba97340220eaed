"""The quality figures as one Markdown table, and videos of the evaluation as a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from engine.bench.report import table
from engine.training.world.captions import Label

SHEET_ROWS = 24
SHEET_FRAMES = (0, 24, 48, 72, 96)
CHANGED_COLUMN = 3  # first picture under the new prompt
TEXT_PX = 14  # height of a line of words above the pictures
MOST_MINUTES = 12  # in the table
# Pictures SHEET_FRAMES of a video, uint8 [5, 3, H, W]; label and right words before and after its prompt changed.
SheetRow = tuple[Tensor, tuple[Label, dict[str, bool]], tuple[Label, dict[str, bool]]]


def markdown(figures: Mapping[str, Any]) -> str:
    """All figures, and the conditions that they were measured under."""
    named = {
        **{f"{word} right": one for word, one in figures["held_out"].items()},
        **{f"{word} right, second chunk after a change": one for word, one in figures["prompt_change"].items()},
        "Fréchet distance of features": figures["frechet"],
        "seam ratio": figures["seam_ratio"],
        "jump ratio at latents inside chunks": figures["latent_jump_ratio"],
        "autoencoder, whole picture, dB": figures["autoencoder"]["picture"],
        "autoencoder, box around the subject, dB": figures["autoencoder"]["subject_box"],
        "words kept by the tokenizer": figures["tokenizer"]["all"],
        "flicker of still scenes over that of true videos": figures["flicker"],
    }
    rows = [(name.replace("_", " "), _interval(figure)) for name, figure in named.items() if figure]
    worst = min(map(_value, figures["judge_on_true_videos"].values()))
    rows.append(("judge on true videos, worst word", f"{worst:.3f}"))
    for point in figures["drift_curve"][:: -(-len(figures["drift_curve"]) // MOST_MINUTES)]:
        words, drifts = point["words"].values(), (_value(point[f"{name}_drift"]) for name in ("sharpness", "colour"))
        told = "{:.3f}, sharpness {:+.1%}, colour {:.1%}".format(sum(map(_value, words)) / len(words), *drifts)
        rows.append((f"minute {point['minute']} of long videos: words right", told))
    facts = figures["conditions"]
    names = ("device", "cores", "dtype", "steps", "weights", "commit", "date")
    measured = ", ".join(f"{name} {facts[name]}" for name in names)
    return f"{table(['figure', 'measured'], rows)}\n\n`{facts['command']}`: {measured}.\n"


def _value(figure: Mapping[str, float]) -> float:
    """The first entry: a share, mean, ratio, distance or level."""
    return next(iter(figure.values()))


def _interval(figure: Mapping[str, float]) -> str:
    return f"{_value(figure):.3f} ± {figure['half_width_95']:.3f} (n = {figure['n']})"


def contact_sheet(videos: Sequence[SheetRow]) -> Image.Image:
    """One row a video: its words, before and after the change, above its pictures. Wrong words are red."""
    height, width = videos[0][0].shape[-2:]
    row_px = height + TEXT_PX
    whole = Image.new("RGB", (len(SHEET_FRAMES) * width, len(videos) * row_px), "white")
    draw = ImageDraw.Draw(whole)
    for row, (pictures, *words) in enumerate(videos):
        top = row * row_px
        for column, (label, right) in zip((0, CHANGED_COLUMN), words, strict=True):
            x = column * width + 2
            for word, text in label.words.items():
                draw.text((x, top + 1), text, fill="black" if right[word] else "red")
                x += 6 * len(text) + 8
        for column, picture in enumerate(pictures):
            whole.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (column * width, top + TEXT_PX))
    return whole
