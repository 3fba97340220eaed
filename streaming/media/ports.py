"""UDP ports of media: any that is free, or one of a range for each session."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from streaming.errors import Unavailable

RECEIVE_BUFFER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports `first` to `last`; each session takes one, on all addresses."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise ValueError(f"{self} is not a range of ports: give the lower one first, both from 1 to 65535")

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1


def parse_range(text: str) -> PortRange:
    """The range of `A-B`, or of `A` alone. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a range of ports: write it as 40000-40100")
    return PortRange(int(match[1]), int(match[2] or match[1]))


class MediaPorts:
    """Binds the sockets of sessions. Nothing is kept: a port is free again when its sockets are closed."""

    def __init__(self, ports: PortRange | None) -> None:
        self._ports = ports
        self._next = 0  # offset at which to look first, so that a port is not used again at once

    def bind(self, addresses: Sequence[str]) -> list[socket.socket]:
        """One socket for each address that this machine has, all of one port of the range, if there is one.

        Raises Unavailable when no port is free.
        """
        if self._ports is None:
            return _bind(addresses, 0) or []
        size = len(self._ports)
        for step in range(size):
            offset = (self._next + step) % size
            sockets = _bind(addresses, self._ports.first + offset)
            if sockets is not None:
                self._next = (offset + 1) % size
                return sockets
        raise Unavailable("Every media port is in use, which is the limit; try again later.")

    def free(self, addresses: Sequence[str]) -> bool:
        """True if a session could have a port now."""
        if self._ports is None:
            return True
        before = self._next
        try:
            for bound in self.bind(addresses):
                bound.close()
        except Unavailable:
            return False
        finally:
            self._next = before
        return True

    def count_free(self, addresses: Sequence[str], most: int) -> int:
        """How many of the first `most` ports of the range a session could have now; 0 without a range."""
        count = 0
        for port in range(self._ports.first, self._ports.last + 1)[:most] if self._ports else ():
            sockets = _bind(addresses, port)
            count += bool(sockets)
            for bound in sockets or ():
                bound.close()
        return count


def _bind(addresses: Sequence[str], port: int) -> list[socket.socket] | None:
    """Sockets at one port; None if another program has it, or it must not be used."""
    with ExitStack() as bound:
        sockets = []
        for address in addresses:
            family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
            try:
                one = socket.socket(family, socket.SOCK_DGRAM)
            except OSError:
                # A family that is switched off; the others still serve.
                continue
            bound.push(one)
            try:
                one.bind((address, port))
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES) and port:
                    return None
                # An address that is gone.
                one.close()
                continue
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            sockets.append(one)
        bound.pop_all()
        return sockets
    return None
