"""What of network, codecs, processor and weights works here, in words, each with its cure.

`python -m streaming.doctor [options of the server]` examines this machine; with `--url` it asks a server that runs,
which knows its own ports and engine. Torch is only asked in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from streaming.channels.report import ChannelReport
from streaming.media import network
from streaming.media.hub import CODECS
from streaming.media.ice import IceAgent
from streaming.media.ice_requests import IceServerError, probe
from streaming.media.ice_server import IceServer

OK, NOTE, PROBLEM = "ok", "note", "problem"
ENCODERS = {"vp8": "libvpx", "h264": "libx264"}
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # of /proc/cpuinfo
MOST_PORTS = 256  # of a range that are tried
ENGINE_LIMIT_S = 300.0
ENGINE = """
import json, sys, time, torch, engine
preset, weights, device = sys.argv[1:]
began_s = time.monotonic()
error = None
try:
    engine.load(preset, weights or None, device)
except ValueError as fault:
    error = str(fault)
found = torch.cuda.get_device_name() if torch.cuda.is_available() else "the processor"
print(json.dumps([torch.__version__, found, time.monotonic() - began_s, error]))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: str  # OK, NOTE for what some viewers or setups miss, or PROBLEM
    words: str
    cure: str | None = None


async def examine_network(ice: IceAgent) -> list[Finding]:
    """Addresses, ports, and every STUN and TURN server, which are asked side by side."""
    config = ice.config
    answers = await asyncio.gather(*(_ask(ice, server) for server in ice.servers() if server.usable_here))
    servers = [finding for finding, _ in answers]
    servers += [_for_players(server) for server in config.servers if not server.usable_here]
    relayed = any(finding.state == OK and finding.name.startswith("turn") for finding in servers)
    seen = next((address for _, address in answers if address is not None), None)
    return [_addresses(ice, relayed, seen), _ports(ice), *servers]


def examine_machine() -> list[Finding]:
    """Cores, bf16 and codecs of the machine."""
    return [_cores(), _bf16(), *map(_codec, CODECS)]


def examine_channel(report: ChannelReport) -> Finding:
    """The engine, its weights and its speed, as a channel reports them."""
    name = f"channel {report.id}"
    if report.width is None or report.state in ("failed", "stalled", "restarting"):
        words = f"{report.state}: {report.error or report.progress or 'the engine loads its weights'}"
        waits = report.state == "starting"
        cure = "wait until it is ready" if waits else "docs/DEBUGGING.md says what each reason means"
        return Finding(name, NOTE if waits else PROBLEM, words, cure)
    picture = f"preset {report.preset} makes {report.width}x{report.height} at {report.fps:g} frames a second"
    factor = report.realtime_factor
    if factor is not None and factor < 1:
        cure = "fewer --steps, a smaller preset, or a faster device"
        return Finding(name, PROBLEM, f"{picture}, but only {factor:.2f} s of video a second: frames repeat", cure)
    speed = "" if factor is None else f", {factor:.1f} s of video a second"
    return Finding(name, OK, picture + speed)


def examine_https(scheme: str, host: str) -> Finding:
    """How the page was asked for."""
    if scheme == "https":
        return Finding("https", OK, "this report came over HTTPS")
    try:
        local = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        local = False
    if local:
        return Finding("https", OK, "HTTP on this machine itself, which browsers trust like HTTPS")
    words = "HTTP without TLS: a token and prompts can be read on the way, and pages on HTTPS cannot embed the video"
    return Finding(
        "https", NOTE, words, "give --tls-cert and --tls-key, or put a proxy with TLS before it: docs/PROXY.md"
    )


