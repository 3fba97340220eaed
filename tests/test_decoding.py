"""Pictures of strangers' files, read in a process of its own."""

import asyncio
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from engine.live import decoding
from engine.live.decoding import read_pictures
from engine.video import start_clip
from engine.video.start_clip import last_pictures, strangers_pictures
from engine.video.video_file import VideoFile

SIZE = 32, 48, 8.0
CONFIG = tiny_config()


def film(path: Path, seconds: float = 2.0) -> Path:
    """A video of the preset's size and rate."""
    with VideoFile(path, 48, 32, 8.0) as file:
        for number in range(round(seconds * 8)):
            file.write(np.full((1, 48, 48), 60 + number % 100, np.uint8))
    return path


async def test_pictures_come_as_without_a_process(tmp_path: Path) -> None:
    """Of a video, and of a picture, which stands alone."""
    path = film(tmp_path / "film.mp4", 9)
    pictures = await read_pictures(str(path), CONFIG)
    assert pictures.shape == (49, 32, 48, 3) and (pictures == last_pictures(path, *SIZE, 49)).all()
    Image.new("RGB", (96, 64), (200, 10, 10)).save(tmp_path / "one.png")
    # Without a name that tells its kind, as uploads come.
    (tmp_path / "one.png").rename(tmp_path / "one")
    pictures = await read_pictures(str(tmp_path / "one"), CONFIG)
    assert pictures.shape == (1, 32, 48, 3) and (pictures == (200, 10, 10)).all()


async def test_a_bad_file_is_refused_in_words_of_its_own(tmp_path: Path) -> None:
    """Nothing tells where it lay."""
    path = tmp_path / "upload"
    for content in (b"", b"no film" * 100, film(tmp_path / "cut.mp4").read_bytes()[:-500]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^the file ") as refused:
            await read_pictures(str(path), CONFIG)
        assert str(tmp_path) not in str(refused.value) and "\n" not in str(refused.value)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:2,\nfile://{film}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {film}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 VP8/90000\n",
    "dash": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
    "mediaPresentationDuration='PT2S'><Period><AdaptationSet mimeType='video/mp4'><Representation id='1' bandwidth='1'>"
    "<BaseURL>file://{film}</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_file_leads_to_no_other(tmp_path: Path, kind: str) -> None:
    """Playlists of files and addresses are no film, though FFmpeg knows them."""
    path = tmp_path / "upload"
    path.write_text(PLAYLISTS[kind].format(film=film(tmp_path / "film.mp4")))
    with pytest.raises(ValueError, match="is no video that can be read"):
        strangers_pictures(path, *SIZE, 49)


def test_what_is_too_long_or_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its header; and where that does not say, as soon as it shows."""
    path = film(tmp_path / "film.mp4", 4)
    with monkeypatch.context() as patch:
        patch.setattr(start_clip, "LONGEST_S", 3.0)
        patch.setattr("engine.video.clip.Clip.pictures", lambda self: pytest.fail("it is read"))
        with pytest.raises(ValueError, match="is 4 s long, and 3 s are the most"):
            strangers_pictures(path, *SIZE, 49)
        patch.setattr(start_clip, "MOST_PIXELS", 1000)
        with pytest.raises(ValueError, match="pictures have 1536 pixels, and 1000 are the most"):
            strangers_pictures(path, *SIZE, 49)
    monkeypatch.setattr(start_clip, "LONGEST_S", 3.0)
    monkeypatch.setattr("engine.video.clip.Clip.frames_stated", None)
    with pytest.raises(ValueError, match="is longer than 3 s"):
        strangers_pictures(path, *SIZE, 49)


def test_the_program_writes_pictures_or_one_line(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """And its status says which."""
    words = [str(film(tmp_path / "film.mp4")), "32", "48", "8.0", "4"]
    assert start_clip.main(words) == 0
    sys.stdout.buffer.flush()
    assert len(capfdbinary.readouterr().out) == 4 * 32 * 48 * 3
    assert start_clip.main([str(tmp_path / "none"), *words[1:]]) == 2
    assert capfdbinary.readouterr().err.startswith(b"the file is no video")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "cannot be read: it is damaged"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass", "takes too long"),
        ("import time; time.sleep(60)", "takes longer than 1 s to read"),
    ],
    ids=["crash", "busy", "slow"],
)
async def test_a_file_that_harms_its_reader_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    """One that makes it crash, or keeps it busy, is as bad as one that is no film; the process is gone."""
    (tmp_path / "harmed.py").write_text(program)
    monkeypatch.setattr(decoding, "PROGRAM", "harmed")
    monkeypatch.setattr(decoding, "ROOT", tmp_path)
    if "sleep" in program:
        monkeypatch.setattr(decoding, "LIMIT_S", 1.0)
    with pytest.raises(ValueError, match=reason):
        await read_pictures("x", CONFIG)


async def test_one_that_is_not_wanted_any_more_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process does not outlive who asked."""
    (tmp_path / "slow.py").write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)")
    monkeypatch.setattr(decoding, "PROGRAM", "slow")
    monkeypatch.setattr(decoding, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    task = asyncio.create_task(read_pictures("x", CONFIG))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            await asyncio.sleep(0.01)
