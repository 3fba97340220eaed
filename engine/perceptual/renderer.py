"""Noisy latents, condition and text -> the network's prediction: base network, control branch and condition.

Shapes: `B` batch, `T` latent frames, `P` of them given as prompt, `C` latent channels, `H` x `W` latent size,
`L` text tokens, `K` text width, `D` feature width, `h` x `w` the semantic grid,
`E` channels of details (published: none).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.perceptual.block import KeysValues, Layout
from engine.perceptual.control import ControlBranch
from engine.perceptual.dit import PROMPT_TIME, DiT, DiTConfig, patches_of
from engine.perceptual.mini.head import Frames, Known
from engine.perceptual.timesteps import Moment
from engine.perceptual.upsampler import Condition, ConditionConfig
from engine.runtime.pytree import leaves, planted


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
        if self.condition.detail_channels != self.dit.head_details:
            raise ValueError(
                f"the condition has {self.condition.detail_channels} channels of details, head_details is "
                f"{self.dit.head_details}"
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
class WindowCache:
    """What every denoising step of a window needs beside its noisy frames; owned by whoever made it.

    Of text and prompt frames a half-causal model keeps the keys and values of each layer, others their tokens. Its
    control branch reads the new frames' condition alone, once; elsewhere that branch sees noisy frames too, with the
    condition as a summand.
    """

    prompt: Tensor  # [B, P, C, H, W]
    known: Known | None  # of the head
    base: tuple[KeysValues, ...] = ()  # half-causal
    residuals: tuple[Tensor, ...] = ()  # half-causal: [B, N, D] of each control layer, of the new frames
    base_tokens: Tensor | None = None  # [B, M, D] of text and prompt frames
    control_tokens: Tensor | None = None  # [B, M, D] likewise
    control: Tensor | None = None  # [B or 1, N, D] summand of the control branch's tokens of the new frames

    @property
    def frames(self) -> int:
        return self.prompt.shape[1]

    @property
    def rows(self) -> int:
        return self.prompt.shape[0]

    def prompted(self) -> WindowCache:
        """Of the last row alone, the one with text, for steps that need no other."""
        return planted(self, (leaf[-1:] for leaf in leaves(self)))


class Renderer(nn.Module):
    """`condition(features)` [B, T, D, h, w] -> [B, T, C + E, H, W] and `read` once a window, then `denoise` a step."""

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
            condition: [B or 1, T, C + E, H, W].
            prompt_frames: how many frames are given.

        Returns:
            [B, T - prompt_frames, C, H, W].
        """
        rows = condition.expand(len(x), -1, -1, -1, -1)
        tokens = self.base.embed(text, x), self.control.embed(text, x + self._summand(condition))
        given, new = slice(None, prompt_frames), slice(prompt_frames, None)
        last = _last(x[:, given])
        known = self.base.head.know(rows[:, new], _last(rows[:, given]), last)
        frames = Frames(x[:, new], known, last)
        return self.base.output(*self._attended(*tokens, time, prompt_frames, x.shape[1]), frames)

    def read_text(self, text: Tensor, moment: Moment | None = None) -> Words:
        """Everything of a text [B, L, K] that stays the same over the windows under it.

        A `moment` of `given_moment` that is kept for other texts spares making its modulations.
        """
        return Words(self.control.embed_text(text), self.base.embed_text(text), moment or given_moment(text))

    def read(self, prompt: Tensor, text: Tensor | Words, condition: Tensor) -> WindowCache:
        """Everything of a window that stays the same over its denoising steps.

        Args:
            prompt: [B, P, C, H, W] clean latents; P may be 0.
            text: [B, L, K], or what `read_text` made of it.
            condition: [B or 1, P + T, C + E, H, W] of the prompt frames and of the new ones.

        Raises:
            ValueError: if the condition is of fewer frames than the prompt, or of another size.
        """
        given = prompt.shape[1]
        size = (self.config.dit.condition_channels, *prompt.shape[3:])
        if condition.shape[1] < given or condition.shape[2:] != size:
            raise ValueError(f"prompt {tuple(prompt.shape)} and condition {tuple(condition.shape)} do not fit")
        words = self.read_text(text) if isinstance(text, Tensor) else text
        rows = condition.expand(len(prompt), -1, -1, -1, -1)
        known = self.base.head.know(rows[:, given:], _last(rows[:, :given]), _last(prompt))
        condition, rows = self._summand(condition), self._summand(rows)
        base_tokens = self.base.join(words.base, prompt, 0)
        control_tokens = self.control.join(words.control, prompt + rows[:, :given], 0)
        if not self.config.dit.half_causal:
            patches = patches_of(condition[:, given:], self.config.dit.patch)
            summand = self.control.project_patches(patches)
            return WindowCache(prompt, known, base_tokens=base_tokens, control_tokens=control_tokens, control=summand)
        layout = self.control.prompt_layout(words.moment, condition.shape[1], given)
        residuals = self.control(self.control.join(control_tokens, rows[:, given:], given), layout)
        old, new = zip(*(residual.tensor_split([base_tokens.shape[1]], dim=1) for residual in residuals), strict=True)
        base = self.base.read(base_tokens, self.base.prompt_layout(words.moment, given, given), old)
        return WindowCache(prompt, known, base, new)

    def denoise(self, x: Tensor, time: Tensor | Moment, cache: WindowCache) -> Tensor:
        """The prediction for a window's new frames.

        Args:
            x: [B or 1, T, C, H, W] noisy; one row stands for all.
            time: [B], as for `predict`. A `Moment` that is kept for the next window spares making its modulations.
            cache: of `read`, the same at every step.

        Returns:
            [B, T, C, H, W].
        """
        base, frames = self._new_tokens(x, cache)
        hidden, layout = self._run(base, x, time, cache)
        return self.base.output(hidden, layout, frames)

    def denoise_reusing(
        self, x: Tensor, moment: Moment, cache: WindowCache, change: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `denoise`, and what the layers add to the new frames' tokens, for another step to take.

        Args:
            change: [B, N, D] of another step, in whose place the layers are not run: an approximation
                (`engine.perceptual.reuse`); None runs them.

        Returns:
            [B, T, C, H, W], and the change [B, N, D] that was made or given.
        """
        base, frames = self._new_tokens(x, cache)
        if change is None:
            hidden, layout = self._run(base, x, moment, cache)
            change = hidden[:, -base.shape[1] :] - base
        else:
            hidden, layout = base + change, self._layout(moment, cache, x.shape[1])
        return self.base.output(hidden, layout, frames), change

    def _summand(self, condition: Tensor) -> Tensor:
        """Of a condition [B, T, C + E, H, W], what the control branch adds to the latents, [B, T, C, H, W]."""
        return condition[:, :, : self.config.dit.channels]

    def _run(self, base: Tensor, x: Tensor, time: Tensor | Moment, cache: WindowCache) -> tuple[Tensor, Layout]:
        """The layers' answer [B, N, D], whose last tokens are those of the new frames `x`, and its layout.

        `base` [B, N, D] are the base network's tokens of these frames.
        """
        count = x.shape[1]
        if cache.base_tokens is None or cache.control_tokens is None or cache.control is None:
            layout = self._layout(time, cache, count)
            return self.base(base, layout, cache.residuals, cache.base), layout
        patches = patches_of(x, self.config.dit.patch)
        control = (self.control.embed_patches(patches, cache.frames) + cache.control).expand_as(base)
        whole = torch.cat([cache.base_tokens, base], dim=1), torch.cat([cache.control_tokens, control], dim=1)
        return self._attended(*whole, time, cache.frames, cache.frames + count)

    def _layout(self, time: Tensor | Moment, cache: WindowCache, count: int) -> Layout:
        """Of the base network's tokens at a step."""
        if cache.base_tokens is None:
            return self.base.new_layout(time, count)
        return self.base.layout(time, cache.frames + count, cache.frames)

    def _new_tokens(self, x: Tensor, cache: WindowCache) -> tuple[Tensor, Frames]:
        """Tokens [B, N, D] of noisy frames in the base network, and what the head sees."""
        base = self.base.embed_frames(x, cache.frames).expand(cache.rows, -1, -1)
        frames = Frames(x.expand(cache.rows, -1, -1, -1, -1), cache.known, _last(cache.prompt))
        return base, frames

    def _attended(
        self, base: Tensor, control: Tensor, time: Tensor | Moment, prompt_frames: int, count: int
    ) -> tuple[Tensor, Layout]:
        """The layers' answer under full attention for the tokens [B, N, D] of text and all `count` frames."""
        residuals = self.control(control, self.control.layout(time, count, prompt_frames))
        layout = self.base.layout(time, count, prompt_frames)
        return self.base(base, layout, residuals), layout


def given_moment(like: Tensor) -> Moment:
    """The moment of everything that is given, for as many rows as `like` has."""
    return Moment(torch.full((len(like),), PROMPT_TIME, device=like.device))


def _last(frames: Tensor) -> Tensor | None:
    return frames[:, -1] if frames.shape[1] else None
