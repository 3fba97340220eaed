"""Options of `server.py` about who reaches it and how, and checks of their values. Imports nothing heavy."""

from __future__ import annotations

import ipaddress
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from streaming.http.app import AppConfig

DEFAULT_PORTS = {"http": ":80", "https": ":443"}
# Where a proxy strips the prefix, a request for these could not be told from one where it left it.
OWN_PATHS = frozenset({"channels", "whep", "page", "doctor", "healthz", "readyz", "metrics", "openapi.json"})


def add_access(options: ArgumentParser) -> None:
    """Adds the options."""
    options.add_argument("--control-token", metavar="SECRET", type=token, help="ask whoever steers for this token")
    options.add_argument("--view-token", metavar="SECRET", type=token, help="ask whoever watches for this token")
    options.add_argument("--token", metavar="SECRET", type=token, help="one for both, where they are not given apart")
    options.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        type=origin,
        help="let pages of this origin use the server (CORS), * for all; may be repeated",
    )
    options.add_argument(
        "--root-path",
        metavar="PATH",
        default="",
        type=root_path,
        help="path under which a proxy serves this server, such as /live",
    )
    options.add_argument("--max-viewers", type=count, default=64, metavar="N", help="viewers at a time (default: 64)")
    options.add_argument(
        "--max-viewers-per-address",
        type=count,
        default=64,
        metavar="N",
        help="of them from one address (default: 64)",
    )
    options.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate chain (PEM)")
    options.add_argument("--tls-key", metavar="FILE", help="and this key of it (PEM, no passphrase)")


def app_config(arguments: Namespace) -> AppConfig:
    """Settings of the HTTP interface from the command line."""
    from streaming.http.access import Tokens
    from streaming.http.app import AppConfig
    from streaming.http.whep import Policy

    policy = Policy(loopback=any(ipaddress.ip_address(address).is_loopback for address in arguments.ice_address))
    tokens = Tokens(arguments.control_token or arguments.token, arguments.view_token or arguments.token)
    return AppConfig(policy, tokens, frozenset(arguments.allow_origin), arguments.root_path)


def token(text: str) -> str:
    """Raises ArgumentTypeError for what an Authorization header cannot carry. Its words do not repeat the token."""
    if not re.fullmatch("[!-~]+", text):
        raise ArgumentTypeError("a token is printable ASCII without spaces, and not empty")
    return text


def origin(text: str) -> str:
    """An origin as browsers send it. Raises ArgumentTypeError for anything else but `*`."""
    parts = urlsplit(text.lower())
    known = re.fullmatch(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", text.lower())
    if text != "*" and known is None:
        raise ArgumentTypeError(f"{text!r} is not an origin: give scheme and host alone, as in https://example.org")
    if known and known[2] and not 1 <= int(known[2]) <= 65535:
        raise ArgumentTypeError(f"{text!r} has no valid port, 1 to 65535: give one as in https://example.org:8443")
    return text.lower().removesuffix(DEFAULT_PORTS.get(parts.scheme, " "))


def root_path(text: str) -> str:
    """The path without a slash at its end. Raises ArgumentTypeError."""
    path = text.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", path):
        raise ArgumentTypeError(f"{text!r} is not a path: give one like /live")
    if path and path.split("/")[1] in OWN_PATHS:
        raise ArgumentTypeError(f"{text!r} begins with a path of the server itself; give another, like /live")
    return path


def count(text: str) -> int:
    """A number from 1 on. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)
