// The page: the state of the channel on screen around the player, and what people can do with it.

import { isLocked, request } from "./api.js";
import { channelMenu } from "./channels.js";
import { $, make, say, setText } from "./dom.js";
import { Events } from "./events.js";
import { IDEAS, PARTS, surprise } from "./ideas.js";
import { listen } from "./keys.js";
import { copyPicture, glow, watchPicture, watchRate } from "./picture.js";
import { PlanStrip } from "./plan.js";
import { PromptBox } from "./prompt.js";
import { Recorder } from "./record.js";
import { showEngine, showTimeline } from "./report.js";
import { share } from "./share.js";
import { headers, keepToken, takeToken, withToken } from "./token.js";
import { OVER_HTTP, WhepPlayer } from "./whep.js";

const FIRST_CHANNEL = "main"; // on screen where the address names none, as in /#sea

const video = $("video");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const channels = new Map(); // by id, what this page has open of each: player and events
let shown; // the entry of `channels` on screen, with its prompt box, plan and recordings
let state; // its newest report; null while the server cannot be reached
let standing = false; // no new picture reaches the screen
let playing = { state: "connecting", detail: "" };

/** One word for styles and one line for people, from what the player and the channel say. */
function connection() {
  if (playing.state === "locked") return ["locked", "Locked", "This server asks for its token."];
  if (state === undefined) return ["connecting", "Connecting", "Connecting"];
  const seen = playing.state === "playing" && !standing;
  if (state === null && seen) return ["live", "Live", ""];
  if (state === null) return ["waiting", "Reconnecting", playing.missing ?? "The server cannot be reached. Trying again."];
  if (state.state === "failed") return ["failed", "Stopped", state.error];
  if (state.state === "starting") return ["starting", "Starting", `The engine is starting. ${state.progress ?? ""}`];
  if (playing.state !== "playing") {
    const detail = playing.state === "waiting" ? playing.detail : "Joining the stream";
    return [playing.state, playing.state === "waiting" ? "Reconnecting" : "Connecting", detail];
  }
  if (state.state === "paused") return ["live", "Paused", "The channel is paused for all who watch."];
  if (standing) return ["waiting", "Standing still", "The picture stands: nothing new arrives. Waiting for the network."];
  if (state.state === "restarting") return ["restarting", "Recovering", "The engine stopped and is coming back."];
  if (state.state === "stalled") {
    return ["restarting", "Recovering", "The engine does not answer. It is restarted if that goes on."];
  }
  return ["live", playing.detail === OVER_HTTP ? "Live over HTTP" : "Live", playing.detail];
}

function showConnection() {
  const [name, word, detail] = connection();
  const veiled = name !== "live";
  $("stage").dataset.state = $("connection").dataset.state = name;
  setText($("connection").lastElementChild, word);
  $("connection").title = veiled ? "" : detail;
  if (veiled) setText($("veil").querySelector("p"), detail);
  // Only a server that answers can say why there is no picture.
  $("why").href = withToken("doctor");
  $("why").hidden = !state || !["waiting", "failed"].includes(name);
}

function onPlayer(name, detail, status) {
  // The last picture stays behind the next stream until that has one.
  if (name === "connecting" && video.videoWidth > 0) copyPicture(video, $("still"), video.videoWidth, video.videoHeight);
  const missing = status === 404 ? `There is no channel ${shown.id}. The menu above has those that run.` : playing.missing;
  playing = { state: name, detail, missing: name === "playing" ? undefined : missing };
  if (name === "locked") unlock("This server asks for its token");
  showConnection();
}

function onState(report) {
  const joinable = report.width !== null && report.state !== "failed";
  if (joinable && state?.width == null) shown.player.retry();
  if (state === null) shown.prompt.recheck(report);
  if (["starting", "restarting", "failed"].includes(report.state)) shown.prompt.forget();
  // What is listed may have changed while nobody heard of it.
  if (!state) shown.recorder.look();
  state = report;
  shown.prompt.onState(report);
  shown.plan.onState(report);
  setText($("buffered"), report.buffered_s.toFixed(1));
  setText($("factor"), report.realtime_factor?.toFixed(report.realtime_factor < 10 ? 2 : 0) ?? "–");
  showConnection();
  showTimeline(state);
  showEngine(state);
}

function onLost() {
  state = null;
  shown.prompt.forget();
  for (const id of ["buffered", "factor"]) setText($(id), "–");
  showConnection();
}

function onPrompt(event) {
  const entry = state.prompts.find((one) => one.frame === event.frame && one.prompt === event.prompt);
  if (entry) entry.shown = true;
  showTimeline(state);
  shown.prompt.onPrompt(event);
}

