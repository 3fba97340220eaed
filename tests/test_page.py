import asyncio
import re
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from fakes import CRASH, REFUSE, UNREAD, serving, watching
from test_output_routes import played
from test_proxy import NGINX, proxied
from test_server import started

from engine.video.video_file import to_rgb

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium", path="/usr/bin")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--allow-loopback-in-peer-connection",
]
PAGE = Path(__file__).parents[1] / "streaming" / "page"
LIVE = "document.getElementById('connection').dataset.state === 'live'"
LIMIT_MS = 40_000
COUNT_FRAMES = """() => {
    const video = document.getElementById("video");
    window.shown = 0;
    const count = () => { window.shown += 1; video.requestVideoFrameCallback(count); };
    video.requestVideoFrameCallback(count);
}"""
ELSEWHERE = """async (server) => {
    const headers = {Authorization: "Bearer c"};
    const peer = new RTCPeerConnection();
    peer.addTransceiver("video", {direction: "recvonly"});
    await peer.setLocalDescription();
    const joined = await fetch(`${server}/whep/main`, {
        method: "POST", headers: {...headers, "content-type": "application/sdp"}, body: peer.localDescription.sdp,
    });
    const session = new URL(joined.headers.get("location"), joined.url);
    const fragment = {...headers, "content-type": "application/trickle-ice-sdpfrag", "if-match": '"stale"'};
    const trickled = await fetch(session, {method: "PATCH", headers: fragment, body: "a=end-of-candidates\\r\\n"});
    const told = [joined.headers.get("etag")?.length > 2, joined.headers.get("accept-patch")];
    const left = await fetch(session, {method: "DELETE", headers});
    const json = {...headers, "content-type": "application/json"};
    const change = {method: "PATCH", headers: json, body: '{"prompt": "a"}'};
    const steered = await fetch(`${server}/channels/main`, change).then((reply) => reply.status, () => "kept away");
    return [joined.status, ...told, trickled.status, left.status, steered];
}"""
PAUSE = """async () => {
    let stood = false;
    const badge = document.getElementById("connection");
    new MutationObserver(() => { stood ||= badge.dataset.state !== "live"; }).observe(badge, {attributes: true});
    document.getElementById("video").pause();
    await new Promise((resolve) => setTimeout(resolve, 2500));
    return stood;
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("loopback"),
    pytest.mark.skipif(CHROMIUM is None, reason="/usr/bin/chromium is missing: apt-get install chromium"),
]


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    """Chromium without a window, with media on loopback."""
    async with playwright.async_playwright() as driver:
        chromium = await driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        await chromium.close()


RELAYS_ONLY = """RTCPeerConnection = class extends RTCPeerConnection {
    constructor() { super({iceTransportPolicy: "relay"}); }
    setConfiguration(configuration) { super.setConfiguration({...configuration, iceTransportPolicy: "relay"}); }
}"""  # so that WebRTC does not connect


async def opened(browser: Any, url: str, width_px: int = 1280, script: str = "") -> tuple[Any, list[str]]:
    """The page when its video plays, and the list to which its uncaught errors go."""
    # The page's own policy forbids what playwright's waiting functions do.
    page = await browser.new_page(viewport={"width": width_px, "height": 800}, bypass_csp=True)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.add_init_script(script)
    await page.goto(url)
    await page.wait_for_function(LIVE, timeout=LIMIT_MS)
    await page.evaluate(COUNT_FRAMES)
    return page, errors


async def plays(page: Any) -> None:
    """Waits until eight more frames reached the screen."""
    await page.wait_for_function(f"window.shown >= {await page.evaluate('window.shown')} + 8", timeout=LIMIT_MS)


async def outcome(page: Any, prompt: str, name: str) -> str:
    """Sends a prompt, waits for the named outcome, and returns its text."""
    await page.fill("#prompt", prompt)
    await page.press("#prompt", "Enter")
    await page.wait_for_function(f"document.getElementById('outcome').dataset.state === '{name}'", timeout=LIMIT_MS)
    return str(await page.inner_text("#outcome"))


async def test_the_video_plays_and_follows_the_prompt(browser: Any) -> None:
    """Frames reach the screen; a prompt is taken, measured to its picture, and becomes the caption."""
    async with serving() as running:
        page, errors = await opened(browser, running.url)
        await plays(page)
        assert await page.evaluate("[video.videoWidth, video.videoHeight]") == [192, 128]
        assert "On screen after" in await outcome(page, "a green ball at night", "shown")
        assert (await running.report())["prompt"] == "a green ball at night"
        assert float(await page.inner_text("#reaction")) > 0
        assert await page.input_value("#prompt") == ""
        await page.wait_for_function("document.getElementById('caption').textContent === 'a green ball at night'")
        assert await page.inner_text("#timeline [data-when=now] button") == "a green ball at night"
        assert UNREAD in await outcome(page, f"a {UNREAD} ball", "shown")
        assert await page.locator("#words [data-kind=left]").all_inner_texts() == [UNREAD]
        assert 0 < float(await page.inner_text("#fps")) < 30
        assert float(await page.inner_text("#buffered")) >= 0
        await page.close()
        await running.until(lambda report: report["viewers"] == 0, 20.0)
        assert errors == []


async def test_a_refused_prompt_is_kept_with_the_reason(browser: Any) -> None:
    """The server's own words appear, the field is marked, and its text stays."""
    async with serving() as running:
        page, errors = await opened(browser, running.url)
        assert await outcome(page, REFUSE, "refused") == "this prompt is refused for the test"
        assert await page.input_value("#prompt") == REFUSE
        assert await page.get_attribute("#prompt", "aria-invalid") == "true"
        assert "empty" in await outcome(page, "   ", "refused")
        assert errors == []


