"""New prompts, seeds and plans for channels: from the next chunk on, or at once, with what was not shown made anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from engine.live.channel_state import Place
from engine.live.controller import Cut, choose_cut
from engine.live.generator import Generator
from engine.live.live_channel import LiveChannel
from engine.wire.kept_state import PLAN, Promise
from engine.wire.messages import (
    DiscardPlan,
    FramesDropped,
    FromEngine,
    PlanDiscarded,
    PromptReplaced,
    PromptSet,
    Refused,
    SetPrompt,
)
from engine.wire.prompt import check_prompt
from engine.wire.settings import SEED_LIMIT

MODES = ("flow", "cut")


class Changes:
    """Takes changes for channels and answers each with the first frame under it."""

    def __init__(self, generator: Generator, send: Callable[[FromEngine], None]) -> None:
        self._generator, self._send = generator, send
        self._fps = generator.model.config.fps

    def take(self, channel: LiveChannel | None, request: SetPrompt) -> None:
        """Answers a request, at once or, where a cut has to wait, in `frames_delivered` or `chunk_done`."""
        reason = f"there is no channel {request.channel!r}" if channel is None else _obstacle(request)
        if channel is None or reason is not None:
            self._send(Refused(request.request, request.channel, reason or ""))
            return
        self._cut_at_last(channel)
        request = replace(request, prompt=check_prompt(request.prompt))
        if request.mode == "flow":
            self._flow(channel, request)
        else:
            channel.cutting = request
            self.frames_delivered(channel)

    def go_on(self, channel: LiveChannel, began: bool) -> None:
        """Answers, as an engine process before did, changes that are still to come; they come true as they would have.

        To be called before the chunk begins that was being made, and when it has begun.
        """
        for promise in channel.keeper.promises:
            later = promise.mode == "flow" and promise.latent > channel.state.next.latent
            if (later or promise.mode == PLAN) != began:
                continue
            if promise.mode == PLAN:
                self._replan_again(channel, promise)
                continue
            request = SetPrompt(promise.request, channel.name, promise.prompt, promise.mode, promise.seed)
            if promise.mode == "cut":
                channel.cutting = request
                self._cut(channel, Cut(promise.frame, channel.least_steps))
                continue
            self._answer(channel, request, promise.frame)
            if promise.latent > channel.next.latent:
                channel.waiting = request
            else:
                self._apply(channel, request)

    def discard(self, channel: LiveChannel | None, request: DiscardPlan) -> None:
        """Plans anew what comes from a frame on; what is rendered of it is cut, and answered when that can be."""
        if channel is None:
            self._send(Refused(request.request, request.channel, f"there is no channel {request.channel!r}"))
            return
        self._cut_at_last(channel)
        if request.seed is None:
            request = replace(request, seed=(channel.state.plan.gops[-1].seed + 1) % SEED_LIMIT)
        if reason := self._keeps(channel, request.frame):
            self._send(Refused(request.request, request.channel, reason))
        elif request.frame < max(channel.next.frame, channel.delivered):
            channel.cutting = request
            self.frames_delivered(channel)
        else:
            self._replan(channel, request)

    def _keeps(self, channel: LiveChannel, frame: int) -> str | None:
        """Why what comes from a frame on cannot be dropped, for the person who asked."""
        generator, state = self._generator, channel.state
        if frame < channel.shown:
            return f"frame {frame} was on air; frame {channel.shown + 1} is the first that can still be dropped"
        end = max(generator.frame_of(state, generator.planned(state)), channel.next.frame)
        if frame >= end:
            return f"frame {frame} is not planned yet; the plan ends before frame {end}"
        later = generator.after(state, channel.next).frame
        if channel.replanned and channel.next.frame <= frame < later:
            begin = channel.next.frame
            return f"frames {begin} to {later - 1} are being planned anew already; try again in a moment"
        if channel.waiting is not None and frame >= later:
            return f"with frame {later} a new prompt begins, under which it is planned anew"
        return None

    def _replan(self, channel: LiveChannel, request: DiscardPlan) -> None:
        """Drops a plan that no chunk has begun to read."""
        generator, state, seed = self._generator, channel.state, _seed(request)
        latent = max(generator.latent_of(state, request.frame), channel.next.latent)
        generator.replan(state, latent, seed)
        channel.replanned |= latent < generator.after(state, channel.next).latent
        frame = max(generator.frame_of(state, latent), channel.next.frame, channel.wanted_from)
        newest = state.prompt
        if channel.waiting is not None:
            channel.waiting = replace(channel.waiting, seed=seed)
            newest = channel.waiting.prompt
        channel.keeper.replanned(Promise(request.request, newest, seed, PLAN, latent, frame))
        self._tell_discarded(channel, request, newest, frame)

    def _replan_again(self, channel: LiveChannel, promise: Promise) -> None:
        """As an engine process before did."""
        generator, state, seed = self._generator, channel.state, promise.seed
        assert seed is not None, "a plan that was dropped has one"
        while generator.planned(state) < promise.latent:
            generator.plan(state)
        generator.replan(state, promise.latent, seed)
        request = DiscardPlan(promise.request, channel.name, promise.frame, seed)
        self._tell_discarded(channel, request, promise.prompt, promise.frame)

    def chunk_began(self, channel: LiveChannel) -> None:
        """The first unit of a chunk is done, which reads the text: the prompt that waited for that comes now."""
        if channel.waiting is not None and channel.planned_under is None:
            self._apply(channel, channel.waiting)
            channel.waiting = None

    def frames_delivered(self, channel: LiveChannel) -> None:
        """There are more frames: a cut that waits for them may be possible."""
        if channel.cutting is None:
            return
        first = channel.cutting.frame if isinstance(channel.cutting, DiscardPlan) else 0
        if first > channel.delivered:
            return
        if channel.paused:
            # One frame may go on air before the server hears of it.
            cut: Cut | None = Cut(min(channel.shown + 1, channel.delivered), channel.state.steps)
        else:
            on_air_s = min(time.monotonic() - channel.shown_s, 1 / self._fps)
            times = channel.shown, channel.delivered, on_air_s, self._fps
            cut = choose_cut(*times, channel.costs(), channel.least_steps, channel.state.steps)
        if cut is not None:
            self._cut(channel, Cut(max(first, cut.frame), cut.steps))

    def chunk_done(self, channel: LiveChannel) -> None:
        """More frames do not come soon: a cut that still waits is made behind those that are there."""
        self._cut_at_last(channel)

    def _cut_at_last(self, channel: LiveChannel) -> None:
        cutting = channel.cutting
        if isinstance(cutting, DiscardPlan) and cutting.frame > channel.delivered:
            channel.cutting = None
            reason = f"another change came before frame {cutting.frame} was rendered; try again"
            self._send(Refused(cutting.request, cutting.channel, reason))
        elif cutting is not None:
            self._cut(channel, Cut(channel.delivered, channel.least_steps))

    def _flow(self, channel: LiveChannel, request: SetPrompt) -> None:
        """Takes a prompt for the next chunk, or for the one after it if the next one's is being planned.

        So each chunk is planned under one prompt, however fast they come: the newest one that waits counts.
        """
        first = channel.next
        earlier = channel.planned_under
        if earlier is None or not self._generator.begun(channel.state, first):
            self._apply(channel, request)
        else:
            earlier, channel.waiting = channel.waiting, request
            first = self._generator.after(channel.state, first)
        frame = max(first.frame, channel.wanted_from)
        channel.keeper.promised(request, first, frame)
        self._answer(channel, request, frame)
        self._replace(earlier, request)

    def _cut(self, channel: LiveChannel, cut: Cut) -> None:
        request, channel.cutting = channel.cutting, None
        assert request is not None, "a cut was asked for"
        change = self._cut_for(channel, request) if isinstance(request, DiscardPlan) else request
        channel.keeper.promised(change, Place(), cut.frame)
        # Before the answer: the frames that are dropped must not go on air.
        if cut.frame < channel.delivered:
            self._send(FramesDropped(channel.name, cut.frame))
        if isinstance(request, DiscardPlan):
            self._tell_discarded(channel, request, change.prompt, cut.frame)
        else:
            self._answer(channel, request, cut.frame)
        for earlier in (channel.planned_under, channel.waiting):
            self._replace(earlier, change)
        channel.abandon_chunk()
        channel.delivered = channel.wanted_from = channel.new_from = cut.frame
        channel.waiting, channel.next_steps = None, cut.steps
        self._generator.rewind(channel.state, cut.frame)
        self._apply(channel, change)
        channel.keeper.advanced(channel.state, cut.frame)

    def _cut_for(self, channel: LiveChannel, request: DiscardPlan) -> SetPrompt:
        """The change that drops what is rendered: to the newest prompt, which may be one that waits."""
        newest = channel.waiting or channel.planned_under
        if newest is None:
            newest = SetPrompt(request.request, channel.name, channel.state.prompt, "cut")
        return replace(newest, mode="cut", seed=request.seed)

    def _tell_discarded(self, channel: LiveChannel, request: DiscardPlan, prompt: str, frame: int) -> None:
        seed = _seed(request)
        understood = self._generator.model.text.understood(prompt, seed)
        self._send(PlanDiscarded(request.request, channel.name, frame, seed, understood))

    def _apply(self, channel: LiveChannel, request: SetPrompt) -> None:
        self._generator.change(channel.state, request.prompt, channel.next, request.seed)
        channel.planned_under = request

    def _answer(self, channel: LiveChannel, request: SetPrompt, frame: int) -> None:
        text, seed = self._generator.model.text, request.seed
        if seed is None:
            seed = channel.state.plan.gops[-1].seed
        told = text.unread(request.prompt), text.understood(request.prompt, seed)
        self._send(PromptSet(request.request, request.channel, request.prompt, frame, *told))

    def _replace(self, earlier: SetPrompt | None, request: SetPrompt) -> None:
        if earlier is not None and earlier.request != request.request:
            self._send(PromptReplaced(earlier.request, earlier.channel, request.prompt))


def _seed(request: DiscardPlan) -> int:
    assert request.seed is not None, "one was chosen"
    return request.seed


def _obstacle(request: SetPrompt) -> str | None:
    """Why a prompt cannot be taken, for the person who asked."""
    if request.mode not in MODES:
        return f"mode {request.mode!r} is not known; {' and '.join(map(repr, MODES))} are"
    try:
        check_prompt(request.prompt)
    except ValueError as error:
        return str(error)
    return None
