// Keys for what the page can do, and the list of them that it shows.

import { $, make } from "./dom.js";

const OWN = "input, textarea, select, [contenteditable]"; // where letters are text

/** `actions` maps a key to { label, run }; "?" shows them all. */
export function listen(actions) {
  const all = { ...actions, "?": { label: "Show these keys", run: () => $("keys").showModal() } };
  for (const [key, { label }] of Object.entries(all)) {
    $("key-list").append(make("dt", {}, make("kbd", { textContent: key.toUpperCase() })), make("dd", { textContent: label }));
  }
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.matches(OWN) || document.querySelector("dialog[open]")) return;
    const action = all[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action.run();
  });
}
