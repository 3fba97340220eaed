import asyncio
import io
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from streaming.bench import link
from streaming.bench.link import Direction, Impairments, carry, main

PACKETS = 400


@pytest.fixture
def devices() -> Iterator[tuple[socket.socket, int, int, socket.socket]]:
    """Two devices between which a link carries, as descriptors, each with the end of whoever uses it."""
    near, one = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, one, far, other:
        for end in (near, one, far, other):
            end.setblocking(False)
            # A busy machine puts many packets at once, of which none shall be lost.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield near, one.fileno(), other.fileno(), far


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def through(devices: tuple[socket.socket, int, int, socket.socket], impairments: Impairments) -> list[int]:
    """Numbers of the packets of 100 bytes that come through, in their order."""
    near, one, other, far = devices
    way = Direction(one, other, impairments, 1)
    came: list[int] = []
    loop = asyncio.get_running_loop()
    loop.add_reader(far.fileno(), lambda: came.append(int.from_bytes(far.recv(200), "big")))
    for number in range(PACKETS):
        near.send(number.to_bytes(100, "big"))
        await asyncio.sleep(0)
    await until(lambda: way.carried.packets + way.carried.lost == PACKETS and len(came) == way.carried.packets)
    loop.remove_reader(one)
    loop.remove_reader(far.fileno())
    assert way.carried.octets == 100 * len(came)
    return came


@pytest.mark.parametrize(
    ("impairments", "least", "most"),
    [
        (Impairments(), PACKETS, PACKETS),
        (Impairments(loss=0.1), 0.8 * PACKETS, 0.97 * PACKETS),
        (Impairments(delay_s=0.02, delay_varies_s=0.02), PACKETS, PACKETS),
        # 80 packets a second, of which half a second's may wait.
        (Impairments(rate_bps=64_000), 40, 200),
    ],
)
async def test_a_link_impairs(
    devices: tuple[socket.socket, int, int, socket.socket], impairments: Impairments, least: float, most: float
) -> None:
    """As many packets come as the impairments let through, in their order however the delay varies."""
    came = await through(devices, impairments)
    assert least <= len(came) <= most
    assert came == sorted(came)


async def test_what_a_full_queue_cannot_take_is_lost(
    devices: tuple[socket.socket, int, int, socket.socket],
) -> None:
    """And is counted so: what is carried is what can be read."""
    near, one, other, far = devices
    way, sent = Direction(one, other, Impairments(), 1), 20 * PACKETS
    for _ in range(sent):
        near.send(bytes(1000))
        await asyncio.sleep(0)
    await until(lambda: way.carried.packets + way.carried.lost == sent)
    asyncio.get_running_loop().remove_reader(one)
    count = 0
    with suppress(BlockingIOError):
        while far.recv(2000):
            count += 1
    assert 0 < count == way.carried.packets < sent and way.carried.octets == 1000 * count


async def test_a_dead_link_carries_nothing(devices: tuple[socket.socket, int, int, socket.socket]) -> None:
    """Every packet is lost, and counted so."""
    near, one, other, far = devices
    way = Direction(one, other, Impairments(dead=True), 1)
    near.send(b"packet")
    await until(lambda: way.carried.lost > 0)
    asyncio.get_running_loop().remove_reader(one)
    with pytest.raises(BlockingIOError):
        far.recv(10)
    assert (way.carried.packets, way.carried.octets) == (0, 0)


async def test_commands_change_a_link_and_are_answered(
    devices: tuple[socket.socket, int, int, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says when it is ready, what it carried with each command, and ends with its input."""
    near, one, other, far = devices
    monkeypatch.setattr(link, "open_tun", lambda namespace, address, number: (one, other)[number])
    read, write = os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(read, "rb"))
    task = asyncio.create_task(carry(("a", "10.0.0.1/24"), ("b", "10.0.0.2/24")))
    near.send(b"packet")
    assert await asyncio.get_running_loop().sock_recv(far, 10) == b"packet"
    os.write(write, b'{"dead": true}\n')
    os.close(write)
    await task
    for device in (one, other):
        asyncio.get_running_loop().remove_reader(device)
    ready, carried = capsys.readouterr().out.splitlines()
    assert ready == "ready"
    assert json.loads(carried) == [{"packets": 1, "octets": 6, "lost": 0}, {"packets": 0, "octets": 0, "lost": 0}]


def test_without_a_device_the_reason_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there are no TUN devices."""
    monkeypatch.setattr(link, "TUN", "/nowhere/tun")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["a", "10.0.0.1/24", "b", "10.0.0.2/24"]) == 1
    said = capsys.readouterr().err
    assert "/nowhere/tun" in said and len(said.splitlines()) == 1
