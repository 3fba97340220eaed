"""Files that are whole or not there."""

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.wire.files import check_target, new_file, write_atomically

ROOT = Path(__file__).parents[1]
LONGEST_NAME = 255  # bytes, of nearly all disks


@contextmanager
def limited(limit_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow beyond a limit: a full disk that needs no disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """An error while writing keeps what was there and leaves no part behind."""
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match=r"file cannot be written \(disk full\)"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_block_is_left_as_it_is(tmp_path: Path) -> None:
    """What else goes wrong while a file is written is not blamed on it."""
    with pytest.raises(OSError, match="^another file$"), new_file(tmp_path / "file") as part:
        part.write_text("half")
        raise OSError("another file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a:b", "file:f", "-f", "x" * LONGEST_NAME, "ü" * (LONGEST_NAME // 2), "f.part"])
def test_any_name_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Names may look like protocols and options, and be as long as the disk allows."""
    monkeypatch.chdir(tmp_path)
    check_target(Path(name))
    write_atomically(Path(name), lambda part: part.write_text("new"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "new")]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, there: bool) -> None:
    """What it points to is written, whether that is there or not."""
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link", tmp_path / "folder" / "file"
    link.symlink_to("folder/file")
    if there:
        target.write_text("old")
    check_target(link)
    write_atomically(link, lambda part: part.write_text("new"))
    assert link.is_symlink() and target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    """It is there afterwards, as are devices; a full one is an error with its name."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        check_target(pipe)
        write_atomically(pipe, lambda part: part.write_text("new"))
        assert reader.stdout is not None and reader.stdout.read() == "new"
    write_atomically(Path(os.devnull), lambda part: part.write_text("new"))
    assert stat.S_ISFIFO(pipe.stat().st_mode) and stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(OSError, match=r"/dev/full cannot be written \(No space left on device\): make room"):
        write_atomically(Path("/dev/full"), lambda part: part.write_text("new"))


def test_what_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    """Wrong suffixes, folders, missing folders, what is read, loops and long names, each in one line with a cure."""
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "file.txt").write_text("old")
    (tmp_path / "other.txt").hardlink_to(tmp_path / "file.txt")
    (tmp_path / "lost.txt").symlink_to("missing/file.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    for name, words in (
        ("file.mp4", r"file\.mp4 does not end in \.txt"),
        ("folder.txt", r"folder\.txt is a folder: give"),
        ("missing/file.txt", r"the folder .*/missing does not exist: make it first"),
        ("file.txt/file.txt", "Not a directory"),
        ("lost.txt", r"the folder .*/missing does not exist: make it first"),
        ("loop.txt", r"loop\.txt cannot be written \(Too many levels of symbolic links\)"),
        ("file.txt", r"file\.txt is what is read"),
        ("other.txt", r"other\.txt is what is read"),
        ("x" * LONGEST_NAME + ".txt", r"\(File name too long\): give a shorter name"),
    ):
        with pytest.raises((ValueError, OSError), match=words) as caught:
            check_target(tmp_path / name, ".txt", source=tmp_path / "file.txt")
        assert len(str(caught.value).splitlines()) == 1
    assert (tmp_path / "file.txt").read_text() == "old"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_protected_places_are_refused(tmp_path: Path) -> None:
    """Folders and files that this user may not write."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o444)
    (tmp_path / "folder").mkdir(0o555)
    for path in (tmp_path / "file", tmp_path / "folder" / "file"):
        with pytest.raises(OSError, match=r"cannot be written \(Permission denied\)"):
            check_target(path)


@pytest.mark.skipif(not os.path.ismount("/sys"), reason="no file system that is read-only to everybody")
def test_a_file_system_without_files_is_refused() -> None:
    """Root gets the same line."""
    with pytest.raises(OSError, match=r"/sys/file cannot be written \(.*\): give another place"):
        check_target(Path("/sys/file"))


def test_a_full_disk_is_noticed_before_and_after(tmp_path: Path) -> None:
    """A place without room for a block is refused; where the room ends later, nothing stays behind."""
    path = tmp_path / "file"
    with limited(1000), pytest.raises(OSError, match=r"file cannot be written \(File too large\): raise"):
        check_target(path)
    with limited(10_000), pytest.raises(OSError, match=r"file cannot be written \(File too large\): raise"):
        write_atomically(path, lambda part: part.write_bytes(bytes(20_000)))
    assert not list(tmp_path.iterdir())


def test_a_full_file_system_is_noticed(tmp_path: Path) -> None:
    """One of 64 kB in memory, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(OSError, match=r"big cannot be written \(No space left on device\): make room"):
            write_atomically(disk / "big", lambda part: part.write_bytes(bytes(100_000)))
        assert not list(disk.iterdir())
        (disk / "filling").write_bytes(bytes(65_536))
        with pytest.raises(OSError, match=r"small cannot be written \(No space left on device\): make room"):
            check_target(disk / "small")
        assert [path.name for path in disk.iterdir()] == ["filling"]
    finally:
        subprocess.run(["umount", disk], check=True)


PROGRAM = """
import sys, time
from pathlib import Path
from engine.wire.files import new_file, unfinished
folder = Path(sys.argv[1])
with new_file(folder / "file") as part, unfinished(folder / "work") as work:
    work.mkdir()
    (work / "piece").write_text("half")
    part.write_text("half")
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """A process that a signal ends, ends as the signal says, with the old file there and nothing unfinished."""
    (tmp_path / "file").write_text("old")
    with subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 30
        while not list(tmp_path.glob("*.part")) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(10) == -number
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


FORKING = """
import os, signal, sys
from pathlib import Path
from engine.wire.files import unfinished
with unfinished(Path(sys.argv[1])) as part:
    part.write_text("half")
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert part.exists()
assert not part.exists()
"""


def test_a_forked_child_leaves_what_its_parent_writes(tmp_path: Path) -> None:
    """Its end by a signal removes nothing of another process."""
    subprocess.run([sys.executable, "-c", FORKING, tmp_path / "part"], cwd=ROOT, check=True)
