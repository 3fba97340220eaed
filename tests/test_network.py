import pytest

import server
from streaming.media import network
from streaming.media.network import NetworkConfig


def read(*argv: str) -> NetworkConfig:
    return network.from_arguments(server.parser().parse_args(argv))


def test_nothing_is_set_by_default() -> None:
    """Every address, any port, no server."""
    assert read() == NetworkConfig()


def test_options_come_together() -> None:
    """What is given twice counts once."""
    config = read(
        *("--ice-address", "127.0.0.1", "--public-address", "203.0.113.5", "--public-address", "203.0.113.5"),
        *("--media-ports", "40000-40010", "--ice-server", "turn:h", "--ice-server", "stun:h", "--turn-secret", "x"),
    )
    assert config.addresses == ("127.0.0.1",) and config.public == ("203.0.113.5",)
    assert config.ports is not None and len(config.ports) == 11
    assert [one.url for one in config.servers] == ["turn:h", "stun:h"]
    assert config.turn_secret == "x" and "secret" not in repr(config)


def test_a_public_address_stands_for_those_of_its_family() -> None:
    """An address of another family is told as it is."""
    config = NetworkConfig(public=("203.0.113.5",))
    assert config.public_of("10.0.0.2") == "203.0.113.5"
    assert config.public_of("2001:db8::2") == "2001:db8::2"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--public-address", "203.0.113.5", "--public-address", "203.0.113.6"), "given already, 203.0.113.5"),
        (("--public-address", "2001:db8::5", "--ice-address", "127.0.0.1"), "is IPv6 and no --ice-address is"),
        (("--ice-address", "192.0.2.77"), "not an address of this machine"),
        (("--ice-server", "turn:h"), "has no credentials"),
        (("--turn-secret", "x"), "it needs an --ice-server turn:HOST"),
        (("--turn-secret", "x", "--ice-server", "turn:a:b@h"), "it needs an --ice-server turn:HOST"),
        (("--turn-secret", "x", "--ice-server", "stun:h"), "it needs an --ice-server turn:HOST"),
        (("--ice-server", "stun:[2001:db8::1]", "--ice-address", "127.0.0.1"), "is IPv6 and no --ice-address is"),
        (tuple(word for place in range(9) for word in ("--ice-server", f"stun:h{place}")), "given 9 times"),
    ],
)
def test_what_cannot_work_together_is_refused(
    argv: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server ends with status 2 and the option's name before anything starts."""
    with pytest.raises(SystemExit) as caught:
        server.main([*argv, "--port", "0"])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("server.py: error: argument --") and words in last


@pytest.mark.parametrize(
    "text",
    ["", "example.org", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "fe80::1", "::ffff:1.2.3.4", "fd00::1%eth0"],
)
def test_addresses_that_nobody_can_reach_are_refused(text: str) -> None:
    """Names, all addresses, multicast, links and mapped forms are none."""
    with pytest.raises(ValueError):
        network.public_address(text)
