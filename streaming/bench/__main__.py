"""Latency and smoothness as a viewer sees them: joins as a real decoding viewer, looks at the pixels, changes prompts,
and watches what it costs.

`python -m streaming.bench --seconds N --json F` starts a server and measures it; `--url` measures one that runs, and
`--whep` any WHEP endpoint, as far as that can be seen from outside.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.wire.files import check_target, write_atomically
from streaming.bench import compare, page
from streaming.bench.peers import PEERS
from streaming.bench.profiles import PROFILES
from streaming.bench.recording import BenchError
from streaming.bench.run import BenchPlan, measure
from streaming.bench.server_process import SERVER
from streaming.bench.watch import WatchConfig
from streaming.bench.waves import WaveConfig
from streaming.media.hub import CODECS

MODES = {"flow": ("flow",), "cut": ("cut",), "both": ("flow", "cut")}  # in turn


def parse(argv: Sequence[str] | None) -> BenchPlan:
    """The command line as a plan."""
    parser = argparse.ArgumentParser(prog="python -m streaming.bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="how long to watch (default: 60)")
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="write the figures there")
    parser.add_argument("--html", type=Path, metavar="F", help="write a page with pictures there, too")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="say what is better or worse than there")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", type=lambda url: url.rstrip("/"), help="measure our server there, start none")
    where.add_argument("--whep", metavar="URL", help="measure any WHEP endpoint")
    parser.add_argument("--token", help="bearer token of the server")
    parser.add_argument("--command", help="shell command that changes the prompt to $PROMPT, with --whep")
    parser.add_argument("--codec", choices=CODECS, help="what to ask for (default: vp8; with --whep what it chooses)")
    parser.add_argument("--mode", choices=MODES, default="flow", help="how prompts change (default: flow)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="runs, of which medians are given")
    parser.add_argument("--viewers", type=int, metavar="N", help="a wave of N viewers that do not decode")
    parser.add_argument("--ramp", type=float, default=10.0, metavar="R", help="of whom R join a second (default: 10)")
    parser.add_argument("--browser", action="store_true", help="watch in Chromium, too")
    parser.add_argument("--profile", action="append", default=[], choices=PROFILES, help="an impaired network, too")
    parser.add_argument("--peers", action="append", default=[], choices=PEERS, help="other servers in the same run")
    arguments = parser.parse_args(argv)
    try:
        for target in (arguments.json, arguments.html):
            if target is not None:
                check_target(target)
        return _plan(arguments)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _plan(arguments: argparse.Namespace) -> BenchPlan:
    """Raises ValueError for what does not go together."""
    if arguments.command is not None and arguments.whep is None:
        raise ValueError("--command goes with --whep: our own server has an API for prompts")
    if (arguments.url or arguments.whep) and (arguments.profile or arguments.peers):
        raise ValueError("--profile and --peers start servers of their own: leave out --url and --whep")
    if not 1 <= arguments.repeat <= 100:
        raise ValueError(f"--repeat {arguments.repeat}: from 1 to 100 runs")
    if arguments.viewers is not None and (arguments.viewers < 1 or not 0 < arguments.ramp < float("inf")):
        raise ValueError(f"--viewers {arguments.viewers} --ramp {arguments.ramp:g}: both must be above 0")
    codec = arguments.codec or (None if arguments.whep else "vp8")
    return BenchPlan(
        WatchConfig(arguments.seconds, codec, MODES[arguments.mode], arguments.command),
        arguments.json,
        arguments.html,
        arguments.compare,
        arguments.url,
        arguments.whep,
        arguments.token,
        arguments.repeat,
        None if arguments.viewers is None else WaveConfig(arguments.viewers, arguments.ramp),
        arguments.browser,
        tuple(dict.fromkeys(arguments.profile)),
        tuple(dict.fromkeys(arguments.peers)),
    )


def main(argv: Sequence[str] | None = None, command: Sequence[str] = SERVER) -> int:
    """Measures and writes; returns the exit status: 1 it failed or something was refused, 2 bad arguments."""
    plan = parse(argv)
    status = 1
    try:
        # Before anything is measured: a report of another schema would be a surprise after minutes.
        old = None if plan.compare is None else compare.load(plan.compare)
        report = measure(plan, command)
        compared = [] if old is None else list(compare.rows(old, report))
        sys.stdout.write(page.summary(report))
        if compared:
            sys.stdout.write("\n" + compare.table(compared))
        _write(plan.json, page.as_json(report))
        if plan.html is not None:
            _write(plan.html, page.page(report, compared))
        status = 1 if report["failed"] else 0
    except* BenchError as group:
        sys.stderr.writelines(f"bench failed: {failure}\n" for failure in group.exceptions)
    except* (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("bench stopped; nothing was written\n")
    return status


def _write(target: Path, text: str) -> None:
    try:
        write_atomically(target, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise BenchError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
