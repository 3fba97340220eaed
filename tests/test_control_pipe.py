import multiprocessing

import pytest

from engine.live import control_pipe
from engine.live.control_pipe import ControlPipe
from engine.wire.messages import Heartbeat, Stop


def test_heartbeats_come_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the block runs the server hears of the process, whatever its main thread does; afterwards no more."""
    monkeypatch.setattr(control_pipe, "HEARTBEAT_S", 0.01)
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        with ControlPipe(theirs) as pipe:
            assert [ours.recv() for _ in range(3)] == [Heartbeat()] * 3
            ours.send(Stop())
            assert pipe.recv() == Stop() and not pipe.poll()
        while ours.poll(0.1):
            ours.recv()
        assert not ours.poll(0.1)


def test_a_server_that_is_gone_ends_the_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends without a word; who sends learns that the pipe is broken."""
    monkeypatch.setattr(control_pipe, "HEARTBEAT_S", 0.01)
    ours, theirs = multiprocessing.Pipe()
    with theirs, ControlPipe(theirs) as pipe:
        ours.recv()
        ours.close()
        with pytest.raises(OSError):
            while True:
                pipe.send(Heartbeat())
