"""Planning without end: GOPs of semantic tokens, written token by token, each GOP with the last few as context.

Frames are semantic frames, numbered since the video began. Every call of the planner has a shape that depends on the
place in the plan only, and its noise too, so a plan does not depend on when it was made.
Shapes: `L` text tokens, `K` text width, `N` tokens of a GOP, `D` feature channels, `h` x `w` feature grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.live.noise import uniform
from engine.loading.model import Model
from engine.runtime.cuda_streams import upload
from engine.runtime.graphs import Graphs
from engine.runtime.kv_cache import KVCache
from engine.semantic.planner import Prefix
from engine.semantic.sampling import SamplingConfig, gumbel, sample_token
from engine.semantic.tokenizer import FeatureFrames


@dataclass(slots=True)
class GOP:
    """An I frame and the P frames after it."""

    start: int  # number of the first frame
    tokens: Tensor  # [1, N] int64 of a full GOP; the first `count` are decided
    count: int = 0
    closed: bool = False  # full, or cut short: the next GOP begins behind it
    changed: bool = False  # whether it is the first under another text


@dataclass(slots=True)
class Plan:
    """The tokens of one channel; constant in size but for the GOPs, of which `PlanWriter.drop` keeps few."""

    seed: int
    prefix: Prefix  # of the prompt that the last GOP is written under
    gops: list[GOP]  # oldest first; all but the last are closed
    cache: KVCache  # of the last GOP and its context
    position: int = 0  # of the next token in the cache
    noise: Tensor | None = None  # [tokens, codebook size] of the frame being written


class PlanWriter:
    """Writes plans with the planner, and decodes them with the tokenizer."""

    def __init__(self, model: Model, sampling: SamplingConfig, graphs: Graphs) -> None:
        self._model = model
        self._sampling = sampling
        self._graphs = graphs
        self._rows = 1 + sampling.guided
        self._offsets = model.config.tokenizer.offsets
        longest = model.config.planner.max_len(model.config.text.planner_tokens)
        self._positions = torch.arange(longest, device=model.device)
        # What a captured token reads must be there before.
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
        return Plan(seed, self._prefix(text), [self._gop(frame)], cache)

    def end(self, plan: Plan) -> int:
        """Number of the first frame that is not wholly decided."""
        return plan.gops[-1].start + self._frames(plan.gops[-1])

    def begun(self, plan: Plan, frame: int) -> bool:
        """Whether a token of `frame`, where a GOP begins, is decided."""
        last = plan.gops[-1]
        return last.start > frame or last.count > 0

    def write(self, plan: Plan) -> None:
        """Decides the next token."""
        if plan.gops[-1].closed:
            plan.gops.append(self._gop(self.end(plan)))
        gop = plan.gops[-1]
        frame = self._frames(gop)
        place = gop.count - self._offsets[frame]
        if place == 0:
            shape = (self._offsets[frame + 1] - gop.count, self._model.config.planner.codebook_size)
            noise = gumbel(uniform(shape, plan.seed, "plan", gop.start + frame))
            plan.noise = upload(noise, self._model.device)
        assert plan.noise is not None, "a frame's first token draws its noise"
        if place:
            gop.tokens[:, gop.count] = self._next(plan, gop, plan.noise[place])
            plan.position += 1
        else:
            start = self._frame_start(plan, gop, frame)
            logits = self._model.planner(start, plan.cache, plan.position)[:, -1]
            plan.position += start.shape[1]
            gop.tokens[:, gop.count] = sample_token(logits, plan.noise[0], self._sampling)
        gop.count += 1
        gop.closed = gop.count == self._offsets[-1]

    def _next(self, plan: Plan, gop: GOP, noise: Tensor) -> Tensor:
        """The token [1] after the last one of the same frame."""
        last = gop.tokens[:, gop.count - 1 : gop.count]
        # On the device, so that one graph serves all positions.
        position = self._positions[plan.position : plan.position + 1]
        return self._graphs.call("token", self._token, (last, position, noise), (plan.prefix.pooled,), state=plan.cache)

    def _token(self, changing: tuple[Tensor, Tensor, Tensor], lasting: tuple[Tensor | None], cache: KVCache) -> Tensor:
        (token, position, noise), (pooled,) = changing, lasting
        with self._model.computing():
            embedded = self._model.planner.embed(token.expand(self._rows, -1), pooled)
            logits = self._model.planner(embedded, cache, position)[:, -1]
            return sample_token(logits, noise, self._sampling)

    def cut(self, plan: Plan, frame: int, text: Tensor) -> None:
        """Forgets everything from `frame` on; there a new GOP begins, for the text [1, L, K].

        What comes before `frame` must be decided.
        """
        plan.gops = [gop for gop in plan.gops if gop.start < frame]
        if plan.gops:
            assert self.end(plan) >= frame, f"frames up to {frame} must be planned"
            last = plan.gops[-1]
            last.count, last.closed = self._offsets[frame - last.start], True
        plan.gops.append(self._gop(frame))
        plan.gops[-1].changed = True
        plan.prefix = self._prefix(text)

    def drop(self, plan: Plan, frame: int) -> None:
        """Drops GOPs that neither frames from `frame` on nor their context can need."""
        # At least the last one: its own frames go on behind `frame`, or a cut there closes it.
        context = max(self._model.config.planner.context_gops, 1)
        before = [gop for gop in plan.gops if gop.start < frame]
        plan.gops = before[-context:] + plan.gops[len(before) :]

    def features(self, plan: Plan, start: int, end: int) -> FeatureFrames:
        """Features of frames `start` to `end` - 1, which must be decided: [1, end - start, D, h, w] float32."""
        parts = []
        for gop in plan.gops:
            # Not `count`: how far an open GOP reaches depends on time, and the shape would decide the last bits.
            frames = min(end - gop.start, self._frames(gop)) if gop.closed else end - gop.start
            if frames > 0 and gop.start + frames > start:
                decoded = self._model.tokenizer.decode(gop.tokens[:, : self._offsets[frames]])
                parts.append(decoded[:, max(start - gop.start, 0) :].float())
        return FeatureFrames(torch.cat(parts, dim=1), start)

    def _frame_start(self, plan: Plan, gop: GOP, frame: int) -> Tensor:
        """Embeddings [rows, N, W] of everything since the last token that was decided, and that token."""
        config, planner = self._model.config.planner, self._model.planner
        if gop.count == 0:
            plan.position = 0
            sequence = self._tokens([*self._context(plan), torch.tensor([[config.iframe_start]])])
            return torch.cat([plan.prefix.embeddings, planner.embed(sequence, plan.prefix.pooled)], dim=1)
        last = gop.tokens[:, gop.count - 1 : gop.count]
        end = config.iframe_end if frame == 1 else config.pframe_end
        return planner.embed(self._tokens([last, torch.tensor([[end, config.pframe_start]])]), plan.prefix.pooled)

    def _context(self, plan: Plan) -> list[Tensor]:
        """Tokens [1, N] of the GOPs before the last, special ones put in.

        Under another text the last frame of a whole GOP is left out: planners go on from whole GOPs and begin anew
        behind GOPs that are cut (`engine.training.build.planner`).
        """
        config = self._model.config.planner
        parts = []
        for gop in plan.gops[:-1][-config.context_gops :] if config.context_gops else []:
            left_out = int(plan.gops[-1].changed and gop is plan.gops[-2])
            frames = min(self._frames(gop), config.gop_frames - left_out)
            layout = config.layout(frames)
            device = self._model.device
            sequence = upload(torch.tensor([[0 if entry is None else entry for entry in layout]]), device)
            places = upload(torch.tensor([place for place, entry in enumerate(layout) if entry is None]), device)
            sequence[:, places] = gop.tokens[:, : self._offsets[frames]]
            parts.append(sequence)
        return parts

    def _tokens(self, parts: list[Tensor]) -> Tensor:
        """Int64 [rows, N] on the device."""
        return torch.cat([upload(part, self._model.device) for part in parts], dim=1).expand(self._rows, -1)

    def _frames(self, gop: GOP) -> int:
        """Frames of the GOP that are wholly decided."""
        config = self._model.config.tokenizer
        return 0 if gop.count < config.i_tokens else 1 + (gop.count - config.i_tokens) // config.p_tokens

    def _gop(self, start: int) -> GOP:
        shape = (1, self._model.config.tokenizer.gop_tokens)
        return GOP(start, torch.zeros(shape, dtype=torch.int64, device=self._model.device))

    def _prefix(self, text: Tensor) -> Prefix:
        config = self._model.config
        frames = None if config.plan_frames is None else float(config.plan_frames)
        hidden = torch.arange(self._rows, device=text.device) > 0
        return self._model.planner.prefix(text.expand(self._rows, -1, -1), frames, config.motion_score, hidden)
