"""What is in the way of media: addresses, ports, STUN and TURN servers."""

from __future__ import annotations

import asyncio
import ipaddress
import time

from streaming.doctor.findings import NOTE, OK, PROBLEM, Finding
from streaming.media.ice import IceAgent
from streaming.media.ice_requests import IceServerError, probe
from streaming.media.ice_server import IceServer

MOST_PORTS = 256  # of a range that are tried


async def examine_network(ice: IceAgent) -> list[Finding]:
    """Addresses, ports, and every STUN and TURN server, which are asked side by side."""
    config = ice.config
    answers = await asyncio.gather(*(_ask(ice, server) for server in ice.servers() if server.usable_here))
    servers = [finding for finding, _ in answers]
    servers += [_for_players(server) for server in config.servers if not server.usable_here]
    relayed = any(finding.state == OK and finding.name.startswith("turn") for finding in servers)
    seen = next((address for _, address in answers if address is not None and _version(address) == 4), None)
    return [_addresses(ice, relayed, seen), _ports(ice), *servers]


def _addresses(ice: IceAgent, relayed: bool, seen: str | None) -> Finding:
    """Who can reach this machine, by family: most viewers have IPv4, many have it alone."""
    own, public = ice.addresses(), ice.config.public
    listed = ", ".join(own)
    if not own:
        cure = "connect a network, or give --ice-address"
        return Finding("addresses", PROBLEM, "no address to send media from", cure)
    for address in ice.unused_public():
        words = f"media is sent from {listed}, and --public-address {address} is of another family"
        return Finding("addresses", PROBLEM, words, "a public address of the family that this machine has")
    sent = f"media is sent from {listed}" + (f"; viewers are told {' and '.join(public)}" if public else "")
    if seen is not None and seen not in public and any(_version(address) == 4 for address in public):
        return Finding("addresses", PROBLEM, f"{sent}, but a STUN server sees {seen}", f"--public-address {seen}")
    parsed = [ipaddress.ip_address(address) for address in own]
    reached = {*map(_version, public), *(ip.version for ip in parsed if ip.is_global)}
    if 4 in reached:
        return Finding("addresses", OK, sent if public else f"{sent}, which viewers anywhere can reach")
    cure = f"--public-address {seen or 'IP'} where a router maps it to this machine, or --ice-server turn:..."
    if 6 in reached:
        words = f"{sent}: viewers with IPv6 can reach it, those with IPv4 alone in this network at most"
        cure = cure if any(ip.version == 4 for ip in parsed) else "--ice-server turn:... with a relay that has IPv4"
    elif all(ip.is_loopback for ip in parsed):
        words, cure = f"{sent}: viewers on this machine only", "--ice-address with another address"
    else:
        words = f"{sent}: viewers in this network only"
    if relayed:
        return Finding("addresses", OK, f"{words}, and others through TURN")
    return Finding("addresses", NOTE, words, cure)


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


def _ports(ice: IceAgent) -> Finding:
    ports = ice.config.ports
    if ports is None:
        words = "media takes any free UDP port, one a viewer and address"
        return Finding("ports", OK, words, "--media-ports A-B where a firewall or a container must let them through")
    size, free = min(len(ports), MOST_PORTS), ice.ports.count_free(ice.addresses(), MOST_PORTS)
    words = f"{free} of the {'first ' if size < len(ports) else ''}{size} UDP ports of {ports} are free, one a viewer"
    if not free:
        cure = "end what uses them, choose a range that may be bound (from 1024 on), or a larger one"
        return Finding("ports", PROBLEM, words, cure)
    return Finding("ports", OK, words)


async def _ask(ice: IceAgent, server: IceServer) -> tuple[Finding, str | None]:
    """What a server says, and how a STUN server sees this machine."""
    began_s = time.monotonic()
    try:
        address = await probe(server)
    except IceServerError as error:
        cures = ("its credentials or --turn-secret", "its host, port and firewall; viewers and server go on without it")
        return Finding(server.url, PROBLEM, str(error), f"check {cures[0] if error.final else cures[1]}"), None
    took_ms = 1000 * (time.monotonic() - began_s)
    if server.relays:
        return Finding(server.url, OK, f"relays through {address}; asked for {took_ms:.0f} ms"), None
    return Finding(server.url, OK, f"sees this machine as {address}; asked for {took_ms:.0f} ms"), address


def _for_players(server: IceServer) -> Finding:
    return Finding(server.url, NOTE, "is for players only: this server speaks stun:, turn: and turns: over TCP")
