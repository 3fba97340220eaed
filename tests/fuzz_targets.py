"""What is fed with strange input, one target a kind of it, and what each may answer.

A target's `check` takes bytes. It returns whether they were taken, and raises for a fault: any error but the documented
one of what reads them, or a value that must not come out of it.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import aioice
import numpy as np
import torch
from aiortc.sdp import SessionDescription
from fuzz_server import http_seeds, http_status
from test_journal import RECORDS, lines
from test_kept_state import KEPT
from test_token_file import PLAIN, _gops
from test_whep import ANSWER, FRAGMENT_TYPE, HOST, OFFER
from tiny import tiny_model

from engine.config import preset
from engine.live.generator import Generator
from engine.live.journal import Journal
from engine.live.offline import generate_frames
from engine.live.replay import Replay
from engine.live.snapshot import restore, take_snapshot
from engine.loading.model import load
from engine.loading.tensor_files import Source, faults_of, not_finite, open_tensors
from engine.loading.weights import SHIPPED
from engine.text.embedding import TextEncoder
from engine.video.start_clip import strangers_pictures
from engine.video.token_file import TokenFile
from engine.video.video_file import VideoFile
from engine.wire.kept_state import KeptState
from engine.wire.prompt import check_prompt
from engine.wire.state_folder import JOURNAL, STATE, channel_folder, taken
from streaming.channels.registry import go_on
from streaming.http import sdp
from streaming.http.answer import compose
from streaming.http.candidates import usable
from streaming.http.whep import Policy, WhepError, check_fragment, check_offer, fragment_of
from streaming.media.viewer import candidate_from_sdp

DATA = Path(__file__).parent / "data"
PUBLIC = Policy(loopback=False)
MOST_FRAMES = 30  # of a video that is made from an input


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    name: str
    check: Callable[[bytes], bool]
    seeds: Callable[[], Sequence[bytes]]  # good ones
    words: Sequence[bytes] = ()  # what they are made of
    share: float = 0.1  # of all inputs of a run


def _text(rows: Sequence[str]) -> bytes:
    return "".join(f"{row}\r\n" for row in rows).encode()


def offer(data: bytes) -> bool:
    """An offer: refused, or one that aiortc takes, with candidates of viewers alone, and that can be answered."""
    negotiations = []
    for codec in ("vp8", "h264"):
        try:
            negotiations.append(check_offer(data, "application/sdp", codec, PUBLIC))
        except WhepError as error:
            assert error.status in (400, 406) and error.detail.endswith(".")
    for negotiation in negotiations:
        told = SessionDescription.parse(negotiation.offer.sdp)
        (media,) = told.media
        assert media.kind == "video" and media.direction == "recvonly" and not told.group
        assert media.rtp.codecs and media.dtls.role == "client"
        rows = [row.partition(":")[2] for row in negotiation.offer.sdp.splitlines() if row.startswith("a=candidate:")]
        assert len(rows) == len(media.ice_candidates) == len(usable(rows, False))
        answer = compose(negotiation, ANSWER.replace("96 97", " ".join(negotiation.payloads)))
        assert len(sdp.parse(answer.splitlines())[1]) == len(negotiation.media)
    return bool(negotiations)


@cache
def _offered() -> Any:
    return check_offer(_text(OFFER), "application/sdp", None, PUBLIC).offer


def fragment(data: bytes) -> bool:
    """A trickle fragment: refused, or candidates that are read, and perhaps an ICE session that is answered."""
    try:
        found = check_fragment(data, FRAGMENT_TYPE, _offered(), PUBLIC)
    except WhepError as error:
        assert error.status == 400 and error.detail.endswith(".")
        return False
    for candidate in found.candidates:
        assert candidate_from_sdp(candidate).type and aioice.Candidate.from_sdp(candidate).port
    if found.restart is not None:
        answer = fragment_of(found.restart, ["ice-ufrag:abcd"]).splitlines()
        assert len(sdp.parse(answer)[1]) == 1 and len(answer) == 3
    return True


@cache
def _reader() -> TextEncoder:
    return load(preset("mini"), SHIPPED / "mini", torch.device("cpu"), torch.float32).text


def prompt(data: bytes) -> bool:
    """A prompt: refused, or read to the end by the shipped model's text encoder."""
    try:
        said = check_prompt(data.decode("utf-8", "surrogatepass"))
    except ValueError:
        return False
    text = _reader()
    assert said == check_prompt(said)
    assert isinstance(text.unread(said), tuple)
    text.understood(said, 7)
    with torch.inference_mode():
        embedded = text.embed(said, 7)
    assert bool(embedded.planner.isfinite().all()) and bool(embedded.renderer.isfinite().all())
    return True


