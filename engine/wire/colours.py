"""The colours of every picture: I420 in BT.601, limited range. Decoders guess otherwise when nothing tells them.

Chromium (156) takes untagged H.264 for BT.709: reds and greens differ by up to 39 levels of 255 in saturated colours.
"""

from __future__ import annotations

import av
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc


def tag(target: av.VideoFrame | av.VideoCodecContext) -> None:
    """Says of a frame or an encoder what its samples mean; encoders write what both say into the stream."""
    target.color_range, target.colorspace = ColorRange.MPEG, Colorspace.ITU601
    target.color_primaries, target.color_trc = ColorPrimaries.SMPTE170M, ColorTrc.SMPTE170M
