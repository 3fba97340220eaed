// What a channel's report says, on the page: the caption, the timeline of prompts, and the engine's facts.

import { $, clock, make, seconds, setText } from "./dom.js";

/** Shows the prompts of a report: the one on screen, those before it and those to come. */
export function showTimeline(state) {
  const entries = state.prompts.filter((entry) => !entry.replaced_by).toReversed();
  const current = entries.findIndex((entry) => entry.shown);
  const on = entries[current] ?? entries.at(-1);
  setText($("caption"), on.prompt);
  const rows = entries.map((entry, place) => {
    const when = place === current ? "now" : place > current && current >= 0 ? "past" : "next";
    const label = { now: "On screen", past: placeOf(entry.frame, state), next: ahead(entry.frame, state) }[when];
    return { prompt: entry.prompt, when, label };
  });
  const list = $("timeline");
  while (list.children.length > rows.length) list.lastElementChild.remove();
  while (list.children.length < rows.length) list.append(timelineRow());
  rows.forEach((row, place) => {
    const item = list.children[place];
    item.dataset.when = row.when;
    const [time, button] = item.children;
    setText(time, row.label);
    setText(button, row.prompt);
  });
}

function timelineRow() {
  const button = make("button", { type: "button", title: "Use this prompt again" });
  button.addEventListener("click", () => {
    $("prompt").value = button.textContent;
    $("prompt").focus();
  });
  return make("li", {}, make("time"), button);
}

/** Shows the facts of a report. */
export function showEngine(state) {
  const stages = Object.entries(state.chunk?.ms ?? {});
  const facts = {
    Model: state.preset,
    Picture: state.width ? `${state.width} × ${state.height}, ${state.fps} fps` : "–",
    Frame: state.frame?.toLocaleString("en") ?? "–",
    Seed: state.seed,
    Steps: state.steps ?? "–",
    ...Object.fromEntries(stages.map(([stage, ms]) => [`Last chunk, ${stage}`, `${Math.round(ms)} ms`])),
    "Late frames": state.repeats,
    Viewers: state.viewers,
  };
  const list = $("engine");
  const names = Object.keys(facts);
  if (list.children.length !== 2 * names.length) {
    list.replaceChildren(...names.flatMap(() => [document.createElement("dt"), document.createElement("dd")]));
  }
  names.forEach((name, place) => {
    setText(list.children[2 * place], name);
    setText(list.children[2 * place + 1], String(facts[name]));
  });
}

/** Place of a frame in the video. */
const placeOf = (frame, { fps }) => (fps ? clock(frame / fps) : "–");

function ahead(frame, state) {
  if (!state.fps || state.frame === null) return "Next";
  return `In ${seconds(Math.max(0, frame - state.frame) / state.fps)}`;
}
