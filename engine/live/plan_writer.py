"""Planning without end: GOPs of semantic tokens, several a pass of the planner, each GOP with the last few as context.

Frames are semantic frames, numbered since the video began. Every call of the planner has a shape that depends on the
place in the plan only, and its noise too, so a plan does not depend on when it was made.
Shapes: `L` text tokens, `K` text width, `N` tokens of a GOP, `P` places of a pass, `V` codebook size, `D` feature
channels, `h` x `w` feature grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.live.noise import uniform
from engine.loading.model import Model
from engine.runtime.cuda_streams import upload
from engine.runtime.graphs import Graphs
from engine.runtime.kv_cache import KVCache
from engine.semantic.passes import LONGEST_PASS, GOPPlaces, default_places
from engine.semantic.planner import Prefix
from engine.semantic.sampling import SamplingConfig, gumbel, sample_token
from engine.semantic.tokenizer import FeatureFrames


@dataclass(slots=True)
class GOP:
    """An I frame and the P frames after it."""

    start: int  # number of the first frame
    tokens: Tensor  # [1, N] int64 of a full GOP; the first `count` are decided, the rest are guesses
    seed: int  # of its draws, and of the text that it is written under
    first: int = 0  # position of its START_OF_IFRAME in the cache, once a token is decided
    count: int = 0
    closed: bool = False  # full, or cut short: the next GOP begins behind it
    changed: bool = False  # whether it is the first under another text


@dataclass(frozen=True, slots=True)
class PlanPart:
    """What a chunk reads of a GOP: its tokens from the beginning up to the chunk's last frame in it."""

    start: int  # number of the GOP's first frame
    tokens: Tensor  # [1, n] int64


@dataclass(slots=True)
class Plan:
    """The tokens of one channel; constant in size but for the GOPs, of which `PlanWriter.drop` keeps few."""

    prefix: Prefix  # of the prompt that the last GOP is written under
    gops: list[GOP]  # oldest first; all but the last are closed
    cache: KVCache  # of the last GOP and its context
    position: int = 0  # in the cache, of what stands before the next token
    noise: dict[int, Tensor] = field(default_factory=dict)  # by frame: [its places, V], of those being written