async def test_an_idea_is_one_click(browser: Any) -> None:
    """A chip sends its prompt."""
    async with serving() as running:
        page, _ = await opened(browser, running.url)
        idea = page.locator("#ideas button").nth(1)
        await idea.click()
        text = await idea.inner_text()
        assert (await running.until(lambda report: report["prompt"] == text))["prompt"] == text


@pytest.mark.parametrize("width_px", [360, 820])
async def test_small_screens_need_no_sideways_scrolling(browser: Any, tmp_path: Path, width_px: int) -> None:
    """Nothing is wider than the page, not even a long word; on a phone the video takes its whole width."""
    async with serving("--recordings", str(tmp_path)) as running:
        page, _ = await opened(browser, running.url, width_px)
        await outcome(page, "w" * 500, "shown")
        await page.wait_for_function("document.getElementById('caption').textContent.length === 500")
        assert (await page.locator("#caption").bounding_box())["height"] < 60
        assert await page.evaluate("document.documentElement.scrollWidth") == width_px
        if width_px < 400:
            assert (await page.locator("#video").bounding_box())["width"] == pytest.approx(width_px, abs=1)
        for control in ("#prompt", "#form [type=submit]", "#channel", "#record", "#share", "#fullscreen"):
            box = await page.locator(control).bounding_box()
            assert 0 <= box["x"] and box["x"] + box["width"] <= width_px, control
        await page.click("#channel")
        box = await page.locator("#channels").bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= width_px


async def test_the_record_button_makes_a_file(browser: Any, tmp_path: Path) -> None:
    """It begins and ends a recording, says so on the picture, and the list has a link to a file that plays."""
    async with serving("--recordings", str(tmp_path), "--token", "s3cret") as running:
        page, errors = await opened(browser, f"{running.url}/?token=s3cret")
        await page.click("#record[aria-pressed=false]")
        await page.wait_for_selector("#on-record", timeout=LIMIT_MS)
        await plays(page)
        await page.keyboard.press("r")
        await page.wait_for_selector("#record[aria-pressed=false]", timeout=LIMIT_MS)
        assert await page.locator("#on-record").is_hidden()
        async with page.expect_download() as download:
            await page.click("#recordings a")
        file = tmp_path / "downloaded.mp4"
        await (await download.value).save_as(file)
        assert len(played(file.read_bytes())) >= 8
        assert errors == []