def kept(data: bytes) -> bool:
    """A channel's last state: refused when the server starts, or one that it goes on with."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        place = channel_folder(state, KEPT.channel)
        place.mkdir()
        (place / STATE).write_bytes(data)
        try:
            with taken(state, KEPT.preset) as left:
                for one in left:
                    go_on(one)
                    assert KeptState.from_json(one.to_json()) == one
                return bool(left)
        except ValueError as error:
            assert str(place) in str(error) and "\n" not in str(error)
            return False


@cache
def _generator() -> Generator:
    return Generator(tiny_model())


def journal(data: bytes) -> bool:
    """A journal: refused, or read up to a line that is named; what was read is replayed, or that is refused."""
    generator = _generator()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, JOURNAL)
        path.write_bytes(data)
        try:
            read = Journal(path)
            again = Replay(generator, read, steps=1)
            end = min(again.end, again.begin + MOST_FRAMES)
            return sum(batch.frames for batch in again.frames(again.begin, end)) > 0
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            return False


@cache
def _record() -> dict[str, Any]:
    """A snapshot behind a chunk, with a chunk that it can go back into."""
    generator = _generator()
    state = generator.open("a red ball", 7)
    state.open_from = 0
    for _ in generate_frames(generator, state, 30):
        pass
    return take_snapshot(generator, state)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place in a record, and what is there; tensors as their shapes and types."""
    if isinstance(value, torch.Tensor):
        yield path, {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _places(one, (*path, key))
    if not isinstance(value, dict | list):
        yield path, value


def _edited(record: Any, path: Sequence[Any], new: Any) -> Any:
    if not path:
        match new:
            case {"shape": [*shape], "dtype": str(name)} if hasattr(torch, name):
                dtype = getattr(torch, name)
                sizes = [size for size in shape if isinstance(size, int) and not isinstance(size, bool)]
                # Of one number, however large it says it is.
                return torch.zeros((), dtype=dtype if isinstance(dtype, torch.dtype) else None).expand(
                    [min(max(size, 0), 1 << 20) for size in sizes[:8]]
                )
        return new
    if isinstance(record, list):
        return [_edited(one, path[1:], new) if place == path[0] else one for place, one in enumerate(record)]
    if isinstance(record, dict):
        key = path[0] if not isinstance(path[0], list | dict) else str(path[0])
        return record | {key: _edited(record.get(key), path[1:], new)}
    return new


def snapshot(data: bytes) -> bool:
    """Lines of changes to a snapshot: it is refused, or the video goes on from it."""
    generator, record = _generator(), _record()
    for row in data.split(b"\n"):
        try:
            change = json.loads(row)
            path, new = change["path"], change["to"]
        except (ValueError, TypeError, LookupError, RecursionError):
            continue
        record = _edited(record, path if isinstance(path, list) else [path], new)
    try:
        if not isinstance(record, dict):
            return False
        state = restore(generator, record)
    except ValueError as error:
        assert "\n" not in str(error)
        return False
    return sum(batch.frames for batch in generate_frames(generator, state, 24)) == 24


def _snapshot_seeds() -> list[bytes]:
    return [json.dumps({"path": path, "to": value}).encode() for path, value in _places(_record())]


def tokens(data: bytes) -> bool:
    """A token file: refused, or the same after it is written again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.npz")
        path.write_bytes(_arrays(data) if data[:1] == b"{" else data)
        try:
            read = TokenFile.read(path)
        except ValueError:
            return False
        read.write(path)
        assert str(TokenFile.read(path)) == str(read)
        return True


def _arrays(data: bytes) -> bytes:
    """A .npz of what a JSON table says: values by name; text that begins with < or > is a type for what follows."""
    try:
        table = json.loads(data)
        arrays = {str(name): np.asarray(value[1], value[0]) for name, value in table.items()}
        file = io.BytesIO()
        np.savez(file, allow_pickle=True, **arrays)
    except Exception:  # numpy has no such array
        return data
    return file.getvalue()


def _token_seeds() -> list[bytes]:
    file = TokenFile(preset("mini"), 61, tuple(_gops(PLAIN)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.npz")
        file.write(path)
        with np.load(path) as arrays:
            table = {name: (arrays[name].dtype.str, arrays[name].tolist()) for name in arrays}
        return [path.read_bytes(), json.dumps(table).encode()]


TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
NAMES = {key: f"x.{key}" for key in TENSORS}


def weights(data: bytes) -> bool:
    """A file of weights, as safetensors or PyTorch's: refused, or its tensors are looked at without an error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.pt" if data[:2] in (b"PK", b"\x80\x02") else "m.safetensors")
        # A header by itself gets its length, and numbers behind it.
        path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(32) if data[:1] == b"{" else data)
        try:
            sources = [Source(open_tensors(path), NAMES, {})]
            shapes = {NAMES[key]: list(value.shape) for key, value in TENSORS.items()}
            dtypes = {NAMES[key]: value.dtype for key, value in TENSORS.items()}
            return not faults_of(sources, shapes, dtypes) and not not_finite(sources)
        except ValueError as error:
            assert str(path) in str(error)
            return False


