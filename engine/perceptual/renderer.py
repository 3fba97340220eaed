"""Noisy latents, condition and text -> the network's prediction: base network, control branch and condition.

Shapes: `B` batch, `T` latent frames, `P` of them given as prompt, `C` latent channels, `H` x `W` latent size,
`L` text tokens, `K` text width, `D` feature width, `h` x `w` the semantic grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.perceptual.block import KeysValues
from engine.perceptual.control import ControlBranch
from engine.perceptual.dit import DiT, DiTConfig
from engine.perceptual.head import Frames
from engine.perceptual.upsampler import Condition, ConditionConfig


@dataclass(frozen=True, slots=True)
class RendererConfig:
    """Sizes of the renderer; the defaults are the published ones.

    `prediction` says what the network answers with: 'v' (published) or 'x0', the clean latents (`mini`).
    """

    dit: DiTConfig = field(default_factory=DiTConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    control_layers: int = 15
    prediction: str = "v"

    def __post_init__(self) -> None:
        if not 1 <= self.control_layers <= self.dit.layers:
            raise ValueError(f"control_layers {self.control_layers} is not between 1 and layers {self.dit.layers}")
        if self.condition.latent_channels != self.dit.channels:
            raise ValueError(
                f"condition latent_channels {self.condition.latent_channels} differ from channels {self.dit.channels}"
            )
        if self.prediction not in ("v", "x0"):
            raise ValueError(f"prediction {self.prediction!r} is neither 'v' nor 'x0'")
        if self.dit.head == "conv" and self.prediction != "x0":
            raise ValueError(f"the conv head copies clean frames: prediction must be 'x0', not {self.prediction!r}")


@dataclass(frozen=True, slots=True)
class PromptCache:
    """What every denoising step of a window needs of its text and prompt frames; owned by whoever made it.

    `base` and `control` hold keys and values of each layer; they are empty unless the model is half-causal.
    """

    text: Tensor  # [B, L, K]
    prompt: Tensor  # [B, P, C, H, W]
    condition: Tensor  # [B, P, C, H, W]
    base: tuple[KeysValues, ...]
    control: tuple[KeysValues, ...]

    @property
    def frames(self) -> int:
        return self.prompt.shape[1]


class Renderer(nn.Module):
    """`condition(features)` [B, T, D, h, w] -> [B, T, C, H, W] once a window, then `denoise` or `predict` a step."""

    def __init__(self, config: RendererConfig) -> None:
        super().__init__()
        self.config = config
        self.base = DiT(config.dit)
        self.control = ControlBranch(config.dit, config.control_layers)
        self.condition = Condition(config.condition)

    def predict(self, x: Tensor, time: Tensor, text: Tensor, condition: Tensor, prompt_frames: int = 0) -> Tensor:
        """The prediction with full attention over text and all frames.

        Args:
            x: [B, T, C, H, W], the first `prompt_frames` clean.
            time: [B], the step's time, in the unit that `DiTConfig.time_scale` says.
            text: [B, L, K]; all zero for no text.
            condition: [B or 1, T, C, H, W].
            prompt_frames: how many frames are given.

        Returns:
            [B, T - prompt_frames, C, H, W].
        """
        control = self.control.embed(text, x + condition)
        residuals, _ = self.control(control, self.control.layout(time, x.shape[1], prompt_frames))
        layout = self.base.layout(time, x.shape[1], prompt_frames)
        hidden = self.base(self.base.embed(text, x), layout, residuals)
        given, new = slice(None, prompt_frames), slice(prompt_frames, None)
        condition = condition.expand_as(x)
        frames = Frames(x[:, new], condition[:, new], _last(condition[:, given]), _last(x[:, given]))
        return self.base.output(hidden, layout, frames)

    def read_prompt(self, prompt: Tensor, text: Tensor, condition: Tensor) -> PromptCache:
        """Everything of a window that stays the same over its denoising steps.

        Args:
            prompt: [B, P, C, H, W] clean latents; P may be 0.
            text: [B, L, K].
            condition: [B, P, C, H, W] of the prompt frames.
        """
        if prompt.shape != condition.shape:
            raise ValueError(f"prompt {tuple(prompt.shape)} and its condition {tuple(condition.shape)} differ in shape")
        if not self.config.dit.half_causal:
            return PromptCache(text, prompt, condition, (), ())
        batch, frames = prompt.shape[:2]
        tokens = self.control.embed(text, prompt + condition)
        residuals, control = self.control(tokens, self.control.prompt_layout(batch, frames))
        base = self.base.read(self.base.embed(text, prompt), self.base.prompt_layout(batch, frames), residuals)
        return PromptCache(text, prompt, condition, base, control)

    def denoise(self, x: Tensor, time: Tensor, condition: Tensor, cache: PromptCache) -> Tensor:
        """The prediction for new frames that follow the prompt of `cache`.

        Args:
            x: [B, N, C, H, W] noisy.
            time: [B], as for `predict`.
            condition: [B, N, C, H, W] of the new frames.
            cache: of `read_prompt`, the same at every step.

        Returns:
            [B, N, C, H, W].
        """
        if not self.config.dit.half_causal:
            whole, conditions = torch.cat([cache.prompt, x], 1), torch.cat([cache.condition, condition], 1)
            return self.predict(whole, time, cache.text, conditions, cache.frames)
        control = self.control.embed_frames(x + condition, cache.frames)
        residuals, _ = self.control(control, self.control.new_layout(time, x.shape[1]), cache.control)
        layout = self.base.new_layout(time, x.shape[1])
        hidden = self.base(self.base.embed_frames(x, cache.frames), layout, residuals, cache.base)
        return self.base.output(hidden, layout, Frames(x, condition, _last(cache.condition), _last(cache.prompt)))


def _last(frames: Tensor) -> Tensor | None:
    return frames[:, -1] if frames.shape[1] else None
