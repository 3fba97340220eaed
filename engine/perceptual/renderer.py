"""Noisy latents, condition and text -> the network's prediction: base network, control branch and condition.

Shapes: `B` batch, `T` latent frames, `P` of them given as prompt, `C` latent channels, `H` x `W` latent size,
`L` text tokens, `K` text width, `D` feature width, `h` x `w` the semantic grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.perceptual.block import KeysValues, Layout
from engine.perceptual.control import ControlBranch
from engine.perceptual.dit import PROMPT_TIME, DiT, DiTConfig, patches_of
from engine.perceptual.head import Frames
from engine.perceptual.times import Moment
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
class Words:
    """A text as both networks read it, made once per prompt of the video."""

    control: Tensor  # [B, L, D] tokens of the control branch
    base: Tensor  # [B, L, D] tokens of the base network
    moment: Moment  # `PROMPT_TIME`, at which half-causal models read text and prompt frames


@dataclass(frozen=True, slots=True)
class PromptCache:
    """What every denoising step of a window needs of its text and prompt frames; owned by whoever made it.

    Tokens are those of text and prompt frames. Where the model is half-causal, steps need only keys and values of each
    layer, and there are no tokens; elsewhere there are no keys and values.
    """

    prompt: Tensor  # [B, P, C, H, W]
    condition: Tensor  # [B, P, C, H, W]
    base: tuple[KeysValues, ...]
    control: tuple[KeysValues, ...]
    base_tokens: Tensor | None = None  # [B, N, D]
    control_tokens: Tensor | None = None  # [B, N, D]

    @property
    def frames(self) -> int:
        return self.prompt.shape[1]

    @property
    def rows(self) -> int:
        return self.prompt.shape[0]

    def prompted(self) -> PromptCache:
        """Of the last row alone, the one with text, for steps that need no other."""
        last = slice(-1, None)
        base, control = (
            tuple(KeysValues(layer.keys[last], layer.values[last]) for layer in layers)
            for layers in (self.base, self.control)
        )
        tokens = (None if part is None else part[last] for part in (self.base_tokens, self.control_tokens))
        return PromptCache(self.prompt[last], self.condition[last], base, control, *tokens)


@dataclass(frozen=True, slots=True)
class NewHalf:
    """What every denoising step of a window needs beside the new frames themselves."""

    control: Tensor  # [B or 1, N, D] of their condition, as a summand of the control branch's tokens
    known: Tensor | None  # [B, T, D, H, W] of the head

    def prompted(self) -> NewHalf:
        """Of the last row alone, the one with text."""
        return NewHalf(self.control[-1:], None if self.known is None else self.known[-1:])


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
        tokens = self.base.embed(text, x), self.control.embed(text, x + condition)
        given, new = slice(None, prompt_frames), slice(prompt_frames, None)
        condition = condition.expand_as(x)
        last = _last(x[:, given])
        known = self.base.head.know(condition[:, new], _last(condition[:, given]), last)
        frames = Frames(x[:, new], known, last)
        return self.base.output(*self._attended(*tokens, time, prompt_frames, x.shape[1]), frames)

    def read_text(self, text: Tensor) -> Words:
        """Everything of a text [B, L, K] that stays the same over the windows under it."""
        time = torch.full((len(text),), PROMPT_TIME, device=text.device)
        return Words(self.control.embed_text(text), self.base.embed_text(text), Moment(time))

    def read_prompt(self, prompt: Tensor, text: Tensor | Words, condition: Tensor) -> PromptCache:
        """Everything of a window that stays the same over its denoising steps.

        Args:
            prompt: [B, P, C, H, W] clean latents; P may be 0.
            text: [B, L, K], or what `read_text` made of it.
            condition: [B, P, C, H, W] of the prompt frames.
        """
        if prompt.shape != condition.shape:
            raise ValueError(f"prompt {tuple(prompt.shape)} and its condition {tuple(condition.shape)} differ in shape")
        words = self.read_text(text) if isinstance(text, Tensor) else text
        control_tokens = self.control.join(words.control, prompt + condition, 0)
        base_tokens = self.base.join(words.base, prompt, 0)
        if not self.config.dit.half_causal:
            return PromptCache(prompt, condition, (), (), base_tokens, control_tokens)
        frames = prompt.shape[1]
        layout = self.control.prompt_layout(words.moment, frames)
        residuals, control = self.control(control_tokens, layout, keep=True)
        base = self.base.read(base_tokens, self.base.prompt_layout(words.moment, frames), residuals)
        return PromptCache(prompt, condition, base, control)

    def read_new(self, condition: Tensor, cache: PromptCache) -> NewHalf:
        """Everything of new frames that stays the same over a window's steps.

        Args:
            condition: [B or 1, T, C, H, W] of the new frames.
            cache: of the prompt that they follow, B rows.
        """
        rows = condition.expand(cache.rows, -1, -1, -1, -1)
        known = self.base.head.know(rows, _last(cache.condition), _last(cache.prompt))
        return NewHalf(self.control.project_patches(patches_of(condition, self.config.dit.patch)), known)

    def denoise(self, x: Tensor, time: Tensor | Moment, condition: Tensor | NewHalf, cache: PromptCache) -> Tensor:
        """The prediction for new frames that follow the prompt of `cache`, which has B rows.

        Args:
            x: [B or 1, T, C, H, W] noisy; one row stands for all.
            time: [B], as for `predict`. A `Moment` that is kept for the next window spares making its modulations.
            condition: [B or 1, T, C, H, W] of the new frames, or what `read_new` made of it.
            cache: of `read_prompt`, the same at every step.

        Returns:
            [B, T, C, H, W].
        """
        new = self.read_new(condition, cache) if isinstance(condition, Tensor) else condition
        base, control, frames = self._new_tokens(x, new, cache)
        hidden, layout = self._run(base, control, time, cache, x.shape[1])
        return self.base.output(hidden, layout, frames)

    def denoise_reusing(
        self, x: Tensor, moment: Moment, new: NewHalf, cache: PromptCache, change: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `denoise`, and what the layers add to the new frames' tokens, for another step to take.

        Args:
            change: [B, N, D] of another step, in whose place the layers are not run: an approximation
                (`engine.perceptual.reuse`); None runs them.

        Returns:
            [B, T, C, H, W], and the change [B, N, D] that was made or given.
        """
        base, control, frames = self._new_tokens(x, new, cache)
        if change is None:
            hidden, layout = self._run(base, control, moment, cache, x.shape[1])
            change = hidden[:, -base.shape[1] :] - base
        else:
            hidden, layout = base + change, self._layout(moment, cache, x.shape[1])
        return self.base.output(hidden, layout, frames), change

    def _run(
        self, base: Tensor, control: Tensor, time: Tensor | Moment, cache: PromptCache, count: int
    ) -> tuple[Tensor, Layout]:
        """The layers' answer for the tokens [B, N, D] of `count` new frames, the last in it, and the layout of it."""
        if cache.base_tokens is not None and cache.control_tokens is not None:
            base = torch.cat([cache.base_tokens, base], dim=1)
            control = torch.cat([cache.control_tokens, control], dim=1)
            return self._attended(base, control, time, cache.frames, cache.frames + count)
        residuals, _ = self.control(control, self.control.new_layout(time, count), cache.control)
        layout = self._layout(time, cache, count)
        return self.base(base, layout, residuals, cache.base), layout

    def _layout(self, time: Tensor | Moment, cache: PromptCache, count: int) -> Layout:
        """Of the base network's tokens at a step."""
        if cache.base_tokens is None:
            return self.base.new_layout(time, count)
        return self.base.layout(time, cache.frames + count, cache.frames)

    def _new_tokens(self, x: Tensor, new: NewHalf, cache: PromptCache) -> tuple[Tensor, Tensor, Frames]:
        """Tokens [B, N, D] of noisy frames in the base network and in the control branch, and what the head sees."""
        self.base.check_frames(x, cache.frames)
        patches, rows = patches_of(x, self.config.dit.patch), (cache.rows, -1, -1)
        base = self.base.embed_patches(patches, cache.frames)
        control = self.control.embed_patches(patches, cache.frames) + new.control
        frames = Frames(x.expand(*rows, -1, -1), new.known, _last(cache.prompt))
        return base.expand(rows), control.expand(rows), frames

    def _attended(
        self, base: Tensor, control: Tensor, time: Tensor | Moment, prompt_frames: int, count: int
    ) -> tuple[Tensor, Layout]:
        """The layers' answer under full attention for the tokens [B, N, D] of text and all `count` frames."""
        residuals, _ = self.control(control, self.control.layout(time, count, prompt_frames))
        layout = self.base.layout(time, count, prompt_frames)
        return self.base(base, layout, residuals), layout


def _last(frames: Tensor) -> Tensor | None:
    return frames[:, -1] if frames.shape[1] else None
