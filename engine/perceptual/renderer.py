"""Noisy latents, condition and text -> the network's prediction: base network, control branch and condition.

Shapes: `B` batch, `T` latent frames, `P` of them context, `C` latent channels, `H` x `W` latent size,
`L` text tokens, `K` text width, `D` feature width, `h` x `w` the semantic grid,
`E` channels of details (published: none).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.perceptual.block import TokenLayout
from engine.perceptual.control import ControlBranch
from engine.perceptual.dit import CONTEXT_TIME, DiT, DiTConfig, patches_of
from engine.perceptual.head import HeadCache, HeadInputs
from engine.perceptual.sharing import Sharing, alone
from engine.perceptual.timesteps import Timestep
from engine.perceptual.upsampler import Condition, ConditionConfig
from engine.runtime.kv_cache import KeysValues
from engine.runtime.pytree import leaves, unflatten


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
class TextTokens:
    """A text as both networks read it, made once per prompt of the video."""

    control: Tensor  # [B, L, D] tokens of the control branch
    base: Tensor  # [B, L, D] tokens of the base network


@dataclass(frozen=True, slots=True)
class WindowCache:
    """The part of a window that stays the same over its denoising steps; owned by whoever made it.

    Of text and context frames a half-causal model keeps the keys and values of each layer, others their tokens. Its
    control branch reads the new frames' condition alone, once; elsewhere that branch sees noisy frames too, with the
    condition as a summand.
    """

    context: Tensor  # [B, P, C, H, W] latents
    head: HeadCache | None
    base: tuple[KeysValues, ...] = ()  # half-causal
    residuals: tuple[Tensor, ...] = ()  # half-causal: [B, N, D] of each control layer, of the new frames' share
    base_tokens: Tensor | None = None  # [B, M, D] of text and context frames
    control_tokens: Tensor | None = None  # [B, M, D] likewise
    control: Tensor | None = None  # [B or 1, N, D] summand of the control branch's tokens of the new frames

    @property
    def rows(self) -> int:
        return self.context.shape[0]

    def conditional_rows(self) -> WindowCache:
        """The text-conditioned half of the CFG batch, for steps with guidance 1: the last row."""
        return unflatten(self, (leaf[-1:] for leaf in leaves(self)))


class DiTRenderer(nn.Module):
    """`condition(features)` [B, T, D, h, w] -> [B, T, C + E, H, W] and `open_window` once, then `denoise` each step."""

    local = True

    def __init__(self, config: RendererConfig) -> None:
        super().__init__()
        self.config = config
        self.share: Sharing = alone  # what this process computes of a sequence of tokens
        self.base = DiT(config.dit)
        self.control = ControlBranch(config.dit, config.control_layers)
        self.condition = Condition(config.condition)

    def predict(self, x: Tensor, time: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """The prediction with full attention over text and all frames, none of them context.

        Args:
            x: [B, T, C, H, W].
            time: [B], the step's time, in the unit that `DiTConfig.time_scale` says.
            text: [B, L, K]; all zero for no text.
            condition: [B or 1, T, C + E, H, W].

        Returns:
            [B, T, C, H, W].
        """
        tokens = self.base.embed(text, x), self.control.embed(text, x + self._summand(condition))
        cache = self.base.head.precompute(condition.expand(len(x), -1, -1, -1, -1), None, None)
        return self.base.output(*self._full_attention(*tokens, Timestep(time)), HeadInputs(x, cache, None))

    def read_text(self, text: Tensor) -> TextTokens:
        """The tokens of a text [B, L, K], the same for all windows under it."""
        return TextTokens(self.control.embed_text(text), self.base.embed_text(text))

    def open_window(
        self, context: Tensor, text: TextTokens, condition: Tensor, context_time: Timestep | None = None
    ) -> WindowCache:
        """Computes everything of a window that stays the same over its denoising steps.

        Args:
            context: [B, P, C, H, W] clean latents; P may be 0.
            text: of `read_text`, B rows.
            condition: [B or 1, P + T, C + E, H, W] of the context frames and of the new ones.
            context_time: of `context_timestep`; one that is kept for later windows spares making its modulations.

        Raises:
            ValueError: if the condition is of fewer frames than the context, or of another size.
        """
        frames = context.shape[1]
        size = (self.config.dit.condition_channels, *context.shape[3:])
        if condition.shape[1] < frames or condition.shape[2:] != size:
            raise ValueError(f"context {tuple(context.shape)} and condition {tuple(condition.shape)} do not fit")
        rows = condition.expand(len(context), -1, -1, -1, -1)
        head = self.base.head.precompute(rows[:, frames:], _last(rows[:, :frames]), _last(context))
        condition, rows = self._summand(condition), self._summand(rows)
        base_tokens = self.base.join(text.base, context, 0)
        control_tokens = self.control.join(text.control, context + rows[:, :frames], 0)
        if not self.config.dit.half_causal:
            patches = patches_of(condition[:, frames:], self.config.dit.patch)
            summand = self.control.project_patches(patches)
            return WindowCache(context, head, base_tokens=base_tokens, control_tokens=control_tokens, control=summand)
        time = context_time or context_timestep(context)
        tokens = self.control.join(control_tokens, rows[:, frames:], frames)
        old, new = self._residuals(tokens, base_tokens.shape[1], time, frames)
        share = self.share(base_tokens.shape[1])
        base = self.base.keys_values(share.own(base_tokens), self.base.context_layout(time, frames, share), old)
        return WindowCache(context, head, base, new)

    def denoise(self, x: Tensor, time: Tensor | Timestep, cache: WindowCache) -> Tensor:
        """The prediction for a window's new frames.

        Args:
            x: [B or 1, T, C, H, W] noisy; one row stands for all.
            time: [B], as for `predict`. A `Timestep` that is kept for later windows spares making its modulations.
            cache: of `open_window`, the same at every step.

        Returns:
            [B, T, C, H, W].
        """
        timestep = Timestep(time) if isinstance(time, Tensor) else time
        frames = cache.context.shape[1]
        base = self.base.embed_frames(x, frames).expand(cache.rows, -1, -1)
        inputs = HeadInputs(x.expand(cache.rows, -1, -1, -1, -1), cache.head, _last(cache.context))
        if cache.base_tokens is None or cache.control_tokens is None or cache.control is None:
            share = self.share(base.shape[1])
            layout = self.base.new_layout(timestep, share)
            whole = share.whole(self.base(share.own(base), layout, cache.residuals, cache.base))
            return self.base.output(whole, layout, inputs)
        patches = patches_of(x, self.config.dit.patch)
        control = (self.control.embed_patches(patches, frames) + cache.control).expand_as(base)
        tokens = torch.cat([cache.base_tokens, base], dim=1), torch.cat([cache.control_tokens, control], dim=1)
        return self.base.output(*self._full_attention(*tokens, timestep), inputs)

    def _summand(self, condition: Tensor) -> Tensor:
        """The part of a condition [B, T, C + E, H, W] that the control branch adds to latents, [B, T, C, H, W]."""
        return condition[:, :, : self.config.dit.channels]

    def _full_attention(self, base: Tensor, control: Tensor, timestep: Timestep) -> tuple[Tensor, TokenLayout]:
        """The layers' answer for both networks' tokens [B, N, D] of text and all frames, and its layout."""
        share = self.share(base.shape[1])
        residuals = self.control(share.own(control), self.control.layout(timestep, share))
        layout = self.base.layout(timestep, share)
        return share.whole(self.base(share.own(base), layout, residuals)), layout

    def _residuals(
        self, tokens: Tensor, old: int, time: Timestep, context_frames: int
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The residuals of a half-causal window's `old` first tokens, and those of its new frames.

        Both are of this process's share of a sequence of their own.
        """
        share = self.share(tokens.shape[1])
        made = self.control(share.own(tokens), self.control.context_layout(time, context_frames, share))
        whole = [share.whole(residual) for residual in made]
        before, after = self.share(old), self.share(tokens.shape[1] - old)
        return [before.own(one[:, :old]) for one in whole], tuple(after.own(one[:, old:]) for one in whole)


def context_timestep(like: Tensor) -> Timestep:
    """The time at which half-causal models read text and context frames, for as many rows as `like` has."""
    return Timestep(torch.full((len(like),), CONTEXT_TIME, device=like.device))


def _last(frames: Tensor) -> Tensor | None:
    return frames[:, -1] if frames.shape[1] else None
