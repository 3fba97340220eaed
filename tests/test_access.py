import httpx
import pytest
from fastapi import FastAPI

from streaming.http.access import Access, Tokens

ROUTES = ("/channels/main", "/channels/main/events", "/whep/main", "/whep/main/x", "/healthz", "/page/app.js", "/")


def app(tokens: Tokens) -> FastAPI:
    made = FastAPI()
    made.add_middleware(Access, tokens=tokens)

    async def anything() -> str:
        return "in"

    for path in ROUTES:
        made.add_api_route(path, anything, methods=["GET", "POST", "PATCH", "DELETE", "OPTIONS"])
    return made


async def status(tokens: Tokens, method: str, path: str, given: str | None = None) -> int:
    """Of a request; `given` is an Authorization header, or begins with `?`."""
    headers = {"authorization": given} if given and not given.startswith("?") else {}
    query = given if given and given.startswith("?") else ""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app(tokens)), base_url="http://test") as http:
        return (await http.request(method, path + query, headers=headers)).status_code


WATCHING = [("GET", "/channels/main"), ("GET", "/channels/main/events"), ("GET", "/whep/main"), ("GET", "/nowhere")]
WATCHING += [("POST", "/whep/main"), ("PATCH", "/whep/main/x"), ("DELETE", "/whep/main/x"), ("GET", "/whep/main/x")]
STEERING = [("PATCH", "/channels/main"), ("DELETE", "/nowhere"), ("POST", "/channels/main")]
ALWAYS = [("GET", "/healthz"), ("GET", "/"), ("GET", "/page/app.js"), ("OPTIONS", "/whep/main")]
BOTH = Tokens(control="c0ntrol", view="v1ew")


@pytest.mark.parametrize(("method", "path"), WATCHING)
async def test_watching_needs_either_token(method: str, path: str) -> None:
    """The view token opens it and so does the control token; nothing else does."""
    assert await status(BOTH, method, path) == 401
    assert await status(BOTH, method, path, "Bearer wrong") == 401
    for right in ("v1ew", "c0ntrol"):
        assert await status(BOTH, method, path, f"Bearer {right}") != 401
    assert await status(Tokens(control="c0ntrol"), method, path) != 401


@pytest.mark.parametrize(("method", "path"), STEERING)
async def test_steering_needs_the_control_token(method: str, path: str) -> None:
    """A view token is 403, and the token in the address is none; without a control token the view token is enough."""
    assert await status(BOTH, method, path) == 401
    assert await status(BOTH, method, path, "Bearer v1ew") == 403
    assert await status(BOTH, method, path, "?token=c0ntrol") == 401
    assert await status(BOTH, method, path, "Bearer c0ntrol") not in (401, 403)
    assert await status(Tokens(view="v1ew"), method, path) == 401
    assert await status(Tokens(view="v1ew"), method, path, "Bearer v1ew") not in (401, 403)
    assert await status(Tokens("same", "same"), method, path, "Bearer same") not in (401, 403)


@pytest.mark.parametrize(("method", "path"), ALWAYS)
async def test_some_routes_ask_nobody(method: str, path: str) -> None:
    """The page, probes and preflights."""
    assert await status(BOTH, method, path) == 200


@pytest.mark.parametrize("header", ["", "Bearer", "bearer wrong", "Bearer v1ew v1ew", "Basic v1ew", "v1ew", "Bearer v"])
async def test_only_the_token_itself_opens(header: str) -> None:
    """Other schemes, parts and repetitions are 401; the scheme's case and further spaces are no difference."""
    assert await status(BOTH, "GET", "/channels/main", header) == 401
    for good in ("bearer v1ew", "BEARER   v1ew"):
        assert await status(BOTH, "GET", "/channels/main", good) == 200


async def test_the_address_may_hold_the_token_where_players_can_do_no_more() -> None:
    """WHEP and the event stream take `?token=`, escaped or as it is; reports do not."""
    tokens = Tokens(view="a+b/c=&?%")
    escaped = "a%2Bb%2Fc%3D%26%3F%25"
    for path in ("/whep/main", "/whep/main/x", "/channels/main/events"):
        assert await status(tokens, "GET", path, f"?token={escaped}") == 200
        assert await status(tokens, "GET", path, f"?codec=vp8&token={escaped}") == 200
        assert await status(tokens, "GET", path, "?token=wrong") == 401
        assert await status(tokens, "GET", path, "?token=") == 401
        assert await status(Tokens(view="a+b/c="), "GET", path, "?token=a+b/c=") == 200
    assert await status(tokens, "GET", "/channels/main", f"?token={escaped}") == 401
