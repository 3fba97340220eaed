from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
import torch
from tiny import tiny_model

from engine.live.generator import Generator
from engine.live.noise import uniform
from engine.live.plan_writer import Plan, PlanWriter
from engine.loading.model import Model
from engine.runtime.graphs import Graphs
from engine.semantic.sampling import SamplingConfig, gumbel, sample_token

SAMPLING = SamplingConfig(guidance=1.0)
FRAMES, I_TOKENS, P_TOKENS = 13, 6, 3


@cache
def _model(context_gops: int = 1) -> Model:
    return tiny_model(context_gops)


def _text(prompt: str) -> torch.Tensor:
    with torch.inference_mode():
        return _model().text.encode([prompt])


def _writer(context_gops: int = 1, guidance: float = 1.0) -> PlanWriter:
    return PlanWriter(_model(context_gops), SamplingConfig(guidance=guidance), Graphs(None))


def _write_to(writer: PlanWriter, plan: Plan, frame: int) -> None:
    while writer.end(plan) < frame:
        writer.write(plan)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_plan_follows_the_planner() -> None:
    """Codes equal those of the whole sequence in one pass: special sequence forced, context of the GOP before."""
    model, writer = _model(), _writer()
    config = model.config.planner
    plan = writer.begin(_text("a red ball"), 5, 0)
    _write_to(writer, plan, 2 * FRAMES)
    first, second = plan.gops
    layout = config.layout(FRAMES)
    sequence = []
    for gop in (first, second):
        tokens = iter(gop.tokens[0].tolist())
        sequence += [next(tokens) if entry is None else entry for entry in layout]
    prefix = model.planner.prefix(_text("a red ball"), None, None, False)
    embedded = model.planner.embed(torch.tensor([sequence]), prefix.pooled)
    logits = model.planner(torch.cat([prefix.embeddings, embedded], dim=1))[0, prefix.embeddings.shape[1] :]
    places = [len(layout) + place for place, entry in enumerate(layout) if entry is None]
    noise = [
        gumbel(uniform((I_TOKENS if frame == 0 else P_TOKENS, config.codebook_size), 5, "plan", FRAMES + frame))
        for frame in range(FRAMES)
    ]
    expected = sample_token(logits[[place - 1 for place in places]], torch.cat(noise), SAMPLING)
    assert second.tokens[0].tolist() == expected.tolist()
    assert len(set(second.tokens[0].tolist())) > 5


def test_plan_does_not_grow() -> None:
    """However long a plan runs, the GOPs it keeps are those that rendering and context need."""
    writer = _writer()
    plan = writer.begin(_text("a red ball"), 0, 0)
    sizes = []
    for end in range(6, 40 * 6, 6):
        _write_to(writer, plan, end + 12)
        writer.features(plan, end - 6, end)
        writer.drop(plan, end)
        sizes.append(len(plan.gops))
    assert max(sizes) <= 4
    assert max(sizes[20:]) <= max(sizes[:20])


def test_cut_begins_a_gop_at_the_frame() -> None:
    """A new prompt keeps what comes before its frame, bit for bit, and plans other tokens from there on."""
    writer = _writer()
    plain, changed = (writer.begin(_text("a red ball"), 3, 0) for _ in range(2))
    for plan in (plain, changed):
        _write_to(writer, plan, 12)
    writer.cut(changed, 7, _text("the blue sea"))
    for plan in (plain, changed):
        _write_to(writer, plan, 13)
    assert [gop.start for gop in changed.gops] == [0, 7] and changed.gops[0].count == I_TOKENS + 6 * P_TOKENS
    assert torch.equal(writer.features(changed, 0, 7).features, writer.features(plain, 0, 7).features)
    assert not torch.equal(writer.features(changed, 7, 13).features, writer.features(plain, 7, 13).features)


def test_what_was_planned_beyond_a_cut_leaves_no_trace() -> None:
    """The plan after a cut is the same whether the look-ahead had reached its frame, a GOP more, or two."""
    writer = _writer()
    results = []
    for reached in (13, 20, 35):
        plan = writer.begin(_text("a red ball"), 3, 0)
        _write_to(writer, plan, reached)
        writer.cut(plan, 13, _text("the blue sea"))
        _write_to(writer, plan, 30)
        results.append((plan.gops[1].start, writer.features(plan, 13, 30).features))
    assert results[0][0] == 13
    assert all(start == 13 and torch.equal(features, results[0][1]) for start, features in results[1:])


def test_second_cut_replaces_the_first() -> None:
    """Two changes at one frame give what the second alone gives."""
    writer = _writer()
    once, twice = (writer.begin(_text("a red ball"), 3, 0) for _ in range(2))
    for plan in (once, twice):
        _write_to(writer, plan, 7)
    writer.cut(twice, 7, _text("the boat"))
    _write_to(writer, twice, 9)
    for plan in (once, twice):
        writer.cut(plan, 7, _text("the blue sea"))
        _write_to(writer, plan, 13)
    assert torch.equal(writer.features(once, 0, 13).features, writer.features(twice, 0, 13).features)


