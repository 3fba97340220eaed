"""The report of a server that runs, or why there is none."""

from __future__ import annotations

import json
import re
import ssl
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from streaming.doctor.findings import PROBLEM, Finding

LIMIT_S = 30.0
RIGHT_URL = "give the URL of its page, as in http://HOST:8000, and behind a proxy with its path"
TRUST = "the environment variable SSL_CERT_FILE=FILE.pem trusts a certificate; --url needs a name that is in it"


def check_url(text: str) -> str:
    """A server's URL; it may have a query. Raises ValueError."""
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        fits = False
    if not fits or not re.fullmatch("[!-~]+", text):
        # The query may hold a token.
        raise ValueError(f"{text.partition('?')[0]!r} is not the URL of a server: give one like http://HOST:8000")
    return text


def findings_of(url: str, token: str | None) -> list[Finding]:
    """What the server says of itself, asked with the token; or one problem."""
    parts = urlsplit(url)
    shown = parts._replace(query="", fragment="").geturl()
    address = parts._replace(path=parts.path.rstrip("/") + "/doctor", fragment="").geturl()
    request = urllib.request.Request(address, headers={"Accept": "application/json"})
    if token is not None:
        # Not for another server that this one redirects to.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
            content: list[dict[str, Any]] = json.loads(reply.read())["findings"]
        return [Finding(**entry) for entry in content]
    except HTTPError as error:
        words, cure = _status(error, address, bool(token or "token=" in parts.query))
    except (OSError, HTTPException) as error:
        words, cure = _failure(error.reason if isinstance(error, URLError) else error)
    except (ValueError, KeyError, TypeError):
        words, cure = "answers, but with no report", RIGHT_URL
    return [Finding("http", PROBLEM, f"{shown} {words}", cure)]


def _status(error: HTTPError, address: str, with_token: bool) -> tuple[str, str]:
    """Words and cure for an answer that is an error."""
    if error.code == 401 and error.url != address:
        place = urlsplit(error.url)._replace(query="").geturl().removesuffix("/doctor")
        return f"leads to {place}, which asks for a token", f"--url {place}"
    if error.code == 401:
        return "does not take this token" if with_token else "asks for a token", "its --view-token SECRET, or --token"
    cure = "is the server behind the proxy running?" if error.code >= 500 else RIGHT_URL
    return f"answers {error.code} {error.reason}", cure


def _failure(reason: object) -> tuple[str, str]:
    """Words and cure where there is no answer."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted here: {reason.verify_message}", TRUST
    if isinstance(reason, ssl.SSLError):
        return f"does not speak HTTPS ({reason.reason})", "http:// where the server has no --tls-cert"
    if isinstance(reason, HTTPException | ConnectionResetError):
        return "does not speak HTTP", "https:// where the server has --tls-cert"
    return f"does not answer: {reason}", "is the server running, and this its URL?"
