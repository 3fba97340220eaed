// The menu of channels: what each shows, buttons that pause and end it, and a form that makes a new one.

import { isLocked, request } from "./api.js";
import { $, icon, make, say, setText } from "./dom.js";
import { withToken } from "./token.js";

const LOOK_MS = 3000; // while the menu is open
const SURE_MS = 4000; // in which a second click ends a channel
const PAUSE = "M8 5v14M16 5v14";
const GO_ON = "M7 4v16l13-8z";
const END = "M6 6l12 12M18 6 6 18";

/** Makes the menu work; `shown` is the id on screen, `steer` is `request` for what needs the control token. */
export function channelMenu(shown, steer) {
  let timer;
  setText($("channel").querySelector("span"), shown);
  $("channel").ariaLabel = `Channel ${shown}`;
  document.title = `${shown} – landiff-live`;
  $("channels").addEventListener("toggle", ({ newState }) => {
    clearInterval(timer);
    $("channel").setAttribute("aria-expanded", String(newState === "open"));
    if (newState !== "open") return;
    look(shown, steer);
    timer = setInterval(look, LOOK_MS, shown, steer);
  });
  $("new-channel").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { prompt, name } = event.target.elements;
    const problem = event.target.querySelector("output");
    setText(problem, "Making it");
    try {
      const id = name.value.trim();
      const reply = await steer("POST", "channels", { prompt: prompt.value, ...(id ? { id } : {}) });
      location.hash = encodeURIComponent((await reply.json()).id);
    } catch (error) {
      setText(problem, error.message.replace(/^body\./, ""));
      if (isLocked(error)) $("channels").hidePopover();
    }
  });
}

async function look(shown, steer) {
  const reports = await request("GET", "channels").then((reply) => reply.json(), () => null);
  if (!reports) return;
  const list = $("channel-list");
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  for (const report of reports) show(rows.get(report.id) ?? list.appendChild(rowOf(report.id, shown, steer)), report);
  const ids = reports.map((report) => report.id);
  for (const [id, row] of rows) if (!ids.includes(id)) row.remove();
}

function rowOf(id, shown, steer) {
  const picture = make("img", { alt: "", width: 72, height: 48 });
  // Nothing was on air yet.
  picture.addEventListener("error", () => picture.removeAttribute("src"));
  const url = `channels/${encodeURIComponent(id)}`;
  const link = make("a", { href: `#${encodeURIComponent(id)}` }, picture, make("b", { textContent: id }), make("span"), make("small"));
  if (id === shown) link.setAttribute("aria-current", "true");
  const pause = make("button", { type: "button" }, icon(PAUSE));
  const end = make("button", { type: "button" }, icon(END), make("span"));
  const row = make("li", {}, link, pause, end);
  row.dataset.id = id;
  const act = async (method, body) => {
    try {
      await steer(method, url, body);
    } catch (error) {
      say(error.message);
      if (isLocked(error)) $("channels").hidePopover();
    }
    look(shown, steer);
  };
  pause.addEventListener("click", () => act("PATCH", { paused: row.dataset.paused !== "true" }));
  end.addEventListener("click", () => (end.dataset.sure ? act("DELETE") : ask(end, id)));
  ask(end, id, false);
  return row;
}

/** Asks whether a channel is to end, for a while; or asks no more. */
function ask(button, id, sure = true) {
  if (sure) button.dataset.sure = "true";
  else delete button.dataset.sure;
  setText(button.lastElementChild, sure ? "End it?" : "");
  button.title = button.ariaLabel = sure ? `End ${id} for all who watch` : `End ${id}`;
  if (sure) setTimeout(() => ask(button, id, false), SURE_MS);
}

function show(row, { id, prompt, viewers, state, frame }) {
  const [link, pause] = row.children;
  const [picture, , words, facts] = link.children;
  const paused = state === "paused";
  row.dataset.paused = String(paused);
  pause.title = pause.ariaLabel = paused ? `Let ${id} go on` : `Pause ${id} for all who watch`;
  pause.querySelector("path").setAttribute("d", paused ? GO_ON : PAUSE);
  setText(words, prompt);
  const watching = viewers === 1 ? "1 viewer" : `${viewers} viewers`;
  setText(facts, state === "live" ? watching : state);
  // The address changes with the picture, so that the old one stays until the new one is there.
  const url = withToken(`channels/${encodeURIComponent(id)}/frame.jpg`);
  if (frame !== null) picture.src = `${url}${url.includes("?") ? "&" : "?"}frame=${frame}`;
}