def _weight_seeds() -> list[bytes]:
    from test_tensor_files import write

    with tempfile.TemporaryDirectory() as folder:
        whole = [write(Path(folder), kind, TENSORS).read_bytes() for kind in ("safetensors", "new", "old")]
    size = struct.unpack("<Q", whole[0][:8])[0]
    return [whole[0][8 : 8 + size], *whole]


def start(data: bytes) -> bool:
    """A file that a channel may go on from: refused, or pictures of the asked size."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            pictures = strangers_pictures(Path(file.name), 32, 48, 8.0, 25)
        except (ValueError, MemoryError):
            return False
        assert pictures.shape[1:] == (32, 48, 3) and pictures.dtype == np.uint8
        return True


@cache
def _start_seeds() -> list[bytes]:
    """Pictures and a video, small ones."""
    from PIL import Image

    picture, seeds = Image.linear_gradient("L").resize((24, 16)).convert("RGB"), []
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        file = io.BytesIO()
        picture.save(file, kind)
        seeds.append(file.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "v.mp4")
        with VideoFile(path, 48, 32, 8.0) as video:
            video.write(np.full((6, 48, 48), 90, np.uint8))
        return [*seeds, path.read_bytes()]


def body(data: bytes) -> bool:
    """A request: answered, and never with 500."""
    status = http_status(data)
    assert status < 500 or status in (503, 504, 507), status
    return status < 300


def _offers() -> list[bytes]:
    return [_text([*OFFER, HOST]), *(path.read_bytes() for path in sorted((DATA / "offers").iterdir()))]


FRAGMENTS = (
    ["a=ice-ufrag:abcd", "m=video 9 RTP/AVP 0", "a=mid:0", HOST, "a=end-of-candidates"],
    ["a=ice-ufrag:other", "a=ice-pwd:" + "p" * 22, HOST.replace("192.0.2.7", "2001:db8::1") + " generation 0"],
    [HOST.replace("host", "srflx") + " raddr 10.0.0.1 rport 9 tcptype active ufrag abcd network-cost 10"],
)
PROMPTS = (
    "a red ball moves slowly to the right over green hills by day",
    "two blue fish, sea",
    "Ein Fuß – 足 👟\u0301",
)
SDP_WORDS = (
    *(row.encode() for row in OFFER),
    b"a=bundle-only",
    b"m=audio 9 RTP/AVP 0",
    b"a=setup:",
    b"127.0.0.1",
    b".local",
)
TARGETS = (
    Target("offers", offer, _offers, SDP_WORDS, 0.25),
    Target("fragments", fragment, lambda: [_text(rows) for rows in FRAGMENTS], SDP_WORDS, 0.2),
    Target("prompts", prompt, lambda: [one.encode() for one in PROMPTS], (b"red", b" and ", "\u200b".encode()), 0.15),
    Target("states", kept, lambda: [KEPT.to_json()], (), 0.1),
    Target("journals", journal, lambda: [b"".join(lines()), b"".join(lines(RECORDS[:4]))], (), 0.05),
    Target("snapshots", snapshot, _snapshot_seeds, (), 0.02),
    Target("tokens", tokens, _token_seeds, (), 0.05),
    Target("weights", weights, _weight_seeds, (b'"F32"', b'"dtype"', b'"F8_E8M0"'), 0.06),
    Target("starts", start, _start_seeds, (), 0.02),
    Target("bodies", body, http_seeds, (b'"prompt"', b'"from"', b"application/sdp"), 0.1),
)
