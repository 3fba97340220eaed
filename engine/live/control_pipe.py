"""The engine's end of the control pipe, and the thread that sends heartbeats through it."""

from __future__ import annotations

import threading
from multiprocessing.connection import Connection

from engine.wire.messages import HEARTBEAT_S, FromEngine, Heartbeat, ToEngine


class ControlPipe:
    """Messages to and from the server; sending is for any thread. Owns the heartbeat, not the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._ended = threading.Event()

    def send(self, message: FromEngine) -> None:
        """Raises BrokenPipeError or ConnectionResetError when the server is gone."""
        with self._sending:
            self._connection.send(message)

    def poll(self) -> bool:
        """True if a message waits."""
        return self._connection.poll()

    def recv(self) -> ToEngine:
        """The next message. Raises EOFError or OSError when the server is gone."""
        message: ToEngine = self._connection.recv()
        return message

    def fileno(self) -> int:
        return self._connection.fileno()

    def __enter__(self) -> ControlPipe:
        """Sends heartbeats while the block runs."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self.send(Heartbeat())
            except OSError:
                # The server is gone, which the main thread notices too.
                return