class PlanWriter:
    """Writes plans with the planner, and decodes them with the tokenizer."""

    def __init__(self, model: Model, sampling: SamplingConfig, graphs: Graphs, pass_places: int | None = None) -> None:
        """`pass_places`: P, by default the device's; the plan is the same whatever it is.

        Raises:
            ValueError: caches have no room for so many.
        """
        self._model = model
        self._sampling = sampling
        self._graphs = graphs
        self._rows = 1 + sampling.guided
        self._offsets = model.config.tokenizer.offsets
        self._pass = default_places(model.device) if pass_places is None else pass_places
        if not 1 <= self._pass <= LONGEST_PASS:
            raise ValueError(f"a pass of {self._pass} places is not between 1 and {LONGEST_PASS}")
        self._places = GOPPlaces(model.config.planner, self._pass, model.device)
        self._length = model.config.planner.max_len(model.config.text.planner_tokens) + LONGEST_PASS
        self._positions = torch.arange(self._length, device=model.device)
        # What a captured pass reads must be there before.
        model.planner.prepare(self._length, model.device)

    def begin(self, text: Tensor, seed: int, frame: int, before: Iterable[PlanPart] = ()) -> Plan:
        """An empty plan for the text [1, L, K] whose first frame has the number `frame`; later texts may be longer.

        `before` are GOPs that are decided, which the planner goes on from: then they say where the plan begins.
        """
        config, model = self._model.config.planner, self._model
        cache = KVCache.allocate(
            config.layers,
            self._rows,
            config.heads,
            self._length,
            config.head_dim,
            model.device,
            model.dtype,
        )
        gops = [self._closed(part, seed) for part in before]
        frame = gops[-1].start + self._frames(gops[-1]) if gops else frame
        return Plan(self._prefix(text), [*gops, self._gop(frame, gops[-1] if gops else None, seed)], cache)

    def check(self, plan: Plan, frame: int) -> None:
        """Raises ValueError unless a video whose next frame is `frame` can go on with a plan that was stored."""
        size, codes, last = self._offsets[-1], self._model.config.planner.codebook_size, plan.gops[-1]
        begin = plan.gops[0].start
        for gop in plan.gops:
            tokens = gop.tokens
            if tokens.shape != (1, size) or tokens.dtype != torch.int64 or tokens.min() < 0 or tokens.max() >= codes:
                raise ValueError(f"a GOP has no {size} tokens of {codes}")
            if gop.start != begin or not 0 <= gop.count <= size or not (gop.closed or gop is last):
                raise ValueError(
                    f"a GOP with {gop.count} tokens from frame {gop.start} on does not follow the one before"
                )
            begin += self._frames(gop)
        if not plan.gops[0].start <= frame <= begin:
            raise ValueError(f"frames {plan.gops[0].start} to {begin} are planned, and frame {frame} is the next")
        place, counts = plan.position - last.first, self._places.counts
        begun = 0 < last.count < size and not last.closed
        if plan.position > self._length or (begun and (place not in range(len(counts)) or counts[place] != last.count)):
            raise ValueError(f"position {plan.position} of the planner is not behind {last.count} tokens")
        # Of a GOP that has not begun it is what a cut left, which is forgotten then.
        for number, noise in plan.noise.items() if begun else ():
            starts, place = self._places.starts, number - last.start
            if place not in range(len(starts) - 1) or noise.shape != (starts[place + 1] - starts[place], codes):
                raise ValueError(f"noise of frame {number} has size {list(noise.shape)}")

    def end(self, plan: Plan) -> int:
        """Number of the first frame that is not wholly decided."""
        return plan.gops[-1].start + self._frames(plan.gops[-1])

    def begun(self, plan: Plan, frame: int) -> bool:
        """Whether a token of `frame`, where a GOP begins, is decided."""
        last = plan.gops[-1]
        return last.start > frame or last.count > 0

    def write(self, plan: Plan) -> int:
        """Decides the next tokens and returns their number: at least one, but for a pass over special tokens alone."""
        if plan.gops[-1].closed:
            plan.gops.append(self._gop(self.end(plan), plan.gops[-1], plan.gops[-1].seed))
        gop = plan.gops[-1]
        if gop.count == 0:
            self._read_context(plan, gop)
        gop.tokens, right = self._graphs.call(
            *("pass", self._decide, self._changing(plan, gop), (plan.prefix.pooled,)), state=plan.cache
        )
        plan.position += int(right)
        before, gop.count = gop.count, self._places.counts[plan.position - gop.first]
        gop.closed = gop.count == self._offsets[-1]
        return gop.count - before

    def _changing(self, plan: Plan, gop: GOP) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [1, N], place and position [1] of the first that is read, and noise [P, V] of all that are drawn."""
        # On the device, so that one graph serves all positions.
        place, position = (
            self._positions[number : number + 1] for number in (plan.position - gop.first, plan.position)
        )
        return gop.tokens, place, position, self._noise(plan, gop, plan.position - gop.first + 1)

    def _decide(
        self, changing: tuple[Tensor, Tensor, Tensor, Tensor], lasting: tuple[Tensor | None], cache: KVCache
    ) -> tuple[Tensor, Tensor]:
        """One pass: the GOP's tokens and guesses, and the number [1] of places that it decides."""
        (tokens, place, position, noise), (pooled,) = changing, lasting
        read = self._places.read(tokens, place)
        with self._model.computing():
            embedded = self._model.planner.embed(read.expand(self._rows, -1), pooled)
            logits = self._model.planner(embedded, cache, position)
            drawn = sample_token(logits.flatten(0, 1), noise, self._sampling)
        return self._places.accept(read, drawn, tokens, place)

    def _noise(self, plan: Plan, gop: GOP, place: int) -> Tensor:
        """Noise [P, V] of places from `place` on, zero for special tokens and behind the GOP."""
        starts, end = self._places.starts, place + self._pass
        frames = [frame for frame in range(len(starts) - 1) if starts[frame] < end and place < starts[frame + 1]]
        plan.noise = {
            gop.start + frame: self._frame_noise(plan, gop.start + frame, starts[frame + 1] - starts[frame])
            for frame in frames
        }
        place -= starts[frames[0]]
        rows = torch.cat(list(plan.noise.values()))[place : place + self._pass]
        return F.pad(rows, (0, 0, 0, self._pass - len(rows)))

    def _frame_noise(self, plan: Plan, number: int, places: int) -> Tensor:
        """Noise of the places of a frame, [its places, V]."""
        if number in plan.noise:
            return plan.noise[number]
        # The first and the last place have special tokens.
        shape = (places - 2, self._model.config.planner.codebook_size)
        noise = gumbel(uniform(shape, plan.gops[-1].seed, "plan", number))
        return upload(F.pad(noise, (0, 0, 1, 1)), self._model.device)

    def seed_at(self, plan: Plan, frame: int) -> int:
        """The seed that `frame` is planned with."""
        return next(gop.seed for gop in reversed(plan.gops) if gop.start <= frame)

    def cut(self, plan: Plan, frame: int, text: Tensor, seed: int | None = None) -> None:
        """Forgets everything from `frame` on; there a new GOP begins, for the text [1, L, K].

        What comes before `frame` must be decided. Without a seed that of the plan stays.
        """
        seed = plan.gops[-1].seed if seed is None else seed
        plan.gops = [gop for gop in plan.gops if gop.start < frame]
        if plan.gops:
            assert self.end(plan) >= frame, f"frames up to {frame} must be planned"
            last = plan.gops[-1]
            last.count, last.closed = self._offsets[frame - last.start], True
        plan.gops.append(self._gop(frame, plan.gops[-1] if plan.gops else None, seed))
        plan.gops[-1].changed = True
        plan.prefix = self._prefix(text)

    def drop(self, plan: Plan, frame: int) -> None:
        """Drops GOPs that neither frames from `frame` on nor their context can need."""
        # At least the last one: its own frames go on behind `frame`, or a cut there closes it.
        context = max(self._model.config.planner.context_gops, 1)
        before = [gop for gop in plan.gops if gop.start < frame]
        plan.gops = before[-context:] + plan.gops[len(before) :]

    def parts(self, plan: Plan, start: int, end: int) -> list[PlanPart]:
        """What a chunk of frames `start` to `end` - 1, which must be decided, reads. Tokens are views."""
        parts = []
        for gop in plan.gops:
            # Not `count`: how far an open GOP reaches depends on time, and the shape would decide the last bits.
            frames = min(end - gop.start, self._frames(gop)) if gop.closed else end - gop.start
            if frames > 0 and gop.start + frames > start:
                parts.append(PlanPart(gop.start, gop.tokens[:, : self._offsets[frames]]))
        return parts

    def features(self, plan: Plan, start: int, end: int) -> FeatureFrames:
        """Features of frames `start` to `end` - 1, which must be decided: [1, end - start, D, h, w] float32."""
        return decode(self._model, self.parts(plan, start, end), start)

    def _read_context(self, plan: Plan, gop: GOP) -> None:
        """Brings what stands before the GOP into the cache: prefix and context."""
        sequence = plan.prefix.embeddings
        if context := self._context(plan):
            embedded = self._model.planner.embed(self._tokens(context), plan.prefix.pooled)
            sequence = torch.cat([sequence, embedded], dim=1)
        self._model.planner.fill(sequence, plan.cache)
        plan.position = gop.first = sequence.shape[1]
        # A frame's noise has a row for each of its places, which depend on where its GOP begins.
        plan.noise = {}

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

    def _closed(self, part: PlanPart, seed: int) -> GOP:
        gop = self._gop(part.start, None, seed)
        gop.count, gop.closed = part.tokens.shape[1], True
        gop.tokens[:, : gop.count] = part.tokens
        return gop

    def _gop(self, start: int, before: GOP | None, seed: int) -> GOP:
        """A GOP of which nothing is decided, behind the one before."""
        tokens = self._places.first_guess(None if before is None else before.tokens, self._model.device)
        return GOP(start, tokens, seed)

    def _prefix(self, text: Tensor) -> Prefix:
        config = self._model.config
        frames = None if config.plan_frames is None else float(config.plan_frames)
        hidden = torch.arange(self._rows, device=text.device) > 0
        return self._model.planner.prefix(text.expand(self._rows, -1, -1), frames, config.motion_score, hidden)


def decode(model: Model, parts: Iterable[PlanPart], start: int) -> FeatureFrames:
    """Features [1, T, D, h, w] float32 of the frames of a plan from `start` on."""
    features = [model.tokenizer.decode(part.tokens)[:, max(start - part.start, 0) :].float() for part in parts]
    return FeatureFrames(torch.cat(features, dim=1), start)
