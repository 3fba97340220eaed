from collections.abc import Iterator
from functools import cache

import pytest
import torch
from tiny import tiny_model

from engine.live.generator import Generator
from engine.live.noise import uniform
from engine.live.plan_writer import Plan, PlanWriter
from engine.loading.model import Model
from engine.runtime.graphs import Graphs
from engine.semantic.sampling import SamplingConfig, gumbel, sample_code

SAMPLING = SamplingConfig(guidance=1.0)
FRAMES, I_TOKENS, P_TOKENS = 13, 6, 3


@cache
def _model(context_groups: int = 1) -> Model:
    return tiny_model(context_groups)


def _text(prompt: str) -> torch.Tensor:
    with torch.inference_mode():
        return _model().text.encode([prompt])


def _writer(context_groups: int = 1, guidance: float = 1.0) -> PlanWriter:
    return PlanWriter(_model(context_groups), SamplingConfig(guidance=guidance), Graphs(None))


def _write_to(writer: PlanWriter, plan: Plan, frame: int) -> None:
    while writer.end(plan) < frame:
        writer.write(plan)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_plan_follows_the_planner() -> None:
    """Codes equal those of the whole sequence in one pass: special tokens forced, context of the group before."""
    model, writer = _model(), _writer()
    config = model.config.planner
    plan = writer.begin(_text("a red ball"), 5, 0)
    _write_to(writer, plan, 2 * FRAMES)
    first, second = plan.groups
    layout = config.layout(FRAMES)
    tokens = []
    for group in (first, second):
        codes = iter(group.codes[0].tolist())
        tokens += [next(codes) if token is None else token for token in layout]
    prefix = model.planner.prefix(_text("a red ball"), None, None, False)
    embedded = model.planner.embed(torch.tensor([tokens]), prefix.pooled)
    logits = model.planner(torch.cat([prefix.embeddings, embedded], dim=1))[0, prefix.embeddings.shape[1] :]
    places = [len(layout) + place for place, token in enumerate(layout) if token is None]
    noise = [
        gumbel(uniform((I_TOKENS if frame == 0 else P_TOKENS, config.codebook_size), 5, "plan", FRAMES + frame))
        for frame in range(FRAMES)
    ]
    expected = sample_code(logits[[place - 1 for place in places]], torch.cat(noise), SAMPLING)
    assert second.codes[0].tolist() == expected.tolist()
    assert len(set(second.codes[0].tolist())) > 5


def test_plan_does_not_grow() -> None:
    """However long a plan runs, the groups it keeps are those that rendering and context need."""
    writer = _writer()
    plan = writer.begin(_text("a red ball"), 0, 0)
    sizes = []
    for end in range(6, 40 * 6, 6):
        _write_to(writer, plan, end + 12)
        writer.features(plan, end - 6, end)
        writer.drop(plan, end)
        sizes.append(len(plan.groups))
    assert max(sizes) <= 4
    assert max(sizes[20:]) <= max(sizes[:20])


def test_cut_begins_a_group_at_the_frame() -> None:
    """A new prompt keeps what comes before its frame, bit for bit, and plans other codes from there on."""
    writer = _writer()
    plain, changed = (writer.begin(_text("a red ball"), 3, 0) for _ in range(2))
    for plan in (plain, changed):
        _write_to(writer, plan, 12)
    writer.cut(changed, 7, _text("the blue sea"))
    for plan in (plain, changed):
        _write_to(writer, plan, 13)
    assert [(group.start, group.count) for group in changed.groups] == [(0, I_TOKENS + 6 * P_TOKENS), (7, 21)]
    assert torch.equal(writer.features(changed, 0, 7).features, writer.features(plain, 0, 7).features)
    assert not torch.equal(writer.features(changed, 7, 13).features, writer.features(plain, 7, 13).features)


def test_what_was_planned_beyond_a_cut_leaves_no_trace() -> None:
    """The plan after a cut is the same whether the look-ahead had reached its frame, a group more, or two."""
    writer = _writer()
    results = []
    for reached in (13, 20, 35):
        plan = writer.begin(_text("a red ball"), 3, 0)
        _write_to(writer, plan, reached)
        writer.cut(plan, 13, _text("the blue sea"))
        _write_to(writer, plan, 30)
        results.append((plan.groups[1].start, writer.features(plan, 13, 30).features))
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
    """A hop's features are the same bits whether its group has just reached it or is planned to the end and beyond."""
    writer = _writer()
    plan = writer.begin(_text("a red ball"), 9, 0)
    _write_to(writer, plan, 20)
    early = writer.features(plan, 11, 17).features
    _write_to(writer, plan, 40)
    assert torch.equal(writer.features(plan, 11, 17).features, early)
    assert early.shape[1] == 6 and early.dtype == torch.float32


def test_features_are_the_groups_end_to_end() -> None:
    """Windows cut across groups equal the groups decoded whole and put end to end."""
    writer = _writer()
    plan = writer.begin(_text("a red ball"), 9, 100)
    _write_to(writer, plan, 126)
    whole = torch.cat([_model().tokenizer.decode(group.codes) for group in plan.groups], dim=1)
    windows = [writer.features(plan, start, start + 5).features for start in (105, 110, 115)]
    assert torch.allclose(torch.cat(windows, dim=1), whole[:, 5:20], atol=1e-5)


@pytest.mark.parametrize("context_groups", [0, 1, 2])
def test_context_is_the_last_groups(context_groups: int) -> None:
    """A group depends on the groups that are its context, cut or whole, and on none before them."""
    writer = _writer(context_groups)
    assert _model(context_groups).config.planner.context_groups == context_groups
    plans = [writer.begin(_text("a red ball"), 3, 0) for _ in range(2)]
    for index, plan in enumerate(plans):
        _write_to(writer, plan, 4)
        writer.cut(plan, 4, _text("the boat"))
        _write_to(writer, plan, 4 + FRAMES)
        if index:  # other codes in the first group, which is two before the third
            plan.groups[0].codes = (plan.groups[0].codes + 1) % 32
        _write_to(writer, plan, 4 + 2 * FRAMES)
    same = torch.equal(plans[0].groups[2].codes, plans[1].groups[2].codes)
    assert same == (context_groups < 2)


def test_a_new_text_does_not_see_the_last_frame_of_a_whole_group() -> None:
    """Behind a whole group, a group under the same text reads all of it, under another text a frame less."""
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
    """With guidance two rows run, with and without text, and other codes win."""
    codes = []
    for guidance in (1.0, 5.0):
        writer = _writer(guidance=guidance)
        plan = writer.begin(_text("a red ball"), 3, 0)
        _write_to(writer, plan, 13)
        codes.append(plan.groups[0].codes)
    assert not torch.equal(*codes)


def test_generator_plans_whole_units() -> None:
    """A unit of planning decides a fixed number of codes, whatever frame or group they fall into."""
    generator = Generator(_model())
    channel = generator.open("a red ball", 0)
    for _ in range(20):
        assert generator.plan(channel).stage == "plan"
    assert sum(group.count for group in channel.plan.groups) == 20 * 8
