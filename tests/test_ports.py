import socket

import pytest

from streaming.errors import Unavailable
from streaming.media.ports import MediaPorts, PortRange, parse_range

HERE = ("127.0.0.1",)


def free_ports(count: int) -> PortRange:
    """Neighbouring ports that nobody has."""
    for first in range(42_000, 60_000, count):
        ports = PortRange(first, first + count - 1)
        if MediaPorts(ports).count_free(HERE, count) == count:
            return ports
    raise AssertionError("no free ports")


def taken(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind((HERE[0], port))
    return bound


def port_of(sockets: list[socket.socket]) -> int:
    (port,) = {one.getsockname()[1] for one in sockets}
    return int(port)


@pytest.mark.parametrize(("text", "size"), [("40000-40100", 101), ("40000-40000", 1), ("40000", 1), ("1-65535", 65535)])
def test_ranges_are_read(text: str, size: int) -> None:
    """Both ends count; one port is a range too."""
    assert len(parse_range(text)) == size


@pytest.mark.parametrize("text", ["", "a-b", "1-2-3", "-5", "40100-40000", "0-10", "60000-65536", "1:5", "1-", " 1-2"])
def test_bad_ranges_are_refused(text: str) -> None:
    """The range is named."""
    with pytest.raises(ValueError, match=r"\d|range"):
        parse_range(text)


def test_every_port_is_used_once() -> None:
    """A range of three serves three; then there is none, until one is free again."""
    ports = free_ports(3)
    media = MediaPorts(ports)
    held = [media.bind(HERE) for _ in range(3)]
    assert sorted(map(port_of, held)) == list(range(ports.first, ports.last + 1))
    assert not media.free(HERE)
    with pytest.raises(Unavailable, match="Every media port is in use"):
        media.bind(HERE)
    held[1][0].close()
    assert media.free(HERE)
    again = media.bind(HERE)
    for one in (*held[0], *held[2], *again):
        one.close()


def test_ports_of_others_are_skipped() -> None:
    """What another program has bound is passed over; where it has all, there is none."""
    ports = free_ports(2)
    with taken(ports.first), MediaPorts(ports).bind(HERE)[0] as own:
        assert own.getsockname()[1] == ports.last
    with taken(ports.first), taken(ports.last):
        assert MediaPorts(ports).count_free(HERE, 2) == 0
        with pytest.raises(Unavailable):
            MediaPorts(ports).bind(HERE)


def test_one_port_serves_all_addresses() -> None:
    """A session has the same port on each of its addresses; one that this machine lacks is passed over."""
    ports = free_ports(2)
    sockets = MediaPorts(ports).bind(("127.0.0.1", "192.0.2.77", "127.0.0.2"))
    assert [one.getsockname()[0] for one in sockets] == ["127.0.0.1", "127.0.0.2"]
    port_of(sockets)
    for one in sockets:
        one.close()


def test_a_port_taken_on_one_address_is_taken() -> None:
    """No socket is left behind by a port that only some addresses have free."""
    ports = free_ports(1)
    with taken(ports.first):
        assert not MediaPorts(ports).free(("127.0.0.2", "127.0.0.1"))
    assert MediaPorts(ports).free(("127.0.0.2", "127.0.0.1"))


def test_a_port_rests_after_use() -> None:
    """A port that just got free is the last to be taken again, so that late packets meet nobody."""
    ports = free_ports(3)
    media = MediaPorts(ports)
    used = []
    for _ in range(4):
        sockets = media.bind(HERE)
        used.append(port_of(sockets) - ports.first)
        sockets[0].close()
    assert used == [0, 1, 2, 0]
    assert media.free(HERE) and media.bind(HERE)[0].close() is None


def test_without_a_range_the_system_chooses() -> None:
    """Any port will do, and there is always one."""
    media = MediaPorts(None)
    assert media.free(HERE) and media.count_free(HERE, 9) == 0
    with media.bind(HERE)[0] as one:
        assert one.getsockname()[1] > 0
