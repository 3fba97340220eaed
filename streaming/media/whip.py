"""A WHIP client (RFC 9725): an offer goes by HTTP to a server that takes video in, an answer comes back.

Everything that comes back is bounded in size and time, and what goes wrong has words in which no address beyond its
host stands: paths and queries of WHIP addresses are often secrets.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx

from streaming.media.ice_server import IceServer, from_link
from streaming.media.network import MOST_SERVERS

ANSWER_S = 10.0  # for an answer, redirects included
GOODBYE_S = 2.0  # for the end of a session
MOST_REDIRECTS = 5
LONGEST_ANSWER_BYTES = 64 * 1024
LONGEST_URL = 2000
REDIRECTS = (307, 308)  # RFC 9725: others may turn a POST into a GET
WORDS = {
    400: "it does not understand the offer",
    401: "it asks for a token, or for another one",
    403: "the token does not open it",
    404: "there is no WHIP endpoint at this path",
    405: "nothing is taken in at this path, so it is no WHIP endpoint",
    406: "it takes none of the codecs",
    409: "somebody is sending there already",
    415: "it takes no SDP, so it is no WHIP endpoint",
    422: "it does not take the offer",
    429: "it is asked too often",
    503: "it has no room now",
}


class WhipError(Exception):
    """The far end does not take the video; the text says why. `late` if it said nothing in time."""

    def __init__(self, words: str, late: bool = False) -> None:
        super().__init__(words)
        self.late = late


@dataclass(frozen=True, slots=True)
class WhipTarget:
    """Where video is sent to. Raises ValueError for what is no address of a WHIP endpoint; no text repeats it."""

    url: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_url(self.url)
        if self.token is not None and not re.fullmatch("[!-~]+", self.token):
            raise ValueError("a token is printable ASCII without spaces, and not empty")

    @property
    def origin(self) -> str:
        """The part of the address that is no secret."""
        return _origin(self.url)


@dataclass(frozen=True, slots=True)
class WhipSession:
    """A session that the far end opened."""

    url: str = field(repr=False)
    answer: str = field(repr=False)  # SDP
    servers: tuple[IceServer, ...]  # that the far end lends


class WhipClient:
    """Requests to far ends."""

    def __init__(self) -> None:
        self._http = httpx.AsyncClient(timeout=ANSWER_S, limits=httpx.Limits(max_keepalive_connections=0))

    async def aclose(self) -> None:
        """Closes the connections; idempotent."""
        await self._http.aclose()

    async def post(self, target: WhipTarget, offer: str) -> WhipSession:
        """Offers video. Raises WhipError."""
        url = target.url
        try:
            async with asyncio.timeout(ANSWER_S):
                for _ in range(MOST_REDIRECTS + 1):
                    reply, body = await self._request("POST", url, target.token, offer)
                    if reply.status_code not in REDIRECTS:
                        return _session(url, reply, body)
                    url = _redirected(url, reply)
        except TimeoutError as error:
            raise WhipError(f"{_origin(url)} does not answer within {ANSWER_S:.0f} s.", late=True) from error
        raise WhipError(f"{target.origin} redirects in a circle, or more than {MOST_REDIRECTS} times.")

    async def delete(self, target: WhipTarget, session: WhipSession) -> None:
        """Ends a session. Raises WhipError where the far end does not hear it; it will notice by itself."""
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._request("DELETE", session.url, target.token, None)
        except TimeoutError as error:
            raise WhipError(f"{_origin(session.url)} does not answer.", late=True) from error

    async def _request(self, method: str, url: str, token: str | None, offer: str | None) -> tuple[httpx.Response, str]:
        """A reply with its body, as far as that is of a size which can be an answer."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if offer is not None:
            headers |= {"Content-Type": "application/sdp", "Accept": "application/sdp"}
        body = b""
        try:
            async with self._http.stream(method, url, content=offer, headers=headers) as reply:
                async for part in reply.aiter_bytes():
                    body += part
                    if len(body) > LONGEST_ANSWER_BYTES:
                        raise WhipError(f"{_origin(url)} answers with more than {LONGEST_ANSWER_BYTES} bytes.")
        except httpx.TimeoutException as error:
            raise WhipError(f"{_origin(url)} does not answer within {ANSWER_S:.0f} s.", late=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WhipError(f"{_origin(url)} cannot be reached: {_reason(error)}.") from error
        return reply, body.decode("utf-8", "replace")


def _session(url: str, reply: httpx.Response, body: str) -> WhipSession:
    status, origin = reply.status_code, _origin(url)
    if status != HTTPStatus.CREATED:
        raise WhipError(f"{origin} answers {status}: {_meaning(status)}.")
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/sdp" or not body.startswith("v=0"):
        raise WhipError(f"{origin} answers 201 with something that is no SDP, so it is no WHIP endpoint.")
    location = reply.headers.get("location", "")
    if not location:
        raise WhipError(f"{origin} answers 201 without Location: the session could not be ended.")
    links = from_link(reply.headers.get_list("link"))
    return WhipSession(_next(url, location), body, tuple(links[:MOST_SERVERS]))


def _meaning(status: int) -> str:
    if status in WORDS:
        return WORDS[status]
    if 300 <= status < 400:
        return "WHIP is redirected with 307 or 308 only; give the address to which it leads"
    if status >= 500:
        return "it has a fault of its own"
    return "a WHIP endpoint answers 201"


def _redirected(url: str, reply: httpx.Response) -> str:
    location = reply.headers.get("location", "")
    if not location:
        raise WhipError(f"{_origin(url)} redirects to nowhere.")
    return _next(url, location)


def _next(url: str, location: str) -> str:
    """The address that an answer names. The token goes there as well, so never from HTTPS to plain HTTP."""
    try:
        following = str(httpx.URL(url).join(location))
        _check_url(following)
    except (ValueError, httpx.InvalidURL) as error:
        raise WhipError(f"{_origin(url)} names an address that is none of HTTP.") from error
    if url.startswith("https:") and not following.startswith("https:"):
        raise WhipError(f"{_origin(url)} leads from HTTPS to plain HTTP, which would show the token.")
    return following


def _check_url(url: str) -> None:
    if not re.fullmatch("[!-~]+", url) or len(url) > LONGEST_URL:
        raise ValueError(f"the address is printable ASCII without spaces, of at most {LONGEST_URL} characters")
    try:
        parts, port = httpx.URL(url), urlsplit(url).port
    except (ValueError, httpx.InvalidURL) as error:
        raise ValueError("the address cannot be read; give one like https://example.org/whip/channel") from error
    if port == 0:
        raise ValueError("the address has port 0; ports are 1 to 65535")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("the address begins with https:// or http:// and a host")
    if parts.userinfo:
        raise ValueError("the address has a user or password in it; send it as token")
    if parts.fragment:
        raise ValueError("the address has a # in it, which no server sees")


def _origin(url: str) -> str:
    parts = httpx.URL(url)
    return f"{parts.scheme}://{parts.netloc.decode('ascii')}"


def _reason(error: Exception) -> str:
    """Why a request failed, without what the far end wrote."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.RemoteProtocolError):
        return "it does not speak HTTP"
    return "no connection comes about" if isinstance(error, httpx.ConnectError) else "the connection broke"
