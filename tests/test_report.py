from engine.wire.messages import ChunkDone
from streaming.channels.report import CHUNKS_KEPT, ChunkStats


def chunk(index: int, compute_s: float) -> ChunkDone:
    return ChunkDone("main", index, 4, 3.0, compute_s, {"render": compute_s * 1000}, (2,))


def test_no_figures_before_the_first_chunk() -> None:
    """A new channel has neither a factor nor a last chunk."""
    stats = ChunkStats()
    assert stats.realtime_factor is None
    assert stats.report() is None


def test_factor_is_the_median_of_the_last_chunks() -> None:
    """One slow chunk does not move the factor, and chunks long ago do not count."""
    stats = ChunkStats()
    for index in range(20):
        stats.add(chunk(index, 100.0))
    for index in range(CHUNKS_KEPT):
        stats.add(chunk(20 + index, 30.0 if index == 3 else 1.5))
    assert stats.realtime_factor == 2.0
    report = stats.report()
    assert report is not None
    assert (report.index, report.ms, report.threads) == (27, {"render": 1500.0}, (2,))


def test_chunk_without_computing_time_is_left_out() -> None:
    """A chunk of zero seconds cannot divide by zero."""
    stats = ChunkStats()
    stats.add(chunk(0, 0.0))
    assert stats.realtime_factor is None
