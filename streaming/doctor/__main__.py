"""`python -m streaming.doctor [options of the server]` says what would work of a server with these options.

It looks at HTTP port, certificate, network, codecs, processor and weights. With `--url` it asks a server that runs,
which knows its own ports and engine. Torch is only asked in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import server
from streaming.doctor.findings import NOTE, OK, PROBLEM, Finding, examine_https, examine_machine, is_local, lines
from streaming.doctor.media_path import examine_network
from streaming.doctor.remote import check_url, findings_of
from streaming.http import tls
from streaming.http.listening import listen
from streaming.media import network
from streaming.media.ice import IceAgent

LISTEN_CURES = {
    errno.EADDRINUSE: "end what uses it, or give another --port; if it is this server, ask it with --url",
    errno.EACCES: "--port from 1024 on, with a proxy before it",
}
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


def examine_engine(preset: str, weights: str | None, device: str) -> Finding:
    """Loads the weights in a process of its own."""
    command = [sys.executable, "-c", ENGINE, preset, weights or "", device]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=ENGINE_LIMIT_S, cwd=Path(__file__).parents[2]
        )
        version, found, took_s, error = json.loads(result.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return Finding("engine", PROBLEM, "the engine cannot be loaded", "python -m engine generate --help shows why")
    if error is not None:
        return Finding("engine", PROBLEM, error, "give --weights a folder that holds them, or another --device")
    return Finding("engine", OK, f"torch {version} on {found}; preset {preset} loads in {took_s:.1f} s")


def examine_http(host: str, port: int) -> Finding:
    """Whether the server could listen there."""
    place = f"{host} port {port}"
    try:
        listen(host, port).close()
    except OSError as error:
        cure = LISTEN_CURES.get(error.errno or 0, "--host with an address of this machine, 0.0.0.0 for all")
        return Finding("http", PROBLEM, f"cannot listen on {place}: {error.strerror}", cure)
    if is_local(host):
        cure = "--host 0.0.0.0 where others come without a proxy"
        return Finding("http", OK, f"{place} is free, for this machine only", cure)
    return Finding("http", OK, f"{place} is free")


def examine_tls(arguments: argparse.Namespace) -> Finding:
    """Certificate and key, or that there are none."""
    if arguments.tls_cert is None:
        return examine_https("http", arguments.host)
    try:
        tls.context(arguments.tls_cert, arguments.tls_key)
    except ValueError as error:
        cure = "give PEM files: --tls-cert with its chain, --tls-key without a passphrase"
        return Finding("https", PROBLEM, str(error), cure)
    return Finding("https", OK, f"the certificate {arguments.tls_cert} and its key can be used")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the findings; returns the exit status: 1 if there is a problem, 2 for bad arguments."""
    arguments = server.parse(_parser(), argv)
    if arguments.url:
        found = findings_of(arguments.url, arguments.view_token or arguments.token or arguments.control_token)
    else:
        found = _of_machine(arguments)
    for line in lines(found):
        sys.stdout.write(line + "\n")
    return int(any(finding.state == PROBLEM for finding in found))


def _of_machine(arguments: argparse.Namespace) -> list[Finding]:
    ice = IceAgent(network.from_arguments(arguments))
    reached = [examine_http(arguments.host, arguments.port), examine_tls(arguments)]
    if arguments.ray is not None:
        engine = Finding("engine", NOTE, "engines run on the nodes of --ray, which are not looked at")
    else:
        engine = examine_engine(arguments.preset, arguments.weights, arguments.device)
    return [*reached, *asyncio.run(examine_network(ice)), *examine_machine(), engine]


def _parser() -> argparse.ArgumentParser:
    options = server.parser()
    options.prog = "python -m streaming.doctor"
    options.description = "Says what works here for a server with these options, and the cure where something does not."
    told = "ask the server that runs there, with --view-token or --token, instead of examining this machine"
    options.add_argument("--url", type=_url, help=told)
    return options


def _url(text: str) -> str:
    try:
        return check_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
