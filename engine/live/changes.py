"""New prompts and seeds for channels: from the next chunk on, or at once, with what was not shown yet made anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from engine.live.channel_state import Place
from engine.live.controller import Cut, choose_cut
from engine.live.generator import Generator
from engine.live.live_channel import LiveChannel
from engine.wire.messages import FramesDropped, FromEngine, PromptReplaced, PromptSet, Refused, SetPrompt
from engine.wire.prompt import check_prompt

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
            if later != began:
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

    def chunk_began(self, channel: LiveChannel) -> None:
        """The first unit of a chunk is done, which reads the text: the prompt that waited for that comes now."""
        if channel.waiting is not None and channel.planned_under is None:
            self._apply(channel, channel.waiting)
            channel.waiting = None

    def frames_delivered(self, channel: LiveChannel) -> None:
        """There are more frames: a cut that waits for them may be possible."""
        if channel.cutting is None:
            return
        if channel.paused:
            # One frame may go on air before the server hears of it.
            cut: Cut | None = Cut(min(channel.shown + 1, channel.delivered), channel.state.steps)
        else:
            on_air_s = min(time.monotonic() - channel.shown_s, 1 / self._fps)
            times = channel.shown, channel.delivered, on_air_s, self._fps
            cut = choose_cut(*times, channel.costs(), channel.least_steps, channel.state.steps)
        if cut is not None:
            self._cut(channel, cut)

    def chunk_done(self, channel: LiveChannel) -> None:
        """More frames do not come soon: a cut that still waits is made behind those that are there."""
        self._cut_at_last(channel)

    def _cut_at_last(self, channel: LiveChannel) -> None:
        if channel.cutting is not None:
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
        channel.keeper.promised(request, Place(), cut.frame)
        # Before the answer: the frames that are dropped must not go on air.
        if cut.frame < channel.delivered:
            self._send(FramesDropped(channel.name, cut.frame))
        self._answer(channel, request, cut.frame)
        for earlier in (channel.planned_under, channel.waiting):
            self._replace(earlier, request)
        channel.abandon_chunk()
        channel.delivered = channel.wanted_from = channel.new_from = cut.frame
        channel.waiting, channel.next_steps = None, cut.steps
        self._generator.rewind(channel.state, cut.frame)
        self._apply(channel, request)
        channel.keeper.advanced(channel.state, cut.frame)

    def _apply(self, channel: LiveChannel, request: SetPrompt) -> None:
        self._generator.change(channel.state, request.prompt, channel.next, request.seed)
        channel.planned_under = request

    def _answer(self, channel: LiveChannel, request: SetPrompt, frame: int) -> None:
        text, seed = self._generator.model.text, channel.state.seed if request.seed is None else request.seed
        told = text.unread(request.prompt), text.understood(request.prompt, seed)
        self._send(PromptSet(request.request, request.channel, request.prompt, frame, *told))

    def _replace(self, earlier: SetPrompt | None, request: SetPrompt) -> None:
        if earlier is not None:
            self._send(PromptReplaced(earlier.request, earlier.channel, request.prompt))


def _obstacle(request: SetPrompt) -> str | None:
    """Why a prompt cannot be taken, for the person who asked."""
    if request.mode not in MODES:
        return f"mode {request.mode!r} is not known; {' and '.join(map(repr, MODES))} are"
    try:
        check_prompt(request.prompt)
    except ValueError as error:
        return str(error)
    return None
