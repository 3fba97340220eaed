"""How viewers reach the media: options of the command line, and what they say together."""

from __future__ import annotations

import argparse
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streaming.media import ice_server, ports
from streaming.media.ice_server import IceServer
from streaming.media.ports import PortRange

MOST_SERVERS = 8  # each is asked for every viewer


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Addresses, ports and servers of ICE. Raises ValueError where they cannot work together."""

    addresses: tuple[str, ...] = ()  # to send media from; none means all but loopback
    public: tuple[str, ...] = ()  # that viewers see instead, at most one of each family
    ports: PortRange | None = None  # None means any
    servers: tuple[IceServer, ...] = ()
    turn_secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for version in (4, 6):
            public = [address for address in self.public if _version(address) == version]
            if len(public) > 1:
                raise _refusal("public-address", f"{public[1]}: one of IPv{version} is given already, {public[0]}")
            if public and not self._sends_from(version):
                raise _refusal("public-address", f"{public[0]} is IPv{version} and no --ice-address is")
        if len(self.servers) > MOST_SERVERS:
            raise _refusal("ice-server", f"it is given {len(self.servers)} times; at most {MOST_SERVERS} are asked")
        for server in self.servers:
            # A relay is reached from any address; what a name stands for is known when it is asked.
            if not server.relays and server.ip_version and not self._sends_from(server.ip_version):
                raise _refusal("ice-server", f"{server.url} is IPv{server.ip_version} and no --ice-address is")
        bare = [server.url for server in self.servers if server.relays and server.username is None]
        if bare and self.turn_secret is None:
            cure = "write turn:USER:PASSWORD@HOST, or give --turn-secret"
            raise _refusal("ice-server", f"{bare[0]} has no credentials: {cure}")
        if self.turn_secret is not None and not bare:
            raise _refusal("turn-secret", "it needs an --ice-server turn:HOST without user and password")

    def _sends_from(self, version: int) -> bool:
        return not self.addresses or any(_version(address) == version for address in self.addresses)

    def public_of(self, address: str) -> str:
        """The address by which viewers know an address of this machine."""
        return next((public for public in self.public if _version(public) == _version(address)), address)


def add_options(options: argparse.ArgumentParser) -> None:
    """Adds the options to a command line; `from_arguments` reads them."""
    options.add_argument(
        "--ice-address",
        metavar="IP",
        action="append",
        default=[],
        type=_checked(lambda text: str(ipaddress.ip_address(text))),
        help="send media from this address only; may be repeated (default: every address but loopback)",
    )
    options.add_argument(
        "--public-address",
        metavar="IP",
        action="append",
        default=[],
        type=_checked(public_address),
        help="address by which viewers reach this machine, where a router maps it 1:1; one of each family",
    )
    options.add_argument(
        "--media-ports",
        metavar="A-B",
        type=_checked(ports.parse_range),
        help="UDP ports of media, one a viewer (default: any that is free)",
    )
    options.add_argument(
        "--ice-server",
        metavar="URL",
        action="append",
        default=[],
        type=_checked(ice_server.parse),
        help="STUN or TURN server for this server and its viewers: stun:HOST, turn:USER:PASSWORD@HOST?transport=tcp, "
        "turns:...; may be repeated",
    )
    options.add_argument(
        "--turn-secret",
        metavar="SECRET",
        type=_checked(_secret),
        help="make time-limited credentials for TURN servers that have none (coturn's use-auth-secret)",
    )


def from_arguments(arguments: argparse.Namespace) -> NetworkConfig:
    """The settings of a command line. Raises ValueError where they cannot work, together or on this machine."""
    config = NetworkConfig(
        tuple(dict.fromkeys(arguments.ice_address)),
        tuple(dict.fromkeys(arguments.public_address)),
        arguments.media_ports,
        tuple(dict.fromkeys(arguments.ice_server)),
        arguments.turn_secret,
    )
    for address in config.addresses:
        _check_local(address)
    return config


def public_address(text: str) -> str:
    """An address that viewers can be told. Raises ValueError."""
    ip = ipaddress.ip_address(text)
    if isinstance(ip, ipaddress.IPv6Address) and (ip.scope_id or ip.ipv4_mapped or ip.is_link_local):
        raise ValueError(f"{text!r} cannot be reached from elsewhere: give a global address, IPv4 in its own form")
    if ip.is_unspecified or ip.is_multicast or str(ip) == "255.255.255.255":
        raise ValueError(f"{text!r} is not the address of one machine")
    return str(ip)


def _check_local(address: str) -> None:
    """Raises ValueError unless this machine has the address."""
    family = socket.AF_INET6 if _version(address) == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        reason = f"{address} is not an address of this machine; one that a router maps to it is a --public-address"
        raise _refusal("ice-address", reason) from error


def _refusal(option: str, reason: str) -> ValueError:
    """In argparse's words."""
    return ValueError(f"argument --{option}: {reason}")


def _secret(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("a secret is printable text and not empty")
    return text


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


def _checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """A converter whose ValueError argparse shows as it is."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
