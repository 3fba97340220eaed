// The menu of channels: what each shows, and a form that makes a new one.

import { isLocked, request } from "./api.js";
import { $, make, setText } from "./dom.js";
import { withToken } from "./token.js";

const LOOK_MS = 3000; // while the menu is open

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
    look(shown);
    timer = setInterval(look, LOOK_MS, shown);
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

async function look(shown) {
  const reports = await request("GET", "channels").then((reply) => reply.json(), () => null);
  if (!reports) return;
  const list = $("channel-list");
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  for (const report of reports) show(rows.get(report.id) ?? list.appendChild(rowOf(report.id, shown)), report);
  const ids = reports.map((report) => report.id);
  for (const [id, row] of rows) if (!ids.includes(id)) row.remove();
}

function rowOf(id, shown) {
  const picture = make("img", { alt: "", width: 72, height: 48 });
  // Nothing was on air yet.
  picture.addEventListener("error", () => picture.removeAttribute("src"));
  const link = make("a", { href: `#${encodeURIComponent(id)}` }, picture, make("b", { textContent: id }), make("span"), make("small"));
  if (id === shown) link.setAttribute("aria-current", "true");
  const row = make("li", {}, link);
  row.dataset.id = id;
  return row;
}

function show(row, { id, prompt, viewers, state, frame }) {
  const [picture, , words, facts] = row.firstElementChild.children;
  setText(words, prompt);
  const watching = viewers === 1 ? "1 viewer" : `${viewers} viewers`;
  setText(facts, state === "live" ? watching : state);
  // The address changes with the picture, so that the old one stays until the new one is there.
  const url = withToken(`channels/${encodeURIComponent(id)}/frame.jpg`);
  if (frame !== null) picture.src = `${url}${url.includes("?") ? "&" : "?"}frame=${frame}`;
}
