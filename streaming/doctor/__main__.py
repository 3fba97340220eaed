"""`python -m streaming.doctor [options of the server]` says what of network, codecs, processor and weights works here.

With `--url` it asks a server that runs, which knows its own ports and engine. Torch is only asked in a process of its
own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streaming.doctor.findings import OK, PROBLEM, Finding, examine_machine, lines
from streaming.doctor.media_path import examine_network
from streaming.media import network
from streaming.media.ice import IceAgent

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