def test_features_do_not_depend_on_the_look_ahead() -> None:
    """A chunk's features are the same bits whether its GOP has just reached it or is planned to the end and beyond."""
    writer = _writer()
    plan = writer.begin(_text("a red ball"), 9, 0)
    _write_to(writer, plan, 20)
    early = writer.features(plan, 11, 17).features
    _write_to(writer, plan, 40)
    assert torch.equal(writer.features(plan, 11, 17).features, early)
    assert early.shape[1] == 6 and early.dtype == torch.float32


def test_features_are_the_gops_end_to_end() -> None:
    """Windows cut across GOPs equal the GOPs decoded whole and put end to end."""
    writer = _writer()
    plan = writer.begin(_text("a red ball"), 9, 100)
    _write_to(writer, plan, 126)
    whole = torch.cat([_model().tokenizer.decode(gop.tokens) for gop in plan.gops], dim=1)
    windows = [writer.features(plan, start, start + 5).features for start in (105, 110, 115)]
    assert torch.allclose(torch.cat(windows, dim=1), whole[:, 5:20], atol=1e-5)


@pytest.mark.parametrize("context_gops", [0, 1, 2])
def test_context_is_the_last_gops(context_gops: int) -> None:
    """A GOP depends on the GOPs that are its context, cut or whole, and on none before them."""
    writer = _writer(context_gops)
    assert _model(context_gops).config.planner.context_gops == context_gops
    plans = [writer.begin(_text("a red ball"), 3, 0) for _ in range(2)]
    for index, plan in enumerate(plans):
        _write_to(writer, plan, 4)
        writer.cut(plan, 4, _text("the boat"))
        _write_to(writer, plan, 4 + FRAMES)
        if index:  # other tokens in the first GOP, which is two before the third
            plan.gops[0].tokens = (plan.gops[0].tokens + 1) % 32
        _write_to(writer, plan, 4 + 2 * FRAMES)
    same = torch.equal(plans[0].gops[2].tokens, plans[1].gops[2].tokens)
    assert same == (context_gops < 2)


def test_a_new_text_does_not_see_the_last_frame_of_a_whole_gop() -> None:
    """Behind a whole GOP, a GOP under the same text reads all of it, under another text a frame less."""
    writer, text = _writer(), _text("a red ball")
    read = []
    for planned, cut in ((FRAMES, False), (FRAMES, True), (FRAMES - 1, True)):
        plan = writer.begin(text, 3, 0)
        _write_to(writer, plan, planned)
        if cut:
            writer.cut(plan, planned, text)
        writer.write(plan)
        read.append(plan.position)
    assert read[0] > read[1] == read[2]


def test_guidance_changes_the_plan() -> None:
    """With guidance two rows run, with and without text, and other tokens win."""
    tokens = []
    for guidance in (1.0, 5.0):
        writer = _writer(guidance=guidance)
        plan = writer.begin(_text("a red ball"), 3, 0)
        _write_to(writer, plan, 13)
        tokens.append(plan.gops[0].tokens)
    assert not torch.equal(*tokens)


def test_every_unit_of_planning_decides_tokens() -> None:
    """Whatever frame or GOP the passes of a unit fall into."""
    generator = Generator(_model())
    channel, counts = generator.open("a red ball", 0), [0]
    for _ in range(20):
        assert generator.plan(channel).stage == "plan"
        counts.append(sum(gop.count for gop in channel.plan.gops))
    assert all(before < after for before, after in pairwise(counts))


@pytest.mark.parametrize("places", [1, 3, 7, 64])
def test_the_number_of_places_of_a_pass_does_not_change_the_plan(places: int) -> None:
    """Tokens and what they are decoded to are those of one token a pass, also behind prompts that change."""
    plans = []
    for writer in (PlanWriter(_model(), SAMPLING, Graphs(None), n) for n in (1, places)):
        plan = writer.begin(_text("a red ball"), 5, 0)
        _write_to(writer, plan, 18)
        writer.cut(plan, 16, _text("the blue sea"))
        _write_to(writer, plan, 16 + FRAMES)
        plans.append([gop.tokens[:, : gop.count] for gop in plan.gops[:3]])
    assert all(torch.equal(one, other) for one, other in zip(*plans, strict=True))


def test_guesses_do_not_change_the_plan() -> None:
    """Whatever stands where tokens are not decided yet, the same are decided, in fewer passes than there are tokens."""
    writer, tokens = _writer(), []
    for shift in range(3):
        plan, passes = writer.begin(_text("a red ball"), 5, 0), 0
        while not plan.gops[-1].closed:
            gop = plan.gops[-1]
            gop.tokens[:, gop.count :] = (gop.tokens[:, gop.count :] + shift) % 32
            writer.write(plan)
            passes += 1
        tokens.append(plan.gops[0].tokens)
        assert shift or passes < tokens[0].shape[1] / 2
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])


def test_a_pass_longer_than_the_room_is_refused() -> None:
    """With both numbers."""
    with pytest.raises(ValueError, match="65 places is not between 1 and 64"):
        PlanWriter(_model(), SAMPLING, Graphs(None), 65)
