"""Strange input of every kind: a little of it, and again what was found once. `make fuzz` tries much more."""

from collections.abc import Iterator
from pathlib import Path

import fuzz
import fuzz_server
import pytest
from fuzz_inputs import inputs
from fuzz_targets import TARGETS, Target
from hypothesis import HealthCheck, Phase, given, settings
from tiny import tiny_config

from engine.config import PRESETS

FOUND = Path(__file__).parent / "data" / "found"  # a folder a target, an input a file
EXAMPLES = {"snapshots": 20, "starts": 60, "journals": 60, "prompts": 80, "states": 150, "bodies": 150}
MOST = 200
CHECKS = {target.name: target.check for target in TARGETS}


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    yield
    fuzz_server.stop()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_strange_input_is_taken_or_refused(target: Target) -> None:
    """With the documented error and no other, whatever it is; good input is taken."""
    seeds = target.seeds()
    assert all([target.check(seed) for seed in seeds[:3]])

    @settings(
        max_examples=EXAMPLES.get(target.name, MOST),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(seeds, target.words))
    def check(data: bytes) -> None:
        target.check(data)

    check()


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_stays_mended(path: Path) -> None:
    """Each input that fuzzing found, as small as it was found."""
    CHECKS[path.parent.name](path.read_bytes())


def test_findings_are_told(tmp_path: Path) -> None:
    """An error that is not documented is a finding with its smallest input; inputs are counted, and those taken."""

    def check(data: bytes) -> bool:
        if data.startswith(b"x"):
            raise KeyError(data)
        return bool(data)

    watch = fuzz.Watch("some", check, tmp_path, 5)
    for data in (b"", b"a", b"xyz", b"xy", b"xyzz"):
        assert not watch.done
        watch(data)
    assert watch.done and (watch.report["inputs"], watch.report["taken"]) == (5, 1)
    (finding,) = watch.report["findings"].values()
    assert finding["times"] == 3 and Path(finding["input"]).read_bytes() == b"xy" and "KeyError" in finding["told"]
    assert fuzz.Watch("some", check, tmp_path, 6).report["inputs"] == 5


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    """The input that it died of is kept."""
    watch = fuzz.Watch("some", bool, tmp_path, 5)
    watch(b"the last")
    death = fuzz._death(tmp_path, "some", -11)
    assert Path(death["input"]).read_bytes() == b"the last" and death["status"] == -11


def test_the_command_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So many inputs are tried in a process of its own, and nothing is found."""
    assert fuzz.main(["--runs", "40", "--only", "fragments", "--out", str(tmp_path)]) == 0
    assert "40 inputs, 0 findings" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        fuzz.main(["--only", "nothing"])