/** A request that steers: it asks the person for the control token where that is missing. */
async function steer(method, url, body) {
  try {
    return await request(method, url, body);
  } catch (error) {
    if (isLocked(error)) unlock("To change the video takes the control token");
    throw error;
  }
}

/** Asks the person for a token. */
function unlock(words) {
  setText($("lock-title"), words);
  $("token").value = "";
  if (!$("lock").open) $("lock").showModal();
}

function offer(label, prompt, colour) {
  const button = make("button", { type: "button", textContent: label });
  button.dataset.colour = colour;
  button.addEventListener("click", () => {
    $("prompt").value = prompt();
    shown.prompt.send($("prompt").value);
  });
  $("ideas").append(make("li", {}, button));
}

function toggleFullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else if ($("stage").requestFullscreen) $("stage").requestFullscreen();
  else video.webkitEnterFullscreen(); // iPhone
}

function togglePip() {
  if ($("pip").hidden) return;
  if (document.pictureInPictureElement) document.exitPictureInPicture();
  else video.requestPictureInPicture().catch(() => say("There is no picture for a window of its own yet."));
}

/** Ends the waits before the next attempts: the network or the person is back. */
function hurry() {
  for (const channel of channels.values()) {
    channel.events.retry();
    channel.player.retry();
  }
}

/** Opens a channel on screen. */
function show(id) {
  // Relative: a proxy may serve the page under a path of its own.
  const url = `channels/${encodeURIComponent(id)}`;
  const addresses = [`whep/${encodeURIComponent(id)}`, `${url}/live.mp4?mse=true`];
  const player = new WhepPlayer(video, ...addresses, headers, onPlayer);
  const mode = () => ($("cut").getAttribute("aria-pressed") === "true" ? "cut" : "flow");
  const change = async (prompt) => (await steer("PATCH", url, { prompt, mode: mode() })).json();
  const prompt = new PromptBox(change, () => playing.state === "playing");
  const listeners = { state: onState, prompt: onPrompt, replaced: (event) => prompt.onReplaced(event) };
  const events = new Events(() => withToken(`${url}/events`), listeners, () => player.check(), onLost);
  shown = { id, player, events, prompt, plan: new PlanStrip(url, steer), recorder: new Recorder(url, steer) };
  channels.set(id, shown);
  channelMenu(id, steer);
  player.start();
  events.listen();
}

/** What people can do by a button and by a key. */
function listenToPeople() {
  $("fullscreen").addEventListener("click", toggleFullscreen);
  $("pip").addEventListener("click", togglePip);
  $("pip").hidden = !document.pictureInPictureEnabled;
  $("record").addEventListener("click", () => shown.recorder.toggle());
  $("share").addEventListener("click", () => share(shown.id));
  $("cut").addEventListener("click", () => {
    $("cut").setAttribute("aria-pressed", String($("cut").getAttribute("aria-pressed") !== "true"));
  });
  $("help").addEventListener("click", () => $("keys").showModal());
  $("lock").addEventListener("submit", () => {
    keepToken($("token").value);
    hurry();
    shown.recorder.look();
  });
  listen({
    "/": { label: "Write what happens next", run: () => $("prompt").focus() },
    f: { label: "Full screen", run: toggleFullscreen },
    p: { label: "Picture in picture", run: togglePip },
    r: { label: "Record, or stop recording", run: () => shown.recorder.toggle() },
    s: { label: "Share a link", run: () => share(shown.id) },
    c: { label: "Channels", run: () => $("channels").togglePopover() },
  });
}

function start() {
  offer("Surprise me", surprise, "any");
  for (const idea of IDEAS) offer(idea, () => idea, idea.split(" ").find((word) => PARTS.colour.includes(word)));
  addEventListener("pagehide", () => channels.forEach((channel) => channel.player.stop()));
  addEventListener("hashchange", () => location.reload());
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  for (const name of ["online", "visibilitychange"]) addEventListener(name, hurry);
  addEventListener("online", () => channels.forEach((channel) => channel.player.moved()));
  if (!calm.matches) glow(video, $("glow"));
  watchRate(video, (rate) => {
    setText($("fps"), playing.state === "playing" && rate > 0 ? rate.toFixed(rate < 10 ? 1 : 0) : "–");
  });
  watchPicture(video, (stands) => {
    standing = stands;
    showConnection();
  });
  takeToken();
  show(decodeURIComponent(location.hash.slice(1)) || FIRST_CHANNEL);
  listenToPeople();
}

start();