async def test_a_server_without_recordings_has_no_button_for_them(browser: Any) -> None:
    """Neither the button nor its key does anything there."""
    async with serving() as running:
        page, errors = await opened(browser, running.url)
        await page.keyboard.press("r")
        assert await page.locator("#record").is_hidden()
        assert await page.inner_text("#notice") == "" and errors == []


async def test_a_link_is_shared_without_its_token(browser: Any) -> None:
    """It is in the clipboard, and leads to the channel; where a page may not write there it is shown."""
    async with serving("--token", "s3cret") as running:
        page, errors = await opened(browser, f"{running.url}/?token=s3cret")
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.keyboard.press("s")
        await page.wait_for_selector("#notice[data-shown]")
        assert await page.evaluate("navigator.clipboard.readText()") == f"{running.url}/#main"
        await page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
        await page.click("#share")
        await page.wait_for_selector("#sharing[open]")
        assert await page.input_value("#link") == f"{running.url}/#main"
        assert errors == []


async def test_keys_do_what_the_page_says(browser: Any) -> None:
    """The list of keys names each; letters that are typed into a field are text."""
    async with serving() as running:
        page, errors = await opened(browser, running.url)
        await page.keyboard.press("?")
        await page.wait_for_selector("#keys[open]")
        assert await page.locator("#key-list kbd").all_inner_texts() == ["/", "F", "P", "R", "S", "C", "?"]
        await page.keyboard.press("c")
        assert await page.locator("#channels").is_hidden()
        await page.keyboard.press("Escape")
        await page.keyboard.press("c")
        await page.wait_for_selector("#channels:popover-open")
        await page.keyboard.press("Escape")
        await page.keyboard.press("/")
        await page.keyboard.type("frps?")
        assert await page.input_value("#prompt") == "frps?"
        assert await page.evaluate("document.fullscreenElement === null && !document.querySelector('dialog[open]')")
        await page.evaluate("document.activeElement.blur()")
        await page.keyboard.press("f")
        await page.wait_for_function("document.fullscreenElement?.id === 'stage'")
        assert errors == []


async def test_the_picture_gets_a_window_of_its_own(browser: Any) -> None:
    """The button opens and closes it; a browser that has no such windows has no button."""
    async with serving() as running:
        page, errors = await opened(browser, running.url)
        assert await page.evaluate("document.pictureInPictureEnabled")
        await page.click("#pip")
        await page.wait_for_function("document.pictureInPictureElement === video", timeout=LIMIT_MS)
        await page.click("#pip")
        await page.wait_for_function("document.pictureInPictureElement === null", timeout=LIMIT_MS)
        assert errors == []
        script = "Object.defineProperty(Document.prototype, 'pictureInPictureEnabled', {value: false})"
        page, _ = await opened(browser, running.url, script=script)
        assert await page.locator("#pip").is_hidden()


UNDERSTOOD = {
    "subject": "airplane", "colour": "green", "scene": "sunset", "direction": "left", "speed": "normal",
    "camera": "none", "second_subject": "ball", "second_colour": "pink", "relation": "above",
    "open": ["speed", "scene", "camera"], "no_effect": ["quickly"],
}  # fmt: skip


async def test_words_that_were_understood_are_told_from_others(browser: Any) -> None:
    """In the order of a sentence: what is shown, what the prompt leaves open, and what has no effect."""
    async with serving() as running:
        page, errors = await opened(browser, running.url)
        show = "answer => import('/page/words.js').then((module) => module.showWords(answer))"
        await page.evaluate(show, {"unread": ["zebra", "quickly"], "understood": UNDERSTOOD})
        chips = await page.evaluate(
            "[...document.querySelectorAll('#words li')].map((one) => [one.dataset.kind, one.innerText])"
        )
        read = [["read", "green airplane"], ["read", "above a pink ball"], ["read", "to the left"]]
        assert chips == [*read, ["open", "sunset"], ["left", "zebra"], ["left", "quickly"]]
        await page.evaluate(show, None)
        assert await page.locator("#words").is_hidden() and errors == []