def examine_engine(preset: str, weights: str | None, device: str) -> Finding:
    """Loads the weights in a process of its own."""
    command = [sys.executable, "-c", ENGINE, preset, weights or "", device]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=ENGINE_LIMIT_S, cwd=Path(__file__).parents[1]
        )
        version, found, took_s, error = json.loads(result.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return Finding("engine", PROBLEM, "the engine cannot be loaded", "python -m engine generate --help shows why")
    if error is not None:
        return Finding("engine", PROBLEM, error, "give --weights a folder that holds them, or another --device")
    return Finding("engine", OK, f"torch {version} on {found}; preset {preset} loads in {took_s:.1f} s")


def _addresses(ice: IceAgent, relayed: bool, seen: str | None) -> Finding:
    own, public = ice.addresses(), ice.config.public
    listed = ", ".join(own)
    if not own:
        return Finding(
            "addresses", PROBLEM, "no address to send media from", "connect a network, or give --ice-address"
        )
    for address in public:
        if ipaddress.ip_address(address).version not in {ipaddress.ip_address(one).version for one in own}:
            words = f"media is sent from {listed}, and --public-address {address} is of another family"
            return Finding("addresses", PROBLEM, words, "a public address of the family that this machine has")
    if public:
        words = f"media is sent from {listed}; viewers are told {' and '.join(public)}"
        if seen is not None and seen not in public and ipaddress.ip_address(seen).version == 4:
            return Finding("addresses", PROBLEM, f"{words}, but a STUN server sees {seen}", f"--public-address {seen}")
        return Finding("addresses", OK, words)
    parsed = [ipaddress.ip_address(address) for address in own]
    if any(ip.is_global for ip in parsed):
        return Finding("addresses", OK, f"media is sent from {listed}, which viewers anywhere can reach")
    mapped = f"--public-address {seen or 'IP'} where a router maps it to this machine"
    if all(ip.is_loopback for ip in parsed):
        words, cure = f"media is sent from {listed}: viewers on this machine only", "--ice-address with another address"
    else:
        words, cure = (
            f"media is sent from {listed}: viewers in this network only",
            f"{mapped}, or --ice-server turn:...",
        )
    if relayed:
        return Finding("addresses", OK, f"{words}, and others through TURN")
    return Finding("addresses", NOTE, words, cure)


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


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return Finding("cores", NOTE, "one processor core: engine and server share it", "give it two")
    return Finding("cores", OK, f"{cores} processor cores")


def _bf16() -> Finding:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    found = [flag for flag in BF16_FLAGS if flag in flags]
    if found == ["avx512_bf16"] and "avx512_fp16" in flags:
        return Finding("bf16", OK, "the processor multiplies float32 faster than bfloat16, and computes in that")
    if found:
        return Finding("bf16", OK, f"the processor multiplies bfloat16 itself ({', '.join(found)})")
    return Finding("bf16", OK, "the processor has no bfloat16 instructions: it computes in float32, which takes longer")


def _codec(codec: str) -> Finding:
    try:
        av.Codec(ENCODERS[codec], "w")
    except ValueError:
        words = f"PyAV has no {ENCODERS[codec]}: viewers who can play nothing else see nothing"
        return Finding(codec, PROBLEM, words, "pip install --force-reinstall --no-deps 'av>=18,<19'")
    return Finding(codec, OK, f"is encoded by {ENCODERS[codec]}")


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings for a terminal, problems last."""
    order = (OK, NOTE, PROBLEM)
    for finding in sorted(findings, key=lambda one: order.index(one.state)):
        yield f"{finding.state:8}{finding.name}: {finding.words}"
        if finding.cure is not None:
            yield f"{'':8}-> {finding.cure}"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the findings; returns the exit status: 1 if there is a problem, 2 for bad arguments."""
    options = _parser()
    arguments = options.parse_args(argv)
    try:
        findings = _of_server(arguments.url) if arguments.url else _of_machine(arguments)
    except ValueError as error:
        options.error(str(error))
    for line in lines(findings):
        sys.stdout.write(line + "\n")
    return int(any(finding.state == PROBLEM for finding in findings))


def _of_machine(arguments: argparse.Namespace) -> list[Finding]:
    ice = IceAgent(network.from_arguments(arguments))
    engine = examine_engine(arguments.preset, arguments.weights, arguments.device)
    return [*asyncio.run(examine_network(ice)), *examine_machine(), engine]


def _of_server(url: str) -> list[Finding]:
    request = urllib.request.Request(url.rstrip("/") + "/doctor", headers={"Accept": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            content: list[dict[str, Any]] = json.loads(reply.read())["findings"]
    except (OSError, ValueError, KeyError) as error:
        return [Finding("http", PROBLEM, f"{url} does not answer: {error}", "is the server running, and this its URL?")]
    return [Finding(**entry) for entry in content]


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m streaming.doctor", description="Says what works here, and the cure where something does not."
    )
    options.add_argument("--url", help="ask the server that runs there, instead of examining this machine")
    options.add_argument("--preset", default="mini", help="whose weights to load (default: mini)")
    options.add_argument("--weights", metavar="DIR|HUB_ID", help="weights to load instead of the preset's own")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    network.add_options(options)
    return options


if __name__ == "__main__":
    sys.exit(main())
