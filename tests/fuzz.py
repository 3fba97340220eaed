"""`python tests/fuzz.py --runs 100000`: strange inputs for all that reads what strangers send or disks hold.

Each target (`fuzz_targets.py`) runs in a process of its own, which is started again where it dies. Inputs are good ones
that hypothesis changes, or with `--tool atheris` what libFuzzer finds by coverage. A finding is any error but the
documented one, an input that takes more than HANG_S of computing three times in a row, and a process that died. The
smallest input of each kind of finding is kept in `--out`. The exit status is 1 where there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HANG_S = 1.0  # of computing, for one input
STUCK_S = 60.0  # without an input that ends: the process is ended
ROUND = 500  # inputs that hypothesis makes in a row, so that what it remembers stays small
HOLD = 1 << 16  # bytes of the file with the input that is being tried
MOST_DEATHS = 20  # of the processes of a target


class Watch:
    """What became of the inputs of one target, written to a file as it goes on."""

    def __init__(self, name: str, check: Callable[[bytes], bool], folder: Path, runs: int) -> None:
        self._check, self._path, self._runs, self._out = check, folder / f"{name}.json", runs, folder / name
        self.report: dict[str, Any] = {"inputs": 0, "taken": 0, "slowest_s": 0.0, "findings": {}}
        if self._path.exists():
            self.report = json.loads(self._path.read_text())
        with (folder / f"{name}.input").open("wb+") as file:
            file.truncate(HOLD)
            self._held = mmap.mmap(file.fileno(), HOLD)
        self._written_s = 0.0

    @property
    def done(self) -> bool:
        return bool(self.report["inputs"] >= self._runs)

    def __call__(self, data: bytes) -> None:
        """Tries one input."""
        # Where it ends the process, it is found here.
        self._held[: 8 + min(len(data), HOLD - 8)] = len(data).to_bytes(8, "little") + data[: HOLD - 8]
        self.report["inputs"] += 1
        spent_s = self._try(data)
        if spent_s > HANG_S:
            spent_s = min([spent_s, self._try(data), self._try(data)])
        if spent_s > HANG_S:
            self._found(data, f"takes {spent_s:.1f} s", "hang")
        self.report["slowest_s"] = max(self.report["slowest_s"], round(spent_s, 3))
        if self.done or time.monotonic() - self._written_s > 1.0:
            self.write()

    def _try(self, data: bytes) -> float:
        began_s = time.process_time()
        try:
            self.report["taken"] += bool(self._check(data))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in place if frame.filename.startswith(str(ROOT))][-1]
            where = f"{Path(own.filename).name} {own.name}"
            self._found(data, "".join(traceback.format_exception(error)[-6:]), f"{type(error).__name__} in {where}")
        return time.process_time() - began_s

    def _found(self, data: bytes, told: str, kind: str) -> None:
        findings = self.report["findings"]
        before = findings.get(kind, {"bytes": 1 << 62, "times": 0})
        findings[kind] = before | {"times": before["times"] + 1}
        if len(data) < before["bytes"]:
            self._out.mkdir(exist_ok=True)
            path = self._out / hashlib.blake2b(kind.encode(), digest_size=6).hexdigest()
            path.write_bytes(data)
            findings[kind] |= {"bytes": len(data), "input": str(path), "told": told}
        self.write()

    def write(self) -> None:
        """Puts the report where who started this process finds it."""
        self._written_s = time.monotonic()
        self._path.write_text(json.dumps(self.report))


@contextlib.contextmanager
def _imported(tool: str) -> Iterator[None]:
    """Imports within the block are watched by atheris, if that is the tool."""
    if tool == "atheris":
        import atheris

        with atheris.instrument_imports(include=["engine", "streaming"]):
            yield
    else:
        yield


def work(name: str, tool: str, runs: int, seed: int, folder: Path) -> int:
    """Tries inputs for one target, in a process of its own."""
    with _imported(tool):
        import fuzz_targets
    import torch
    from tiny import tiny_config

    from engine.config import PRESETS

    PRESETS["tiny"] = tiny_config
    torch.set_num_threads(1)
    target = next(one for one in fuzz_targets.TARGETS if one.name == name)
    watch = Watch(name, target.check, folder, runs)
    seeds = target.seeds()
    if tool == "atheris":
        _cover(watch, seeds, target.words, seed, folder / f"{name}.corpus")
    else:
        _change(watch, seeds, target.words, seed)
    watch.write()
    return 0


def _change(watch: Watch, seeds: Sequence[bytes], words: Sequence[bytes], seed: int) -> None:
    import hypothesis
    from fuzz_inputs import inputs

    plan = hypothesis.settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    while not watch.done:

        @hypothesis.seed(f"{seed} {watch.report['inputs']}")
        @plan
        @hypothesis.given(inputs(seeds, words))
        def run(data: bytes) -> None:
            if not watch.done:
                watch(data)

        run()


def _cover(watch: Watch, seeds: Sequence[bytes], words: Sequence[bytes], seed: int, corpus: Path) -> None:
    import atheris
    from fuzz_inputs import LONGEST

    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    known = corpus.with_suffix(".words")
    hexadecimal = ["".join(map(r"\x{:02x}".format, word)) for word in words if word]
    # libFuzzer ends where a file of words has none.
    known.write_text("".join(f'"{word}"\n' for word in hexadecimal or [r"\x00"]))

    def run(data: bytes) -> None:
        if watch.done:
            watch.write()
            os._exit(0)
        watch(data)

    options = [f"-seed={seed + watch.report['inputs'] + 1}", f"-max_len={LONGEST}", f"-dict={known}", "-timeout=30"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=0", str(corpus)], run)
    atheris.Fuzz()


def drive(name: str, tool: str, runs: int, seed: int, folder: Path, limit_s: float) -> dict[str, Any]:
    """Lets processes try inputs for a target until there were `runs`, or for so long; returns the report."""
    path, deaths, began_s = folder / f"{name}.json", [], time.monotonic()
    path.unlink(missing_ok=True)
    report: dict[str, Any] = {"inputs": 0, "taken": 0, "findings": {}}
    while report["inputs"] < runs and len(deaths) < MOST_DEATHS and time.monotonic() - began_s < limit_s:
        words = [sys.executable, __file__, "--worker", name, "--tool", tool, "--runs", str(runs), "--seed", str(seed)]
        with (folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen([*words, "--out", str(folder)], stdout=log, stderr=log, cwd=ROOT)
        status = _wait(process, path, began_s + limit_s)
        report = json.loads(path.read_text()) if path.exists() else report
        if status:
            deaths.append(_death(folder, name, status))
            # It counts: it was tried.
            report["inputs"] += 1
            path.write_text(json.dumps(report))
    return report | {"deaths": deaths, "seconds": round(time.monotonic() - began_s, 1)}


def _wait(process: subprocess.Popen[bytes], path: Path, end_s: float) -> int | str:
    """The exit status; or why it had to be ended."""
    before, moved_s = "", time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.5)
        now = path.read_text() if path.exists() else ""
        if now != before:
            before, moved_s = now, time.monotonic()
        if time.monotonic() > end_s:
            process.kill()
            process.wait()
            return 0
        if time.monotonic() - moved_s > STUCK_S:
            process.kill()
            process.wait()
            return f"no input ended for {STUCK_S:.0f} s"


def _death(folder: Path, name: str, status: int | str) -> dict[str, Any]:
    """Keeps the input that a process died of."""
    held = (folder / f"{name}.input").read_bytes()
    data = held[8 : 8 + int.from_bytes(held[:8], "little")]
    path = folder / f"{name}-died-{hashlib.blake2b(data, digest_size=6).hexdigest()}"
    path.write_bytes(data)
    return {"status": status, "input": str(path), "bytes": len(data)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, and prints the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz.py", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="inputs, of all targets together (default: 100000)")
    parser.add_argument("--tool", choices=("hypothesis", "atheris"), default="hypothesis", help="what makes them")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default: 0)")
    parser.add_argument("--only", action="append", metavar="TARGET", help="this target only; may be repeated")
    parser.add_argument("--minutes", type=float, default=60.0, help="most time of a target (default: 60)")
    parser.add_argument("--out", type=Path, help="folder for reports and inputs (default: a temporary one)")
    parser.add_argument("--worker", metavar="TARGET", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    # Not kept: of a file that is loaded with it nobody knows where it came from.
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    folder = (arguments.out or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    if arguments.worker:
        return work(arguments.worker, arguments.tool, arguments.runs, arguments.seed, folder)
    import fuzz_targets

    folder.mkdir(parents=True, exist_ok=True)
    names = {one.name: one.share for one in fuzz_targets.TARGETS if not arguments.only or one.name in arguments.only}
    if not names or arguments.runs < 1:
        parser.error(f"targets are {', '.join(one.name for one in fuzz_targets.TARGETS)}, and 1 run is the least")
    reports = {}
    for name, share in names.items():
        runs = max(1, round(arguments.runs * share / sum(names.values())))
        reports[name] = drive(name, arguments.tool, runs, arguments.seed, folder, 60 * arguments.minutes)
        sys.stdout.write(_line(name, reports[name]))
        sys.stdout.flush()
    total = sum(report["inputs"] for report in reports.values())
    wrong = sum(len(report["findings"]) + len(report["deaths"]) for report in reports.values())
    sys.stdout.write(f"{total} inputs, {wrong} findings; reports in {folder}\n")
    whole = {"tool": arguments.tool, "seed": arguments.seed, "inputs": total, "targets": reports}
    (folder / "report.json").write_text(json.dumps(whole, indent=1) + "\n")
    return 1 if wrong else 0


def _line(name: str, report: dict[str, Any]) -> str:
    rows = [
        f"{name:10} {report['inputs']:7d} inputs, {report['taken']:6d} taken, {report['seconds']:6.0f} s, "
        f"slowest {report.get('slowest_s', 0.0):.2f} s"
    ]
    rows += [f"    {kind}: {one['times']} times, {one['input']}" for kind, one in report["findings"].items()]
    rows += [f"    DIED with {one['status']}: {one['input']}" for one in report["deaths"]]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