async def test_the_menu_lists_channels(browser: Any) -> None:
    """Each with its picture, its prompt and who watches; the one on screen is marked."""
    async with serving("--token", "s3cret") as running:
        page, errors = await opened(browser, f"{running.url}/?token=s3cret")
        await page.click("#channel")
        row = page.locator("#channel-list a[aria-current=true]")
        await row.wait_for(timeout=LIMIT_MS)
        assert await row.locator("b").inner_text() == "main"
        assert await row.locator("span").inner_text() == (await running.report())["prompt"]
        assert await row.locator("small").inner_text() == "1 viewer"
        await page.wait_for_function("document.querySelector('#channel-list img').naturalWidth === 192")
        assert errors == []


async def test_channels_are_paused_and_ended_in_the_menu(browser: Any) -> None:
    """A click pauses one for all or lets it go on; to end one takes a second click, and both take the token."""
    async with serving("--control-token", "c0ntrol") as running:
        await running.http.post("/channels", json={"id": "sea", "prompt": "a boat"})
        page, errors = await opened(browser, running.url)
        await page.click("#channel")
        row = page.locator("#channel-list li[data-id=sea]")
        await row.wait_for(timeout=LIMIT_MS)
        await row.get_by_title("Pause sea for all who watch").click()
        await page.wait_for_selector("#lock[open]", timeout=LIMIT_MS)
        await page.fill("#token", "c0ntrol")
        await page.press("#token", "Enter")
        await page.click("#channel")
        await row.get_by_title("Pause sea for all who watch").click()
        await row.get_by_title("Let sea go on").click(timeout=LIMIT_MS)
        await row.get_by_title("Pause sea for all who watch").wait_for(timeout=LIMIT_MS)
        assert (await running.http.get("/channels/sea")).json()["state"] == "idle"
        end = row.get_by_title("End sea", exact=True)
        await end.click()
        end = row.get_by_title("End sea for all who watch")
        assert await end.inner_text() == "End it?"
        assert [one["id"] for one in (await running.http.get("/channels")).json()] == ["main", "sea"]
        await end.click()
        await row.wait_for(state="detached", timeout=LIMIT_MS)
        assert [one["id"] for one in (await running.http.get("/channels")).json()] == ["main"]
        assert errors == []


async def test_a_channel_is_made_and_shown(browser: Any) -> None:
    """The menu's form makes it with the control token, its video plays, and a refusal is told beside the form."""
    async with serving("--control-token", "c0ntrol") as running:
        page, errors = await opened(browser, running.url)
        await page.click("#channel")
        await page.fill("#new-prompt", "a red fish")
        await page.fill("#new-name", "sea")
        await page.press("#new-name", "Enter")
        await page.wait_for_selector("#lock[open]", timeout=LIMIT_MS)
        await page.fill("#token", "c0ntrol")
        await page.press("#token", "Enter")
        await page.click("#channel")
        await page.fill("#new-name", "main")
        await page.press("#new-name", "Enter")
        await page.locator("#new-channel output", has_text="main").wait_for(timeout=LIMIT_MS)
        await page.fill("#new-name", "sea")
        await page.press("#new-name", "Enter")
        await page.wait_for_function(
            "document.getElementById('caption').textContent === 'a red fish'", timeout=LIMIT_MS
        )
        await page.wait_for_function(LIVE, timeout=LIMIT_MS)
        assert await page.evaluate("location.hash") == "#sea"
        assert await page.inner_text("#channel") == "sea"
        assert [one["id"] for one in (await running.http.get("/channels")).json()] == ["main", "sea"]
        assert errors == []


