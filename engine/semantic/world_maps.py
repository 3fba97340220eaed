"""The feature maps of the drawn world: what each channel says, and the scales of places and movements in them."""

from __future__ import annotations

from itertools import accumulate

from engine.text.world_tables import TABLES

HEIGHT_PX, WIDTH_PX = 128, 192  # of the picture
MARGIN_PX = 20.0  # a subject that leaves comes back on the other side, this far outside the picture
CELL_PX = 16  # of the maps
OFFSET_PX = 48.0  # distance up to which a cell tells well where the subject is
PERIOD_PX = 64.0  # of the scenery, which turns its angle once
FRAMES_PER_MAP = 4  # video frames from one semantic frame to the next
# Movements and starts are whole fractions of the autoencoder's cells of 8 px and 4 frames, so that a subject lies in
# them in few ways.
SPEED_PX = (0.5, 1.0, 2.0)  # per video frame, in the order of SPEEDS
PAN_PX = 1.5  # per video frame, by which landmarks pass a panning camera
BOUNCE_PX, BOUNCE_FRAMES = 32.0, (32.0, 20.0, 12.0)  # height of a bounce; its length, in the order of SPEEDS
WIDTHS = {name: row["width"] for name, row in TABLES["maps"].items()}
ENDS = dict(zip(WIDTHS, accumulate(WIDTHS.values()), strict=True))
FEATURE_DIM = sum(WIDTHS.values())


def channel(name: str) -> slice:
    """The feature channels of a map of the table."""
    return slice(ENDS[name] - WIDTHS[name], ENDS[name])


# Maps that both subjects have: where those of the first and of the second one begin, and how many there are.
TWINS = tuple(
    (channel(name).start, channel(f"{name}2").start, WIDTHS[name]) for name in ("mask", "class", "colour", "offset")
)
