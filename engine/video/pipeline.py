"""Videos of a chosen length in the habit of diffusers: `LanDiffPipeline.from_pretrained(folder)(prompt).frames`.

Shapes: `B` prompts, `F` frames, `H` x `W` picture size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.cogvideo.pipeline_output import CogVideoXPipelineOutput
from PIL import Image
from tqdm import tqdm

from engine.arguments import whole
from engine.config import PRESETS
from engine.config import preset as config_of
from engine.live.generator import Generator
from engine.live.offline import generate_frames
from engine.loading.model import Model
from engine.loading.model import load as load_model
from engine.loading.options import place
from engine.loading.weights import preset_of
from engine.video.video_file import to_rgb
from engine.wire.prompt import check_prompt
from engine.wire.settings import MOST_STEPS, SEED_LIMIT, check_seed

OUTPUT_TYPES = ("np", "pil", "pt")
FRAMES = 49  # of the published model's window

Video = npt.NDArray[np.uint8]  # [F, H, W, 3]


class LanDiffPipeline:
    """Prompts to videos, as diffusers' text-to-video pipelines are called.

    A seed gives the frames that `python -m engine generate` and the server show with it, on one device.
    """

    def __init__(self, model: Model) -> None:
        self.config = model.config
        self._generator = Generator(model)
        self._progress: dict[str, Any] = {}

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "auto") -> LanDiffPipeline:
        """Loads weights.

        Args:
            folder: with weights, of either layout; or a hub id of the published model, or "mini", which is shipped.
            device: "auto", "cpu" or "cuda".

        Raises:
            ValueError: if there is no such folder, hub id or device, or a file of weights is damaged.
        """
        name, path = str(folder), Path(folder)
        if name in PRESETS and not path.is_dir():
            config, weights = config_of(name), None
        else:
            config, weights = config_of(preset_of(path) if path.is_dir() else "landiff"), name
        return cls(load_model(config, *place(config, weights, device)))

    @property
    def fps(self) -> float:
        """Frames a second of the videos."""
        return self.config.fps

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of tqdm's bars, `disable=True` for none."""
        self._progress = options

    def __call__(
        self,
        prompt: str | Sequence[str],
        num_frames: int = FRAMES,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | None = None,
        output_type: Literal["np", "pil", "pt"] = "np",
        return_dict: bool = True,
    ) -> CogVideoXPipelineOutput | tuple[Any]:
        """Makes a video of each prompt.

        Args:
            num_frames: of each video, 1 or more.
            num_inference_steps: denoising steps a chunk; the preset's own if None.
            generator: draws the seeds, or one for each prompt.
            seed: of the first video, the next have the next ones; drawn if neither this nor `generator` is given.
            output_type: "np" float32 [B, F, H, W, 3], "pt" float32 [B, F, 3, H, W], both 0 to 1, or "pil", B lists.
            return_dict: False gives a tuple in place of the record.

        Returns:
            diffusers' record, with the videos in `frames`.

        Raises:
            ValueError: for a bad prompt or number, before anything is made.
        """
        prompts = [check_prompt(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
        whole("num_frames", num_frames)
        if num_inference_steps is not None:
            whole("num_inference_steps", num_inference_steps, MOST_STEPS)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        seeds = _seeds(len(prompts), seed, generator)
        videos = [
            self._video(text, own, num_frames, num_inference_steps) for text, own in zip(prompts, seeds, strict=True)
        ]
        frames = _packed(videos, output_type)
        return CogVideoXPipelineOutput(frames=frames) if return_dict else (frames,)

    def _video(self, prompt: str, seed: int, frames: int, steps: int | None) -> Video:
        channel = self._generator.open(prompt, seed, steps)
        video = np.empty((frames, self.config.height_px, self.config.width_px, 3), np.uint8)
        batches = generate_frames(self._generator, channel, frames)
        pictures: Iterator[Video] = map(to_rgb, chain.from_iterable(batch.i420 for batch in batches))
        for number, picture in enumerate(tqdm(pictures, **{"total": frames, "unit": "frame"} | self._progress)):
            video[number] = picture
        return video


def _seeds(count: int, seed: int | None, generator: torch.Generator | Sequence[torch.Generator] | None) -> list[int]:
    """A seed for each video."""
    if not count:
        raise ValueError("there is no prompt: give one or more")
    if seed is not None and generator is not None:
        raise ValueError("seed and generator are both given: leave one out")
    if seed is not None:
        return [(check_seed(seed) + number) % SEED_LIMIT for number in range(count)]
    if generator is None or isinstance(generator, torch.Generator):
        return [_drawn(generator) for _ in range(count)]
    if len(generator) != count:
        raise ValueError(f"{len(generator)} generators are given for {count} prompts: give one, or one for each")
    return [_drawn(one) for one in generator]


def _drawn(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(SEED_LIMIT, (1,), generator=generator, device=device).item())


def _packed(videos: Sequence[Video], output_type: str) -> Any:
    """Videos as `output_type` says."""
    if output_type == "pil":
        return [[Image.fromarray(picture) for picture in video] for video in videos]
    frames = np.stack(videos).astype(np.float32) / np.float32(255)
    return frames if output_type == "np" else torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()
