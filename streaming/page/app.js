// The page: the state and prompts of the channel on screen around the player. State arrives as server-sent events.

import { Events } from "./events.js";
import { IDEAS, PARTS, surprise } from "./ideas.js";
import { copyPicture, glow, watchPicture, watchRate } from "./picture.js";
import { $, seconds, setText, showEngine, showTimeline } from "./report.js";
import { headers, keepToken, takeToken, withToken } from "./token.js";
import { Problem } from "./problem.js";
import { OVER_HTTP, WhepPlayer } from "./whep.js";

const FIRST_CHANNEL = "main"; // on screen where the address names none, as in /#sea
const ANSWER_MS = 15000; // for a prompt; the server gives up before

const video = $("video");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const channels = new Map(); // by id, what this page has open of each: player, events, newest report
let shown; // the entry of `channels` on screen
let state; // its newest report; null while the server cannot be reached
let standing = false; // no new picture reaches the screen
let playing = { state: "connecting", detail: "" };
let pending = null; // the last change sent: { prompt, frame, sentMs }; frame is null before the answer

/** One word for styles and one line for people, from what the player and the channel say. */
function connection() {
  if (playing.state === "locked") return ["locked", "Locked", "This server asks for its token."];
  if (state === undefined) return ["connecting", "Connecting", "Connecting"];
  const seen = playing.state === "playing" && !standing;
  if (state === null && seen) return ["live", "Live", ""];
  if (state === null) return ["waiting", "Reconnecting", "The server cannot be reached. Trying again."];
  if (state.state === "failed") return ["failed", "Stopped", state.error];
  if (state.state === "starting") return ["starting", "Starting", `The engine is starting. ${state.progress ?? ""}`];
  if (playing.state !== "playing") {
    const detail = playing.state === "waiting" ? playing.detail : "Joining the stream";
    return [playing.state, playing.state === "waiting" ? "Reconnecting" : "Connecting", detail];
  }
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

function onPlayer(name, detail) {
  // The last picture stays behind the next stream until that has one.
  if (name === "connecting" && video.videoWidth > 0) copyPicture(video, $("still"), video.videoWidth, video.videoHeight);
  playing = { state: name, detail };
  if (name === "locked") unlock("This server asks for its token");
  showConnection();
}

function onState(report) {
  const joinable = report.width !== null && report.state !== "failed";
  if (joinable && state?.width == null) shown.player.retry();
  if (state === null) recheck(report);
  if (["starting", "restarting", "failed"].includes(report.state)) forget();
  state = report;
  const newest = report.prompts.at(-1);
  // An event may have been lost with a connection; the report knows too.
  if (pending?.frame != null && newest.prompt === pending.prompt && newest.shown) settle();
  setText($("buffered"), report.buffered_s.toFixed(1));
  setText($("factor"), report.realtime_factor?.toFixed(report.realtime_factor < 10 ? 2 : 0) ?? "–");
  showConnection();
  showTimeline(state);
  showEngine(state);
}

/** The server is back: one that was started anew knows nothing of what it had accepted. */
function recheck(report) {
  if (pending?.frame == null || report.prompts.some((entry) => entry.prompt === pending.prompt)) return;
  if ($("prompt").value === "") $("prompt").value = pending.prompt;
  pending = null;
  outcome("refused", "The server was started anew before this prompt was shown. Send it again.");
}

/** What was said of an earlier engine or server is over. */
function forget() {
  if ($("outcome").dataset.state === "shown") outcome("", "");
  setText($("reaction"), "–");
}

function onLost() {
  state = null;
  forget();
  for (const id of ["buffered", "factor"]) setText($(id), "–");
  showConnection();
}

function onPrompt({ prompt, frame }) {
  const entry = state.prompts.find((one) => one.frame === frame && one.prompt === prompt);
  if (entry) entry.shown = true;
  showTimeline(state);
  if (pending && prompt === pending.prompt && (pending.frame ?? frame) === frame) settle();
}

async function send(text) {
  const change = { prompt: text.trim(), frame: null, sentMs: performance.now() };
  pending = change;
  outcome("sending", "Sending");
  try {
    const answer = await ask(change.prompt);
    if ($("prompt").value === text) $("prompt").value = "";
    if (pending !== change) return;
    if (answer.replaced_by) return replaced(answer.replaced_by);
    Object.assign(change, { prompt: answer.prompt, frame: answer.frame, unread: answer.unread });
    const when = playing.state === "playing" ? ` On screen in about ${seconds(answer.eta_s)}.` : "";
    outcome("taken", `Planned.${when}${leftOut(change)}`, answer.eta_s);
  } catch (error) {
    if (pending !== change) return;
    pending = null;
    if ([401, 403].includes(error.status)) unlock("To change the video takes the control token");
    // The server names the field; people see only one.
    outcome("refused", error.message.replace(/^body\.prompt: /, ""));
  }
}

/** Asks the person for a token. */
function unlock(words) {
  setText($("lock-title"), words);
  $("token").value = "";
  if (!$("lock").open) $("lock").showModal();
}

/** The server's answer to a prompt. Throws Problem or another Error whose message is for people. */
async function ask(prompt) {
  const reply = await fetch(shown.url, {
    method: "PATCH",
    headers: { ...headers(), "Content-Type": "application/json" },
    body: JSON.stringify({ prompt, mode: "flow" }),
    signal: AbortSignal.timeout(ANSWER_MS),
  }).catch((error) => {
    throw new Error("The server cannot be reached. Your prompt is still here; try again.", { cause: error });
  });
  if (!reply.ok) throw await Problem.from(reply);
  return reply.json();
}

/** The pending prompt's first frame is on air. */
function settle() {
  const tookS = (performance.now() - pending.sentMs) / 1000;
  const words = leftOut(pending);
  pending = null;
  setText($("reaction"), tookS.toFixed(1));
  outcome("shown", `On screen after ${seconds(tookS)}.${words}`);
}

/** What the model did not read of a prompt, as a sentence. */
function leftOut({ unread }) {
  return unread?.length ? ` Not understood: ${unread.join(", ")}.` : "";
}

function outcome(name, text, waitS = 0) {
  const box = $("outcome");
  box.dataset.state = name;
  setText(box.firstElementChild, text);
  $("prompt").setAttribute("aria-invalid", String(name === "refused"));
  const meter = box.lastElementChild;
  meter.getAnimations().forEach((animation) => animation.cancel());
  if (waitS > 0 && !calm.matches) meter.animate({ transform: ["scaleX(0)", "scaleX(1)"] }, waitS * 1000);
}

/** A prompt that was accepted is never shown, since another took its place. */
function onReplaced({ prompt, frame, replaced_by: other }) {
  if (pending && prompt === pending.prompt && pending.frame === frame) replaced(other);
}

function replaced(other) {
  pending = null;
  outcome("refused", `Another prompt came in its place before it was shown: ${other}`);
}

function offer(label, prompt, colour) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.dataset.colour = colour;
  button.addEventListener("click", () => {
    $("prompt").value = prompt();
    send($("prompt").value);
  });
  item.append(button);
  $("ideas").append(item);
}

function toggleFullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else if ($("stage").requestFullscreen) $("stage").requestFullscreen();
  else video.webkitEnterFullscreen(); // iPhone
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input") || $("lock").open) return;
  if (event.key === "f") toggleFullscreen();
  else if (event.key === "/") $("prompt").focus();
  else return;
  event.preventDefault();
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
  const player = new WhepPlayer(video, `whep/${encodeURIComponent(id)}`, `${url}/live.mp4`, headers, onPlayer);
  const listeners = { state: onState, prompt: onPrompt, replaced: onReplaced };
  const events = new Events(() => withToken(`${url}/events`), listeners, () => player.check(), onLost);
  shown = { id, url, player, events };
  channels.set(id, shown);
  player.start();
  events.listen();
}

function start() {
  offer("Surprise me", surprise, "any");
  for (const idea of IDEAS) offer(idea, () => idea, PARTS.colour.find((colour) => idea.includes(colour)));
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send($("prompt").value);
  });
  $("lock").addEventListener("submit", () => {
    keepToken($("token").value);
    hurry();
  });
  $("fullscreen").addEventListener("click", toggleFullscreen);
  addEventListener("keydown", onKey);
  addEventListener("pagehide", () => channels.forEach((channel) => channel.player.stop()));
  addEventListener("hashchange", () => location.reload());
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  for (const name of ["online", "visibilitychange"]) addEventListener(name, hurry);
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
}

start();
