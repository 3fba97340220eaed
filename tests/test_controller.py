"""Steps of chunks and frames of cuts, from buffers and costs."""

import pytest

from engine.live.controller import SLACK, SPARE_S, CostMeter, Costs, Cut, choose_cut, choose_steps

COSTS = Costs(plan_s=0.2, open_s=0.1, step_s=0.5, slice_s=0.1)


def test_quality_yields_before_smoothness() -> None:
    """A chunk takes the most steps whose frames come in time, never more than the ceiling nor less than the floor."""
    steps = [choose_steps(buffered / 10, COSTS, 1, 4) for buffered in range(0, 60)]
    assert steps == sorted(steps) and set(steps) == {1, 2, 3, 4}
    for buffered, chosen in enumerate(steps):
        assert chosen == 1 or COSTS.first_frames_s(chosen) <= buffered / 10
        assert chosen == 4 or COSTS.first_frames_s(chosen + 1) > buffered / 10
    assert choose_steps(0.0, COSTS, 2, 4) == 2 and choose_steps(0.0, COSTS, 4, 4) == 4
    assert choose_steps(0.0, None, 1, 4) == 4


def test_what_takes_longer_beside_others_is_planned_so() -> None:
    """Where a chunk's time is shared, fewer steps fit."""
    shared = Costs(COSTS.plan_s, COSTS.open_s, COSTS.step_s, COSTS.slice_s, stretch=2.0)
    assert choose_steps(3.0, COSTS, 1, 4) == 4 and choose_steps(3.0, shared, 1, 4) == 1


@pytest.mark.parametrize("on_air_s", [0.0, 0.06, 0.125])
def test_a_cut_can_be_met(on_air_s: float) -> None:
    """Its frame is due just after its frames can be there, and no sooner."""
    cut = choose_cut(100, 180, on_air_s, 8.0, COSTS, 4, 4)
    assert cut is not None
    due_s = (cut.frame - 100 + 1) / 8 - on_air_s
    assert COSTS.cut_s(4) <= due_s < COSTS.cut_s(4) + 0.125


def test_a_cut_takes_fewer_steps_rather_than_a_pause() -> None:
    """Half of them, so that it is seen soon, and as few as the frames that are there leave time for; where even the
    fewest do not fit it waits."""
    cuts = [choose_cut(100, 100 + buffered, 0.0, 8.0, COSTS, 1, 4) for buffered in range(40)]
    steps = [cut.steps if cut else 0 for cut in cuts]
    assert steps == sorted(steps) and set(steps) == {0, 1, 2}
    assert all(cut is None or cut.frame <= 100 + buffered for buffered, cut in enumerate(cuts))
    assert choose_cut(100, 180, 0.0, 8.0, None, 1, 4) is None
    one, fixed = (choose_cut(100, 180, 0.0, 8.0, COSTS, *both) for both in ((1, 1), (3, 3)))
    assert one is not None and one.steps == 1 and fixed is not None and fixed.steps == 3


def test_going_back_costs_the_slices_that_are_decoded_again() -> None:
    """Where the states behind slices are not kept."""
    again = Costs(COSTS.plan_s, COSTS.open_s, COSTS.step_s, COSTS.slice_s, slices_again=2)
    assert again.cut_s(2) == pytest.approx(COSTS.cut_s(2) + SLACK * 2 * COSTS.slice_s)
    assert again.first_frames_s(2) == COSTS.first_frames_s(2)


def test_a_cut_is_not_the_frame_that_may_be_on_air_already() -> None:
    """However cheap it is, one frame is left to the server."""
    assert choose_cut(7, 20, 0.0, 8.0, Costs(0.0, 0.0, 0.0, 0.0), 4, 4) == Cut(8, 4)


def test_costs_are_means_of_what_was_measured() -> None:
    """Of the dearer half of the last chunks, each part apart; there are none before the first chunk."""
    meter = CostMeter(chunk_tokens=80)
    meter.planned(0.02, 9)
    meter.planned(0.03, 11)
    assert meter.costs(1.0) is None
    for number in range(100):
        meter.rendered(0.1, 0.2 if number < 50 or number % 2 else 0.4, 0.05)
    costs = meter.costs(1.5)
    assert costs is not None
    assert (costs.plan_s, costs.step_s, costs.stretch) == pytest.approx((0.2, 0.4, 1.5))
    assert costs.first_frames_s(2) == pytest.approx(SPARE_S + SLACK * 1.5 * (0.1 + 0.8 + 0.05))


def test_costs_of_another_process_count_until_there_are_own_ones() -> None:
    """A process that goes on for another knows at once what a chunk costs."""
    meter = CostMeter(100)
    meter.begin_with(Costs(0.5, 0.1, 0.2, 0.3))
    assert meter.costs(2.0) == Costs(0.5, 0.1, 0.2, 0.3, 2.0)
    meter.begin_with(Costs(9.0, 9.0, 9.0, 9.0))
    assert meter.costs(1.0) == Costs(0.5, 0.1, 0.2, 0.3)
