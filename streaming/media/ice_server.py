"""STUN and TURN servers: their URLs (RFC 7064, RFC 7065), credentials and `Link` headers. No I/O."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

FORMAT = re.compile(
    r"(?P<scheme>stuns?|turns?):(?:(?P<user>[^@]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?:\?transport=(?P<transport>udp|tcp))?",
    re.IGNORECASE,
)
LINK = re.compile(r'<([^<>]*)>((?:\s*;\s*[\w-]+=(?:"(?:[^"\\]|\\.)*"|[^",;\s]*))*)')  # one link of a `Link` header
LINK_FIELD = re.compile(r';\s*([\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;\s]*))')
FORMS = (
    "write stun:HOST[:PORT] or turn:USER:PASSWORD@HOST[:PORT][?transport=udp|tcp], an @ in USER or PASSWORD as %40, "
    "or stuns: or turns: for TLS"
)
PORT, TLS_PORT = 3478, 5349
CREDENTIALS_S = 24 * 3600  # that time-limited credentials are valid


@dataclass(frozen=True, slots=True)
class IceServer:
    """One STUN or TURN server."""

    url: str  # as it was given, without credentials and with its keywords in lower case: what browsers take
    host: str  # a name or an address; IPv6 without brackets
    port: int
    transport: str  # "udp" or "tcp" between the server and its client
    username: str | None = None  # of TURN; None where credentials are made from a secret
    credential: str | None = field(default=None, repr=False)

    @property
    def scheme(self) -> str:
        """One of stun, stuns, turn and turns."""
        return self.url.partition(":")[0]

    @property
    def relays(self) -> bool:
        """True for TURN, false for STUN."""
        return self.scheme.startswith("turn")

    @property
    def ip_version(self) -> int | None:
        """4 or 6 for an address, None for a name."""
        try:
            return ipaddress.ip_address(self.host).version
        except ValueError:
            return None

    @property
    def usable_here(self) -> bool:
        """True if this server process can gather with it; players can with all of them.

        STUN over TLS tells the address of a TCP connection, which is of no use for media; TURN over DTLS is not spoken.
        """
        return self.scheme in ("stun", "turn") or (self.scheme, self.transport) == ("turns", "tcp")

    @property
    def link(self) -> str:
        """Value of a `Link` header (draft-ietf-wish-whep)."""
        parts = [f"<{self.url}>", 'rel="ice-server"']
        if self.username is not None and self.credential is not None:
            parts += [f"username={_quoted(self.username)}", f"credential={_quoted(self.credential)}"]
            parts.append('credential-type="password"')
        return "; ".join(parts)


def parse(text: str) -> IceServer:
    """The server of a URL with its credentials, percent-encoded where they hold `:` or `@`. Raises ValueError."""
    # A credential is not repeated in a log; it may hold an @ that should have been encoded.
    shown = re.sub(r"^(\w+:)?.*@", r"\1...@", text, flags=re.DOTALL)
    match = FORMAT.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown!r} is not a STUN or TURN server: {FORMS}")
    scheme, host = match["scheme"].lower(), match["host"].strip("[]").lower()
    tls = scheme.endswith("s")
    address, mark, query = text.partition(":")[2].rpartition("@")[2].partition("?")
    url = f"{scheme}:{address}{mark}{query.lower()}"
    port = int(match["port"] or (TLS_PORT if tls else PORT))
    if not 1 <= port <= 65535:
        raise ValueError(f"{shown!r} has port {port}; ports are 1 to 65535")
    if ":" in host or re.fullmatch(r"[0-9.]+", host):
        try:
            host = str(ipaddress.ip_address(host))
        except ValueError as error:
            raise ValueError(f"{shown!r} has no valid address: {error}") from error
    elif not all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", label) for label in host.split(".")):
        raise ValueError(f"{shown!r} has no valid host name: {host!r}")
    if scheme.startswith("stun"):
        if match["user"] is not None or match["transport"] is not None:
            raise ValueError(f"{shown!r}: a STUN server takes neither credentials nor a transport; {FORMS}")
        return IceServer(url, host, port, "tcp" if tls else "udp")
    transport = (match["transport"] or ("tcp" if tls else "udp")).lower()
    if match["user"] is None:
        return IceServer(url, host, port, transport)
    username, _, credential = (unquote(part) for part in match["user"].partition(":"))
    for value in (username, credential):
        if not value or not value.isascii() or not value.isprintable():
            raise ValueError(f"{shown!r}: user and password are printable ASCII and not empty; {FORMS}")
    return IceServer(url, host, port, transport, username, credential)


def from_link(headers: Iterable[str]) -> list[IceServer]:
    """The ICE servers of an answer's `Link` headers; what is none that can be used is passed over."""
    servers = []
    for url, text in (link.groups() for header in headers for link in LINK.finditer(header)):
        fields = {name.lower(): quoted or plain for name, quoted, plain in LINK_FIELD.findall(text)}
        user, credential = (re.sub(r"\\(.)", r"\1", fields.get(name, "")) for name in ("username", "credential"))
        try:
            server = parse(url) if fields.get("rel") == "ice-server" and "@" not in url else None
        except ValueError:
            continue
        if server is not None and (user and credential or not server.relays):
            servers.append(replace(server, username=user, credential=credential) if server.relays else server)
    return servers


def with_credentials(server: IceServer, secret: str | None, now_s: float) -> IceServer:
    """The server with credentials made of the secret it shares, where it has none of its own; new ones each time.

    They are those of coturn's `use-auth-secret`, valid for CREDENTIALS_S from `now_s`, a Unix time.
    """
    if not server.relays or server.username is not None or secret is None:
        return server
    # The name tells sessions apart in the TURN server's log and quota.
    username, credential = rest_credentials(secret, int(now_s) + CREDENTIALS_S, secrets.token_hex(4))
    return replace(server, username=username, credential=credential)


def rest_credentials(secret: str, expiry_s: int, name: str = "") -> tuple[str, str]:
    """User and password of coturn's REST scheme that are valid until `expiry_s`, a Unix time."""
    username = f"{expiry_s}:{name}" if name else str(expiry_s)
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def _quoted(text: str) -> str:
    """A quoted-string of HTTP."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
