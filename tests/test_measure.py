import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from streaming.bench import prompts
from streaming.bench.measure import by_stage, delay_ms, figures, fresh, memory, rendered_s, share_of_core
from streaming.bench.numbering import counts
from streaming.bench.recording import Arrival, BenchError, Change, ChunkSeen, Packets, Recording, Rendered
from streaming.media.marker import CLOCK_WRAP_MS, Mark

FPS = 8.0
BEGIN_S = 100.0
ENCODE_S, NETWORK_S, HOLD_S = 0.004, 0.006, 0.125
RENDERED_EARLIER_S = 2.0


def look(number: int, tint: float = 0.0) -> Any:
    """A sketch of a picture that moves a little from frame to frame."""
    sketch = np.full(144, 100 + tint, np.float32)
    sketch[number % 16] += 30
    return sketch


def arrival(number: int, index: int | None, sketch: Any = None, late_s: float = 0.0) -> Arrival:
    """The frame that was due `number` periods after the begin, with its marker's number."""
    on_air_s = BEGIN_S + number / FPS
    last_s = on_air_s + ENCODE_S + NETWORK_S + late_s
    mark = None if index is None else Mark(index, round(on_air_s * 1000) % CLOCK_WRAP_MS)
    packets = Packets(last_s - NETWORK_S, last_s, 1000)
    shown = look(number) if sketch is None else sketch
    return Arrival(last_s + HOLD_S, number / FPS, mark, shown, packets, (192, 128))


def report(**changed: Any) -> dict[str, Any]:
    return {"fps": FPS, "realtime_factor": 2.0, "repeats": 1} | changed


def recording(arrivals: Sequence[Arrival], **changed: Any) -> Recording:
    end_s = max(arrivals[-1].at_s, BEGIN_S + len(arrivals) / FPS)
    made = Recording(BEGIN_S, end_s, True, list(arrivals), encode_s=ENCODE_S)
    made.samples = [(0.0, report()), (1.0, report())]
    # Slices of 8 frames, a chunk of 24: its news come when the frames are rendered.
    for end in range(0, len(arrivals) + 96, 8):
        at_s = BEGIN_S + end / FPS - RENDERED_EARLIER_S
        made.rendered.append(Rendered(at_s, end))
        if end % 24 == 0:
            made.chunks.append(ChunkSeen(at_s, {"plan": 100.0, "render": 200.0, "vae": 90.0}))
    return dataclasses.replace(made, **changed)


def even(count: int = 160) -> list[Arrival]:
    return [arrival(number, number) for number in range(count)]


def test_a_good_run_has_nothing_wrong() -> None:
    """Every figure comes from its part of the recording."""
    made = recording(even())
    made.memory = {"server": [(float(second), 50.0) for second in range(20)]}
    made.computing = {"server": [(0.0, 1.0), (10.0, 1.5), (20.0, 2.0)]}
    made.stats = {"packetsReceived": 990, "packetsLost": 10, "jitter": 0.001}
    found = figures(made, 0.5, 5.0)
    assert (found["fps"], found["stalls"], found["freezes"]) == (pytest.approx(FPS, rel=0.02), 0, 0)
    wrong = ("frames_missing", "frames_doubled", "frames_misnumbered", "frames_unreadable", "repeats")
    assert [found[name] for name in wrong] == [0] * len(wrong)
    assert found["playback"][0] == {"prebuffer_s": 0.0, "attained": 1.0, "play_ratio": 1.0}
    assert found["jitter_p99_ms"] == pytest.approx(0, abs=1)
    assert found["transport_ms"]["median"] == pytest.approx(1000 * (ENCODE_S + NETWORK_S), abs=1)
    assert found["hold_ms"]["median"] == pytest.approx(1000 * HOLD_S, abs=0.1)
    assert found["glass_to_glass_ms"]["median"] == pytest.approx(1000 * (ENCODE_S + NETWORK_S + HOLD_S), abs=1)
    assert found["bitrate_kbps"] == pytest.approx(64, rel=0.05)
    assert (found["packet_loss"], found["encode_ms"]) == (0.01, 4.0)
    assert found["realtime_factor"] == 2.0
    assert (found["rss_mb"]["server"]["end"], found["rss_mb"]["server"]["growth"]) == (50, 0)
    assert found["cpu_percent"] == {"server": 5.0}
    assert found["sizes"] == [[192, 128]]


def test_a_frame_is_as_old_as_its_rendering() -> None:
    """The last frame of a slice is the eldest: it waits for those before it."""
    found = figures(recording(even()), 0.5, 5.0)["frame_age_ms"]
    eldest_ms = 1000 * (RENDERED_EARLIER_S - 1 / FPS + ENCODE_S + NETWORK_S + HOLD_S)
    assert found["most"] == pytest.approx(eldest_ms, abs=2)


# The faults that a server may have, and the figure that is for each.


