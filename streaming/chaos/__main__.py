"""Kills, stops and bad disks, viewers, offers and prompts at random under a seed, while a viewer checks every frame.
With `--calm` none of it: an hour that nothing disturbs, watched.

Everything is on loopback and ends by itself. The exit status is 1 where a frame was wrong or missing, a process or
memory was left behind, or a request was answered as none may be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from engine.wire.files import check_target, write_atomically
from streaming.bench.client import RequestError
from streaming.bench.recording import BenchError
from streaming.bench.server_process import SERVER, machine
from streaming.chaos.faults import FAULTS, Fault, Scene, server_killed
from streaming.chaos.memory import Growth
from streaming.chaos.report import Flaw, Report
from streaming.chaos.stage import Stage
from streaming.chaos.witness import Witness

MOST_MINUTES = 24 * 60.0
PAUSE_S = (1.0, 9.0)  # between two faults
FIRST_S = 60.0  # until the first frame
LAST_FRAMES = 64  # more than are buffered
CALM_S = 90.0  # at the end, for the video to go on
FOLLOWED_S = 900.0  # in a run this long the server lives between its first and last minutes, and must not grow
KILLS_S = 180.0  # those minutes, in which it is killed


async def run(
    minutes: float, seed: int, command: Sequence[str], chosen: Mapping[Fault, int], log: Path | None = None
) -> Report:
    """Lets the chosen faults happen for so long, each as often as it is said; `log` gets what the servers said.

    Raises BenchError without a server.
    """
    conditions = machine() | {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    report, rng = Report(seed, conditions=conditions), random.Random(seed)
    server, engine = Growth("server"), Growth("engine")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        stage = Stage(command, Path(folder))
        witness = Witness(stage.http)
        try:
            await stage.start()
            tasks = [asyncio.create_task(witness.run())]
            try:
                await _frames(witness, 1, FIRST_S)
                await stage.account()
                began_s, count = time.monotonic(), Counter[str]()
                tasks.append(asyncio.create_task(server.follow(lambda: stage.look(stage.pid, began_s))))
                tasks.append(asyncio.create_task(engine.follow(lambda: stage.look(stage.engine(), began_s))))
                while (left_s := began_s + 60 * minutes - time.monotonic()) > 0:
                    await asyncio.sleep(min(rng.uniform(*PAUSE_S), left_s))
                    if not chosen:
                        continue
                    now = _allowed(chosen, time.monotonic() - began_s, 60 * minutes)
                    (fault,) = rng.choices(list(now), list(now.values()))
                    count[fault.__name__] += 1
                    report.timeline.append((round(time.monotonic() - began_s, 1), fault.__name__, witness.last))
                    report.findings += await fault(Scene(stage, witness, rng))
                report.findings += await _calm(stage, witness)
                report.findings += await stage.account()
                report.seconds, report.faults = time.monotonic() - began_s, dict(count)
                report.seen = _seen(witness)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        finally:
            left = await stage.stop()
            if log is not None and stage.log.exists():
                shutil.copyfile(stage.log, log)
    report.findings += [Flaw("leak", words) for words in left]
    report.growth = {growth.name: growth.figures() for growth in (server, engine)}
    report.findings += witness.flaws + server.findings() + engine.findings()
    return report


def _allowed(chosen: Mapping[Fault, int], at_s: float, whole_s: float) -> Mapping[Fault, int]:
    """All but the server's kill, where one server is followed."""
    followed = whole_s >= FOLLOWED_S and KILLS_S < at_s < whole_s - KILLS_S
    others = {fault: share for fault, share in chosen.items() if fault is not server_killed}
    return others or chosen if followed else chosen


async def _frames(witness: Witness, count: int, limit_s: float) -> None:
    """Waits for new frames; that they do not come is found wrong."""
    wanted, give_up_s = witness.frames + count, time.monotonic() + limit_s
    while witness.frames < wanted:
        if time.monotonic() > give_up_s:
            witness.findings.append(Flaw("missing", f"no frame follows {witness.last} within {limit_s:.0f} s"))
            return
        await asyncio.sleep(0.1)


async def _calm(stage: Stage, witness: Witness) -> list[Flaw]:
    """Waits until the video goes on behind the last fault; that it does not is found wrong."""
    give_up_s = time.monotonic() + CALM_S
    state = "gone"
    while time.monotonic() < give_up_s:
        with suppress(RequestError):
            report = await stage.report()
            state = f"{report['state']}: {report['error']}"
            if report["state"] in ("live", "idle"):
                await _frames(witness, LAST_FRAMES, CALM_S)
                return []
        await asyncio.sleep(0.1)
    return [Flaw("answer", f"the channel is {state}")]


def _seen(witness: Witness) -> dict[str, float]:
    return {
        "frames": witness.frames,
        "repeats": witness.repeats,
        "lost_on_the_way": witness.lost,
        "lost_with_servers": witness.between_servers,
        "joins": witness.joins,
        "longest_gap_s": round(witness.longest_gap_s, 2),
    }


def main(argv: Sequence[str] | None = None, command: Sequence[str] = SERVER) -> int:
    """Runs, and prints the report; returns the exit status: 1 something was wrong, 2 bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m streaming.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, metavar="N", help="how long (default: 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what happens when (default: 0)")
    parser.add_argument("--json", type=Path, metavar="F", help="write the report there, too, and the log")
    names = [fault.__name__ for fault in FAULTS]
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--only", action="append", choices=names, help="this fault only; may be repeated")
    some.add_argument("--calm", dest="only", action="store_const", const=[], help="no faults")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.minutes <= MOST_MINUTES:
        parser.error(f"--minutes {arguments.minutes:g}: above 0, and {MOST_MINUTES:g} at most")
    try:
        if arguments.json is not None:
            check_target(arguments.json, ".json")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    log = None if arguments.json is None else arguments.json.with_suffix(".log")
    only = names if arguments.only is None else arguments.only
    chosen = {fault: share for fault, share in FAULTS.items() if fault.__name__ in only}
    try:
        report = asyncio.run(run(arguments.minutes, arguments.seed, command, chosen, log))
    except BenchError as error:
        sys.stderr.write(f"chaos failed: {error}\n")
        return 1
    sys.stdout.write(report.text())
    if arguments.json is not None:
        words = sys.argv[1:] if argv is None else list(argv)
        told = {"command": shlex.join(["python", "-m", "streaming.chaos", *words])} | report.as_json()
        text = json.dumps(told, indent=1) + "\n"
        write_atomically(arguments.json, lambda part: part.write_text(text))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