@pytest.mark.parametrize("options", [(), ("--view-token", "see")], ids=["open", "view token"])
async def test_what_comes_next_is_a_strip(browser: Any, options: tuple[str, ...]) -> None:
    """Each part with its picture, when it comes and what it shows; a click drops it, but for the one on air."""
    async with serving(*options) as running:
        page, errors = await opened(browser, f"{running.url}/?token=see" if options else running.url)
        parts = page.locator("#plan-list li")
        await parts.nth(3).wait_for(timeout=LIMIT_MS)
        await page.wait_for_function("document.querySelector('#plan-list img').naturalWidth === 192", timeout=LIMIT_MS)
        # The list may lose its first row between two questions, but for one on air there always is.
        time, words = (await parts.nth(0).inner_text()).split("\n")
        assert time == "Now" and words == "red fish, to the left, sea"
        assert await parts.nth(0).locator("button").is_disabled()
        # Rows come and go, and stay in order.
        passed = "Number(document.querySelector('#plan-list li').dataset.frame) > 40"
        await page.wait_for_function(passed, timeout=LIMIT_MS)
        frames = await parts.evaluate_all("(rows) => rows.map((row) => Number(row.dataset.frame))")
        assert frames == list(range(frames[0], frames[-1] + 8, 8))
        last = parts.last
        assert re.match(r"in [0-9.]+ s\n", await last.inner_text())
        assert await last.get_attribute("data-rendered") == "false"
        await last.locator("button").click()
        await page.wait_for_selector("#notice[data-shown]", timeout=LIMIT_MS)
        assert "planned anew" in await page.inner_text("#notice")
        assert (await running.report())["seed"] == 1 and errors == []


async def test_without_look_ahead_there_is_no_strip(browser: Any) -> None:
    """A server that does not tell what comes is asked once."""
    asked = 0

    async def missing(route: Any) -> None:
        nonlocal asked
        asked += 1
        await route.fulfill(status=404, json={"detail": "There is no such page."})

    async with serving() as running:
        page = await browser.new_page(bypass_csp=True)
        await page.route("**/channels/main/plan", missing)
        await page.goto(running.url)
        await page.wait_for_function(LIVE, timeout=LIMIT_MS)
        await running.until(lambda report: report["frame"] > 60)
        assert await page.locator("#plan").is_hidden() and asked == 1


async def test_a_prompt_can_cut(browser: Any) -> None:
    """With the toggle it is on screen long before what is buffered was shown."""
    async with serving() as running:
        page, errors = await opened(browser, running.url)
        await running.until(lambda report: report["buffered_s"] > 1)
        await page.click("#cut")
        await outcome(page, "a red fish", "shown")
        assert float(await page.inner_text("#reaction")) < 1
        assert errors == []


async def test_a_channel_that_is_not_there_is_told(browser: Any) -> None:
    """In the page's words, with the menu to leave by."""
    async with serving() as running:
        page = await browser.new_page(bypass_csp=True)
        await page.goto(f"{running.url}/#nowhere")
        await page.wait_for_function(
            "document.getElementById('veil').textContent.includes('There is no channel nowhere')", timeout=LIMIT_MS
        )
        await page.click("#channel")
        await page.click("#channel-list a")
        await page.wait_for_function(LIVE, timeout=LIMIT_MS)
        assert await page.evaluate("location.hash") == "#main"


