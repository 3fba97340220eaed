import httpx
import pytest
from fastapi import FastAPI, Response

from streaming.http.access import Tokens
from streaming.http.cors import EXPOSED, Cors

OURS, OTHER = "https://page.example", "https://evil.example"


def client(*origins: str, tokens: Tokens | None = None) -> httpx.AsyncClient:
    made = FastAPI()
    made.add_middleware(Cors, origins=frozenset(origins), tokens=tokens or Tokens())

    @made.options("/{path:path}")
    async def options(path: str) -> Response:
        return Response(status_code=204, headers={"Allow": "DELETE, GET, HEAD, OPTIONS, PATCH, POST"})

    @made.post("/whep/main")
    async def post() -> str:
        return "in"

    return httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://test")


def preflight(origin: str, method: str = "POST") -> dict[str, str]:
    return {"origin": origin, "access-control-request-method": method}


@pytest.mark.parametrize("origins", [(OURS,), (OURS, "http://localhost:3000"), ("*",)])
async def test_a_page_of_an_allowed_origin_may_watch(origins: tuple[str, ...]) -> None:
    """Its preflight names methods and headers, and it may read what WHEP tells in headers, of errors too."""
    async with client(*origins) as http:
        reply = await http.options("/whep/main", headers=preflight(OURS))
        assert reply.status_code == 204
        allowed = "*" if origins == ("*",) else OURS
        assert reply.headers["access-control-allow-origin"] == allowed
        assert "POST" in reply.headers["access-control-allow-methods"].split(", ")
        assert {"Authorization", "Content-Type", "If-Match"} <= set(
            reply.headers["access-control-allow-headers"].split(", ")
        )
        for answer in (await http.post("/whep/main", headers={"origin": OURS}), await http.get("/x")):
            assert answer.headers.get("vary") == (None if allowed == "*" else "Origin")
        answer = await http.put("/whep/main", headers={"origin": OURS})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (405, allowed)
        assert answer.headers["access-control-expose-headers"] == EXPOSED
        assert {"Location", "ETag", "Link", "Accept-Patch"} <= set(EXPOSED.split(", "))


@pytest.mark.parametrize("origin", [OTHER, "null", "", f"{OURS}.evil.example", f"{OURS}:444", OURS.upper()])
async def test_other_origins_get_the_answer_without_the_headers(origin: str) -> None:
    """A preflight is no error, and a browser stops there."""
    async with client(OURS) as http:
        for reply in (
            await http.options("/whep/main", headers=preflight(origin)),
            await http.post("/whep/main", headers={"origin": origin}),
        ):
            assert reply.status_code in (200, 204)
            assert not [name for name in reply.headers if name.startswith("access-control")]


async def test_pages_steer_only_where_a_token_is_asked_for() -> None:
    """Without one any page that somebody opens could change the prompt."""
    for tokens, steers in ((None, False), (Tokens(control="x"), True), (Tokens(view="x"), True)):
        for origins in (("*",), (OURS,)):
            async with client(*origins, tokens=tokens) as http:
                reply = await http.options("/channels/main", headers=preflight(OURS, "PATCH"))
                methods = reply.headers["access-control-allow-methods"].split(", ")
                assert ("PATCH" in methods) == ("DELETE" in methods) == ("POST" in methods) == steers
                assert {"GET", "HEAD"} <= set(methods)
