// Which words of a prompt were understood, as chips: what is shown, what was left open, and what has no effect.

import { $, make } from "./dom.js";

const NONE = ["none", "still", "normal"]; // of fields that nobody asked for
const MOVES = { left: "to the left", right: "to the right", up: "up", down: "down", still: "at rest", bouncing: "bouncing" };

const article = (word) => (/^[aeiou]/.test(word) ? "an" : "a");

/** Shows what an answer to a prompt tells of its words; null takes it away. */
export function showWords(answer) {
  const chips = answer ? [...understood(answer.understood), ...left(answer)] : [];
  $("words").replaceChildren(...chips.map(({ kind, label, title }) => {
    const chip = make("li", { textContent: label, title });
    chip.dataset.kind = kind;
    return chip;
  }));
}

/** What is shown, in the order of a sentence. */
function understood(record) {
  if (!record) return [];
  const { subject, colour, scene, direction, speed, camera, second_subject: other, second_colour, relation, open } = record;
  const chip = (label, ...fields) => {
    const isOpen = fields.every((field) => open.includes(field));
    const title = isOpen ? "The prompt leaves this open" : "Understood";
    return { kind: isOpen ? "open" : "read", label, title };
  };
  const chips = [chip(`${colour} ${subject}`, "colour", "subject")];
  if (other) chips.push(chip(`${relation === "left" ? "left of" : relation} ${article(second_colour)} ${second_colour} ${other}`, "second_subject"));
  if (!(NONE.includes(direction) && open.includes("direction"))) chips.push(chip(MOVES[direction] ?? direction, "direction"));
  if (!(NONE.includes(speed) && open.includes("speed"))) chips.push(chip(speed, "speed"));
  chips.push(chip(scene, "scene"));
  if (!NONE.includes(camera)) chips.push(chip(`camera to the ${camera}`, "camera"));
  return chips;
}

/** Words that change nothing. */
function left({ unread, understood: record }) {
  const words = [...new Set([...(unread ?? []), ...(record?.no_effect ?? [])])];
  return words.map((label) => ({ kind: "left", label, title: "Not understood: without effect" }));
}