@pytest.mark.parametrize("script", ["", RELAYS_ONLY], ids=["WebRTC", "HTTP"])
async def test_the_page_outlives_engine_and_server(browser: Any, script: str) -> None:
    """After a crash of the engine and after a restart of the server the video plays again, without a reload.

    What was said of a prompt before is forgotten then, and one that the new server does not know is told and kept.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    # With a spare one the page hardly sees that the engine ended.
    async with serving("--port", port, "--no-spare-engine") as running:
        page, errors = await opened(browser, running.url, script=script)
        await outcome(page, "a green ball", "shown")
        assert (await running.http.patch("/channels/main", json={"prompt": CRASH})).status_code == 503
        await page.wait_for_function("document.getElementById('outcome').dataset.state === ''", timeout=LIMIT_MS)
        assert await page.inner_text("#outcome") == ""
        await page.wait_for_function(LIVE, timeout=LIMIT_MS)
        await plays(page)
        await outcome(page, "a red ball", "taken")
    await page.wait_for_function(f"!({LIVE})", timeout=LIMIT_MS)
    await page.wait_for_function("document.getElementById('connection').textContent.includes('Reconnecting')")
    async with serving("--port", port):
        await page.wait_for_function(LIVE, timeout=LIMIT_MS)
        await plays(page)
        said = "document.getElementById('outcome').textContent"
        await page.wait_for_function(f"{said}.includes('was started anew before this prompt was shown')")
        assert await page.input_value("#prompt") == "a red ball"
        assert errors == []
        await page.close()


async def test_the_page_restarts_ice(browser: Any) -> None:
    """Where the network changes the session goes on; one that the server does not know any more is joined anew."""
    async with serving() as running:
        page, errors = await opened(browser, running.url)
        joined: list[str] = []
        page.on("request", lambda request: joined.append(request.url) if request.method == "POST" else None)
        for _ in range(2):
            async with page.expect_response(
                lambda reply: reply.request.method == "PATCH" and reply.status == 200
            ) as said:
                await page.evaluate("dispatchEvent(new Event('online'))")
            await plays(page)
        assert joined == []
        await running.http.delete((await said.value).url)
        async with page.expect_response(lambda reply: reply.request.method == "POST" and reply.status == 201):
            await page.evaluate("dispatchEvent(new Event('online'))")
        await page.wait_for_function(LIVE, timeout=LIMIT_MS)
        await plays(page)
        assert errors == []


async def test_a_prompt_while_the_engine_restarts_is_refused_in_words(browser: Any) -> None:
    """The page says that the engine is coming back, and keeps the text."""
    async with serving() as running:
        page, _ = await opened(browser, running.url)
        await page.fill("#prompt", "a blue boat")
        assert (await running.http.patch("/channels/main", json={"prompt": CRASH})).status_code == 503
        await page.press("#prompt", "Enter")
        await page.wait_for_function("document.getElementById('outcome').dataset.state === 'refused'")
        assert "engine stopped and is coming back; try again" in await page.inner_text("#outcome")
        assert await page.input_value("#prompt") == "a blue boat"


async def test_a_dead_network_is_told_within_two_seconds(browser: Any) -> None:
    """While nothing arrives the page says that the picture stands; it is live again with the next pictures."""
    with started() as (process, url):
        page, errors = await opened(browser, url)
        await plays(page)
        process.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        await page.wait_for_function(f"!({LIVE})", timeout=LIMIT_MS)
        assert time.monotonic() - began_s < 3
        assert "The picture stands" in await page.inner_text("#veil")
        process.send_signal(signal.SIGCONT)
        await page.wait_for_function(LIVE, timeout=LIMIT_MS)
        assert errors == []


async def test_a_pause_is_no_dead_network(browser: Any) -> None:
    """A person who pauses the video is not told that the picture stands."""
    async with serving() as running:
        page, _ = await opened(browser, running.url)
        assert not await page.evaluate(PAUSE)


@pytest.mark.parametrize(("options", "steered"), [((), "kept away"), (("--control-token", "c"), 200)])
async def test_a_page_of_another_origin_watches(browser: Any, options: tuple[str, ...], steered: object) -> None:
    """Chromium's own preflights pass, and its headers are read; it steers where that needs a token, else not."""
    async with serving("--allow-origin", "*", *options) as running:
        page = await browser.new_page()
        # Another origin for a browser, though it is the same server.
        await page.goto(running.url.replace("127.0.0.1", "localhost") + "/healthz")
        wanted = [201, True, "application/trickle-ice-sdpfrag", 412, 200, steered]
        assert await page.evaluate(ELSEWHERE, running.url) == wanted