def test_a_pause_is_a_stall_and_a_freeze() -> None:
    """300 ms late, and all frames behind it: one gap, one freeze, and players that buffer less miss a frame."""
    paused = [arrival(number, number, late_s=0.3 if number >= 80 else 0.0) for number in range(160)]
    found = figures(recording(paused), 0.5, 5.0)
    assert (found["stalls"], found["freezes"], found["longest_gap_ms"]) == (1, 1, pytest.approx(425, abs=1))
    assert [row["attained"] < 1 for row in found["playback"][:5]] == [True] * 4 + [False]
    assert found["playback"][0]["play_ratio"] < 1
    assert found["frames_missing"] == found["frames_doubled"] == found["frames_misnumbered"] == 0


def test_a_pause_that_timestamps_hide_is_found_by_numbers() -> None:
    """A server that repeats a picture keeps its clock; the picture's number tells that the video stood."""
    stood = [arrival(n, n if n < 80 else max(80, n - 3), look(80) if 80 <= n <= 83 else None) for n in range(160)]
    found = figures(recording(stood), 0.5, 5.0)
    assert found["frames_doubled"] == 3
    assert (found["stalls"], found["freezes"]) == (1, 1)
    assert found["playback"][0]["attained"] < 1


def test_a_dropped_frame_is_missing() -> None:
    """With and without a marker: one frame, and a stall of two periods."""
    for marked in (True, False):
        dropped = [arrival(number, number if marked else None) for number in range(160) if number != 80]
        found = figures(recording(dropped), 0.5, 5.0)
        assert (found["frames_missing"], found["stalls"]) == (1, 1)
        assert found["frames_misnumbered"] == 0


def test_a_doubled_frame_is_counted() -> None:
    """A picture that comes twice, whatever its number says."""
    for index in (80, 81, None):
        numbers = [index if n == 81 else n for n in range(160)] if index is not None else [None] * 160
        twice = [arrival(n, numbers[n], look(80) if n == 81 else None) for n in range(160)]
        found = figures(recording(twice), 0.5, 5.0)
        assert (found["frames_doubled"], found["pictures_doubled"]) == (None if index is None else index == 80, 1)


@pytest.mark.parametrize("wrong", [0, 40, 82, 1000])
def test_a_wrong_frame_number_is_counted(wrong: int) -> None:
    """A number that is not the next one, though the frame came in time, is no missing frame."""
    numbers = list(range(160))
    numbers[80] = wrong
    found = counts([arrival(place, number) for place, number in enumerate(numbers)], FPS)
    assert found["frames_misnumbered"] >= 1
    assert found["frames_missing"] == 0


def changing(tint: float, from_number: int = 110, says: int = 110) -> Recording:
    """A video whose prompt is changed at 10 s; its look is another from a frame on, which the server says or not."""
    shown = [arrival(n, n, look(n, tint if n >= from_number else 0.0)) for n in range(200)]
    sent_s = BEGIN_S + 10.0
    return recording(shown, changes=[Change("a red ball", sent_s, sent_s + 0.02, says)])


def test_a_prompt_is_measured_to_its_changed_pixel_and_split() -> None:
    """From the request to the frame that looks different; the parts are the whole."""
    found = prompts.figures(changing(40.0))
    (row,) = found["prompts"]
    due_s = 110 / FPS - 10 + ENCODE_S + NETWORK_S + HOLD_S
    assert found["failed"] == []
    assert row["pixel_s"] == row["frame_s"] == pytest.approx(due_s, abs=0.01)
    assert found["prompt_to_pixel_s"]["flow"]["median"] == row["pixel_s"]
    assert sum(row["split_ms"].values()) == pytest.approx(row["pixel_s"] * 1000, abs=2)
    split = row["split_ms"]
    assert (split["answer"], split["plan"], split["render"], split["decode"]) == (20.0, 100.0, 200.0, 30.0)
    assert (split["encode"], split["transport"]) == (4.0, pytest.approx(6.0, abs=1))
    assert (split["jitter_buffer"], split["appear"]) == (125.0, 0.0)
    assert split["buffer"] == pytest.approx(1000 * (RENDERED_EARLIER_S - 2 / FPS), abs=1)
    assert found["prompt_split_ms"]["plan"]["median"] == 100.0


def test_a_prompt_that_changes_nothing_fails() -> None:
    """The server's frame number is there, the picture is what it was."""
    found = prompts.figures(changing(0.0))
    assert found["failed"] == ["'a red ball' changed nothing that can be seen"]
    assert found["prompt_to_pixel_s"]["flow"]["median"] is None
    assert found["prompt_to_frame_s"]["median"] is not None


def test_a_frame_number_that_is_wrong_by_a_second_is_found() -> None:
    """Seen earlier than the server says is impossible; seen later is what the picture takes to be another."""
    found = prompts.figures(changing(40.0, from_number=100, says=108))
    assert found["failed"] == ["'a red ball': the picture changed 8 frames before the server's frame number"]
    found = prompts.figures(changing(40.0, from_number=118, says=110))
    assert found["failed"] == []
    assert found["prompts"][0]["split_ms"]["appear"] == 1000.0


