"""ICE candidates of a viewer (RFC 8839): those that checks may be sent to. No I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from streaming.media.offer import WhepError

# Foundation, component, transport, priority, address, port, type.
CANDIDATE = re.compile(r"(\S+) +([0-9]+) +(\S+) +([0-9]+) +(\S+) +([0-9]+) +typ +(\S+)( .*)?", re.IGNORECASE)
TYPES = ("host", "srflx", "prflx", "relay")
HIGHEST_PRIORITY, HIGHEST_PORT = (1 << 32) - 1, (1 << 16) - 1
BROADCAST = "255.255.255.255"


def usable(candidates: Iterable[str], loopback: bool) -> list[str]:
    """The candidates that can lead to a viewer, up to their types: what follows is of no use for checks.

    Args:
        candidates: without "candidate:".
        loopback: whether loopback addresses count.

    Raises WhepError 400 for a malformed one.
    """
    return [kept for candidate in candidates if (kept := _usable(candidate, loopback)) is not None]


def _usable(candidate: str, loopback: bool) -> str | None:
    if not candidate:
        return None
    match = CANDIDATE.fullmatch(candidate)
    if match is None or int(match[4]) > HIGHEST_PRIORITY or int(match[6]) > HIGHEST_PORT:
        raise WhepError(400, "A candidate is malformed.")
    transport, address, kind = (match[place].lower() for place in (3, 5, 7))
    if match[2] != "1" or transport != "udp" or kind not in TYPES or not int(match[6]):
        return None
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        # A name, such as mDNS .local: looking it up would hold the answer, and the peer finds us without it.
        return None
    if "%" in address:
        # The scope is an interface of the peer.
        return None
    # ::ffff:127.0.0.1 leads to where 127.0.0.1 does.
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_multicast or ip.is_unspecified or str(ip) == BROADCAST or (ip.is_loopback and not loopback):
        return None
    return f"{match[1]} 1 udp {int(match[4])} {address} {int(match[6])} typ {kind}"