@pytest.mark.parametrize("address", ["/live", "/live/"])
async def test_the_page_plays_under_a_prefix(browser: Any, address: str) -> None:
    """Behind a proxy's path the page finds its files, the events and its video; a prompt reaches the channel."""
    async with serving("--root-path", "/live") as running:
        page, errors = await opened(browser, running.url + address)
        await plays(page)
        assert "On screen after" in await outcome(page, "a red fish", "shown")
        assert errors == []


@pytest.mark.skipif(NGINX is None, reason="nginx is missing: apt-get install nginx-light")
@pytest.mark.parametrize("strip", [False, True])
async def test_the_page_plays_behind_nginx(browser: Any, tmp_path: Path, strip: bool) -> None:
    """Over HTTPS under a path, with the token in the address, with and without its last slash."""
    async with (
        serving("--root-path", "/live", "--token", "s3cret") as running,
        proxied(tmp_path, running.url, strip) as http,
    ):
        page = await browser.new_page(bypass_csp=True, ignore_https_errors=True)
        await page.goto(f"{http.base_url}/live?token=s3cret")
        await page.wait_for_function(LIVE, timeout=LIMIT_MS)
        assert await page.evaluate("location.pathname + location.search") == "/live/"
        assert "On screen after" in await outcome(page, "a red fish", "shown")


async def test_a_locked_server_is_opened_with_its_token(browser: Any) -> None:
    """The page asks for the token, asks again after a wrong one, then plays and may change the prompt."""
    async with serving("--token", "s3cret") as running:
        page = await browser.new_page(bypass_csp=True)
        await page.goto(running.url)
        for token in ("wrong", "s3cret"):
            await page.wait_for_selector("#lock[open]", timeout=LIMIT_MS)
            await page.fill("#token", token)
            await page.press("#token", "Enter")
        await page.wait_for_function(LIVE, timeout=LIMIT_MS)
        assert "On screen after" in await outcome(page, "a red fish at night", "shown")


async def test_a_token_in_the_address_watches_and_another_steers(browser: Any) -> None:
    """The address loses its token, which is not shown again; a prompt asks for the control token."""
    async with serving("--control-token", "c0ntrol", "--view-token", "v+w") as running:
        page, errors = await opened(browser, f"{running.url}/?token=v+w#main")
        assert await page.evaluate("location.pathname + location.search + location.hash") == "/#main"
        assert "only watches" in await outcome(page, "a red fish", "refused")
        assert "control token" in await page.inner_text("#lock[open]")
        await page.fill("#token", "c0ntrol")
        await page.press("#token", "Enter")
        assert "On screen after" in await outcome(page, "a red fish", "shown")
        assert errors == []


@pytest.mark.parametrize("token", ["", "s3cret"])
async def test_without_webrtc_the_video_comes_over_http(browser: Any, token: str) -> None:
    """Where no UDP goes through the page plays live.mp4 and says so, in the engine's colours and with its token."""
    async with serving(*(["--token", token] if token else [])) as running:
        # With the page's own policy, which must allow the player.
        page = await browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.add_init_script(f"sessionStorage.setItem('token', '{token}'); {RELAYS_ONLY}")
        await page.goto(running.url)
        connection = page.locator("#connection[data-state=live]")
        await connection.wait_for(timeout=LIMIT_MS)
        assert await connection.inner_text() == "Live over HTTP"
        assert "WebRTC" in await connection.get_attribute("title")
        assert (await running.report())["viewers"] == 1
        await page.evaluate(COUNT_FRAMES)
        await asyncio.sleep(4)
        assert await page.evaluate("window.shown") > 3 * fakes.FPS
        assert await page.evaluate("video.buffered.end(video.buffered.length - 1) - video.currentTime") < 2
        pixels = np.array(await page.evaluate(PIXELS))
        wanted = to_rgb(fakes.test_frame(0))[24, 24 : 24 + 32 * 4 : 32].astype(int)
        assert np.abs(pixels - wanted).max() <= 6, f"{pixels.tolist()} for {wanted.tolist()}"
        await page.close()
        await running.until(lambda report: report["viewers"] == 0, 20.0)
        assert errors == []