def test_without_an_api_the_changed_pixel_is_all_there_is() -> None:
    """A command that changed the prompt elsewhere, frames without markers, and no news of an engine."""
    shown = [arrival(n, None, look(n, 40.0 if n >= 110 else 0.0)) for n in range(200)]
    sent_s = BEGIN_S + 10.0
    made = recording(shown, changes=[Change("p", sent_s, sent_s + 0.5)], samples=[], rendered=[], chunks=[])
    found = prompts.figures(made)
    assert found["prompts"][0]["pixel_s"] == pytest.approx(110 / FPS - 10 + 0.135, abs=0.01)
    assert found["prompts"][0]["split_ms"] == {"answer": 500.0}
    assert found["prompt_to_frame_s"]["count"] == 0
    assert figures(made, 0.5, 5.0)["frames_unreadable"] is None


def test_what_was_refused_is_named() -> None:
    """A change that the server did not take is a failure of the run."""
    made = recording(even(), refused=["503 not now"])
    assert prompts.figures(made)["failed"] == ["503 not now"]


def test_a_slower_engine_shows_in_its_chunks() -> None:
    """Ten percent more of each stage is ten percent more of the total."""
    quick = by_stage([{"plan": 100.0, "render": 200.0}])
    slow = by_stage([{"plan": 110.0, "render": 220.0}])
    assert slow["total"]["median"] / quick["total"]["median"] == pytest.approx(1.1)


def test_a_number_that_is_far_too_high_hides_nothing_behind_it() -> None:
    """Frames that come after it are as fresh as before."""
    numbers = [1000 if number == 5 else number for number in range(10)]
    shown = fresh([arrival(place, number) for place, number in enumerate(numbers)])
    assert [one.mark.index for one in shown if one.mark is not None] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_repeated_and_unreadable_frames_are_not_fresh() -> None:
    """Only the first showing of each frame counts, and numbers never go back."""
    shown = fresh([arrival(place, index) for place, index in enumerate((5, 5, None, 6, 4, 8))])
    assert [one.mark.index for one in shown if one.mark is not None] == [5, 6, 8]


@pytest.mark.parametrize(
    ("at_s", "clock_ms", "delay"), [(10.0, 9_900, 100), (0.05, CLOCK_WRAP_MS - 50, 100), (1.0, 1001, -1)]
)
def test_delay_is_taken_over_the_wrap_of_the_clock(at_s: float, clock_ms: int, delay: float) -> None:
    """The clock in the pixels has 32 bits; a rounded one may be a little ahead."""
    assert delay_ms(at_s, Mark(0, clock_ms)) == pytest.approx(delay)


def test_rendering_is_known_from_the_first_news_on() -> None:
    """Frames of before have no time of rendering, nor have those to come."""
    news = [Rendered(1.0, 8), Rendered(2.0, 16)]
    assert [rendered_s(news, frame) for frame in (7, 8, 15, 16)] == [None, 2.0, 2.0, None]
    assert rendered_s([], 0) is None


def test_memory_and_computing_of_processes() -> None:
    """Growth needs samples at both ends, computing two of them in the span."""
    assert memory([(0.0, 10.0)], 0.0)["growth"] is None
    series = [(float(second), 100.0 + second) for second in range(21)]
    assert memory(series, 1.0) == {"end": 120.0, "most": 120.0, "growth": 15.0, "growth_from_s": 1.0}
    computing = [(0.0, 0.0), (1.0, 0.1), (2.0, 0.9)]
    assert share_of_core(computing) == 45.0
    assert share_of_core(computing, 1.0) == 80.0
    assert share_of_core(computing, 2.0) is None


def test_clocks_of_two_machines_are_not_compared() -> None:
    """Without a common clock there is no age, and everything else is still there."""
    found = figures(recording(even(), same_clock=False), 0.5, 5.0)
    assert "transport_ms" not in found and "frame_age_ms" not in found
    assert found["frames"] == 160


def test_a_video_that_turns_is_measured_and_named() -> None:
    """Another size in the middle is no failure, and both are in the report."""
    turned = [arrival(n, n)._replace(size=(128, 192) if n > 80 else (192, 128)) for n in range(160)]
    assert figures(recording(turned), 0.5, 5.0)["sizes"] == [[192, 128], [128, 192]]


def test_what_comes_behind_a_time_is_left_out() -> None:
    """Of frames, news, chunks, memory and computing; a process that came later is not there at all."""
    made = recording(even(), memory={"server": [(0.0, 1.0), (20.0, 2.0)]}, computing={"crowd": [(15.0, 1.0)]})
    before = made.until(BEGIN_S + 10.0)
    assert before.end_s == BEGIN_S + 10.0 and 70 < len(before.arrivals) < 80
    assert before.memory == {"server": [(0.0, 1.0)]} and before.computing == {}
    assert all(one.at_s < before.end_s for one in (*before.rendered, *before.chunks))
    assert len(made.arrivals) == 160


def test_no_frames_are_no_measurement() -> None:
    """A single frame says nothing."""
    with pytest.raises(BenchError, match="1 frames were decoded, 1 of them new"):
        figures(recording(even(1)), 0.0, 1.0)
