"""Planning without end: groups of semantic tokens, written one code at a time, each under the last few as context.

Frames are semantic frames, numbered since the video began. Every call of the planner has a shape that depends on the
place in the plan only, and its noise too, so a plan does not depend on when it was made.
Shapes: `L` text tokens, `K` text width, `N` codes of a group, `D` feature channels, `h` x `w` feature grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.live.noise import uniform
from engine.loading.model import Model
from engine.runtime.cuda_streams import upload
from engine.runtime.graphs import Graphs
from engine.runtime.kv_cache import KVCache
from engine.semantic.planner import Prefix
from engine.semantic.sampling import SamplingConfig, gumbel, sample_code
from engine.wire.frames import FeatureFrames


@dataclass(slots=True)
class Group:
    """An I frame and the P frames after it."""

    start: int  # number of the first frame
    codes: Tensor  # [1, N] int64 of a full group; the first `count` are decided
    count: int = 0
    closed: bool = False  # full, or cut short: the next group begins behind it
    changed: bool = False  # whether it is the first under another text


@dataclass(slots=True)
class Plan:
    """What one channel has decided; constant in size but for the groups, of which `PlanWriter.drop` keeps few."""

    seed: int
    prefix: Prefix  # of the prompt that the last group is written under
    groups: list[Group]  # oldest first; all but the last are closed
    cache: KVCache  # of the last group and its context
    position: int = 0  # of the next token in the cache
    noise: Tensor | None = None  # [tokens, codes] of the frame being written


class PlanWriter:
    """The planner and the tokenizer's decoder, at work on plans."""

    def __init__(self, model: Model, sampling: SamplingConfig, graphs: Graphs) -> None:
        self._model = model
        self._sampling = sampling
        self._graphs = graphs
        self._rows = 1 + sampling.guided
        self._offsets = model.config.tokenizer.offsets
        longest = model.config.planner.max_len(model.config.text.planner_tokens)
        self._positions = torch.arange(longest, device=model.device)
        # What a captured code reads must be there before.
        model.planner.prepare(longest, model.device)

    def begin(self, text: Tensor, seed: int, frame: int) -> Plan:
        """An empty plan for the text [1, L, K] whose first frame has the number `frame`; later texts may be longer."""
        config, model = self._model.config.planner, self._model
        cache = KVCache.allocate(
            config.layers,
            self._rows,
            config.heads,
            config.max_len(model.config.text.planner_tokens),
            config.head_dim,
            model.device,
            model.dtype,
        )
        return Plan(seed, self._prefix(text), [self._group(frame)], cache)

    def end(self, plan: Plan) -> int:
        """Number of the first frame that is not wholly decided."""
        return plan.groups[-1].start + self._frames(plan.groups[-1])

    def write(self, plan: Plan) -> None:
        """Decides the next code."""
        if plan.groups[-1].closed:
            plan.groups.append(self._group(self.end(plan)))
        group = plan.groups[-1]
        frame = self._frames(group)
        place = group.count - self._offsets[frame]
        if place == 0:
            shape = (self._offsets[frame + 1] - group.count, self._model.config.planner.codebook_size)
            noise = gumbel(uniform(shape, plan.seed, "plan", group.start + frame))
            plan.noise = upload(noise, self._model.device)
        assert plan.noise is not None, "a frame's first code draws its noise"
        # With the position on the device the same code runs captured and not.
        if place and (self._graphs.captures or self._model.device.type == "cuda"):
            group.codes[:, group.count] = self._next(plan, group, plan.noise[place])
            plan.position += 1
        else:
            step = self._step(plan, group, frame, place)
            logits = self._model.planner(step, plan.cache, plan.position)[:, -1]
            plan.position += step.shape[1]
            group.codes[:, group.count] = sample_code(logits, plan.noise[place], self._sampling)
        group.count += 1
        group.closed = group.count == self._offsets[-1]

    def _next(self, plan: Plan, group: Group, noise: Tensor) -> Tensor:
        """The code [1] after another one, by a graph that belongs to the plan's cache or by a tape for all of them."""

        def step(changing: tuple[Tensor, Tensor, Tensor], pooled: Tensor | None, cache: KVCache) -> Tensor:
            token, position, noise = changing
            with self._model.computing():
                embedded = self._model.planner.embed(token.expand(self._rows, -1), pooled)
                logits = self._model.planner(embedded, cache, position)[:, -1]
                return sample_code(logits, noise, self._sampling)

        last = group.codes[:, group.count - 1 : group.count]
        changing = last, self._positions[plan.position : plan.position + 1], noise
        if self._graphs.tapes:
            lasting = plan.prefix.pooled, plan.cache
            return self._graphs.call("code", lambda changing, lasting: step(changing, *lasting), changing, lasting)
        # A graph copies its inputs, and the cache is written in place.
        captured = partial(step, cache=plan.cache)
        return self._graphs.call(("code", id(plan.cache)), captured, changing, plan.prefix.pooled)

    def cut(self, plan: Plan, frame: int, text: Tensor) -> None:
        """Forgets everything from `frame` on; there a new group begins, for the text [1, L, K].

        What comes before `frame` must be decided.
        """
        plan.groups = [group for group in plan.groups if group.start < frame]
        if plan.groups:
            assert self.end(plan) >= frame, f"frames up to {frame} must be planned"
            last = plan.groups[-1]
            last.count, last.closed = self._offsets[frame - last.start], True
        plan.groups.append(self._group(frame))
        plan.groups[-1].changed = True
        plan.prefix = self._prefix(text)

    def drop(self, plan: Plan, frame: int) -> None:
        """Drops groups that neither frames from `frame` on nor their context can need."""
        # At least the last one: its own frames go on behind `frame`, or a cut there closes it.
        context = max(self._model.config.planner.context_groups, 1)
        before = [group for group in plan.groups if group.start < frame]
        plan.groups = before[-context:] + plan.groups[len(before) :]

    def features(self, plan: Plan, start: int, end: int) -> FeatureFrames:
        """Features of frames `start` to `end` - 1, which must be decided: [1, end - start, D, h, w] float32."""
        parts = []
        for group in plan.groups:
            # Not `count`: how far an open group reaches depends on time, and the shape would decide the last bits.
            frames = min(end - group.start, self._frames(group)) if group.closed else end - group.start
            if frames > 0 and group.start + frames > start:
                decoded = self._model.tokenizer.decode(group.codes[:, : self._offsets[frames]])
                parts.append(decoded[:, max(start - group.start, 0) :].float())
        return FeatureFrames(torch.cat(parts, dim=1), start)

    def _step(self, plan: Plan, group: Group, frame: int, place: int) -> Tensor:
        """Embeddings [rows, N, W] of everything since the last code that was decided, and that code."""
        config, planner = self._model.config.planner, self._model.planner
        if group.count == 0:
            plan.position = 0
            tokens = self._tokens([*self._context(plan), torch.tensor([[config.iframe_start]])])
            return torch.cat([plan.prefix.embeddings, planner.embed(tokens, plan.prefix.pooled)], dim=1)
        last = group.codes[:, group.count - 1 : group.count]
        if place == 0:
            end = config.iframe_end if frame == 1 else config.pframe_end
            return planner.embed(self._tokens([last, torch.tensor([[end, config.pframe_start]])]), plan.prefix.pooled)
        return planner.embed(self._tokens([last]), plan.prefix.pooled)

    def _context(self, plan: Plan) -> list[Tensor]:
        """Tokens [1, N] of the groups before the last, special ones put in.

        Under another text the last frame of a whole group is left out: planners go on from whole groups and begin anew
        behind groups that are cut (`engine.training.build.planner`).
        """
        config = self._model.config.planner
        parts = []
        for group in plan.groups[:-1][-config.context_groups :] if config.context_groups else []:
            left_out = int(plan.groups[-1].changed and group is plan.groups[-2])
            frames = min(self._frames(group), config.group_frames - left_out)
            layout = config.layout(frames)
            device = self._model.device
            tokens = upload(torch.tensor([[0 if token is None else token for token in layout]]), device)
            places = upload(torch.tensor([place for place, token in enumerate(layout) if token is None]), device)
            tokens[:, places] = group.codes[:, : self._offsets[frames]]
            parts.append(tokens)
        return parts

    def _tokens(self, parts: list[Tensor]) -> Tensor:
        """Int64 [rows, N] on the device."""
        return torch.cat([upload(part, self._model.device) for part in parts], dim=1).expand(self._rows, -1)

    def _frames(self, group: Group) -> int:
        """Frames of the group that are wholly decided."""
        config = self._model.config.tokenizer
        return 0 if group.count < config.i_tokens else 1 + (group.count - config.i_tokens) // config.p_tokens

    def _group(self, start: int) -> Group:
        shape = (1, self._model.config.tokenizer.group_tokens)
        return Group(start, torch.zeros(shape, dtype=torch.int64, device=self._model.device))

    def _prefix(self, text: Tensor) -> Prefix:
        config = self._model.config
        frames = None if config.plan_frames is None else float(config.plan_frames)
        hidden = torch.arange(self._rows, device=text.device) > 0
        return self._model.planner.prefix(text.expand(self._rows, -1, -1), frames, config.motion_score, hidden)