PIXELS = """() => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    return [0, 1, 2, 3].map((place) => [...context.getImageData(24 + 32 * place, 24, 1, 1).data].slice(0, 3));
}"""


async def test_every_control_has_a_name(browser: Any) -> None:
    """Screen readers find a name for each button and field, also for those without text."""
    async with serving() as running:
        page, _ = await opened(browser, running.url)
        nameless = await page.evaluate(
            """() => [...document.querySelectorAll("button, input")]
                .filter((one) => !(one.textContent.trim() || one.ariaLabel || one.labels?.length))
                .map((one) => one.outerHTML)"""
        )
        assert nameless == []


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """No file of the page names another host, except as the name of the vocabulary of SVG."""
    for path in PAGE.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path


WATCH = """async (codec) => {
    const peer = new RTCPeerConnection();
    peer.addTransceiver("video", {direction: "recvonly"});
    const video = document.createElement("video");
    video.muted = true;
    peer.addEventListener("track", (event) => { video.srcObject = new MediaStream([event.track]); video.play(); });
    await peer.setLocalDescription();
    const reply = await fetch(`/whep/main?codec=${codec}`, {
        method: "POST", headers: {"content-type": "application/sdp"}, body: peer.localDescription.sdp,
    });
    await peer.setRemoteDescription({type: "answer", sdp: await reply.text()});
    for (let frame = 0; frame < 8; frame += 1) {
        await new Promise((resolve) => video.requestVideoFrameCallback(resolve));
    }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    peer.close();
    return [0, 1, 2, 3].map((place) => [...context.getImageData(24 + 32 * place, 24, 1, 1).data].slice(0, 3));
}"""


async def test_both_codecs_show_the_engines_colors(browser: Any) -> None:
    """Red, green, blue and a purple arrive on Chromium's screen as the engine's frame has them, whatever the codec."""
    frame = to_rgb(fakes.test_frame(0))
    wanted = np.array([frame[24, 24 + 32 * place] for place in range(4)], int)
    async with serving() as running:
        page, _ = await opened(browser, running.url)
        for codec in ("vp8", "h264"):
            shown = np.array(await page.evaluate(WATCH, codec))
            assert np.abs(shown - wanted).max() <= 6, f"{codec} shows {shown.tolist()} for {wanted.tolist()}"


async def test_ice_servers_of_the_answer_are_read(browser: Any) -> None:
    """Every link of the header counts that is an ICE server, with what stands between quotes as it is."""
    header = (
        '<turn:h:3478?transport=tcp>; rel="ice-server"; username="17:a,\\"b"; credential="x;y="; '
        'credential-type="password", <stun:[2001:db8::1]:3478>; rel=ice-server, </next>; rel="next"'
    )
    async with serving() as running:
        page, _ = await opened(browser, running.url)
        read = "header => import('/page/ice.js').then((module) => [module.iceServers(header), module.iceServers(null)])"
        assert await page.evaluate(read, header) == [
            [
                {"urls": "turn:h:3478?transport=tcp", "username": '17:a,"b', "credential": "x;y="},
                {"urls": "stun:[2001:db8::1]:3478"},
            ],
            [],
        ]


async def test_a_page_without_a_picture_links_to_the_doctor(browser: Any) -> None:
    """Where media cannot come through, the page keeps trying and says where to look."""
    async with serving("--max-viewers", "1") as running, watching(running):
        page = await browser.new_page(bypass_csp=True)
        await page.goto(running.url)
        await page.wait_for_function("!document.getElementById('why').hidden", timeout=LIMIT_MS)
        link = await page.evaluate("document.getElementById('why').href")
        assert link == f"{running.url}/doctor"
        await page.goto(link)
        assert "addresses" in await page.inner_text("table")
