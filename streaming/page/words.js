// Which words of a prompt were understood, as chips: what is shown, what was left open, and what has no effect.

import { $, make } from "./dom.js";

const MOVES = { left: "to the left", right: "to the right", still: "at rest" }; // others are their own word

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

/** What a part of the plan shows, in few words; some fields may be missing. */
export function phrase({ subject, colour, scene, direction, second_subject: other, second_colour: otherColour }) {
  const things = [[colour, subject], [otherColour, other]].map((words) => words.filter(Boolean).join(" "));
  return [things.filter(Boolean).join(" and "), MOVES[direction] ?? direction, scene].filter(Boolean).join(", ");
}

/** What is shown, in the order of a sentence. */
function understood(record) {
  if (!record) return [];
  const isOpen = (field) => record.open.includes(field);
  const chips = [];
  const add = (label, field) => {
    const title = isOpen(field) ? "The prompt leaves this open" : "Understood";
    chips.push({ kind: isOpen(field) ? "open" : "read", label, title });
  };
  const { subject, colour, direction, speed, camera, second_subject: other, second_colour: otherColour } = record;
  if (isOpen("colour") === isOpen("subject")) add(`${colour} ${subject}`, "subject");
  else ["colour", "subject"].forEach((field) => add(record[field], field));
  const where = record.relation === "left" ? "left of" : record.relation;
  if (other) add(`${where} ${article(otherColour)} ${otherColour} ${other}`, "second_subject");
  // What nobody asked for and is not there needs no word.
  if (!isOpen("direction") || direction !== "still") add(MOVES[direction] ?? direction, "direction");
  if (!isOpen("speed") || speed !== "normal") add(`${speed} speed`, "speed");
  add(record.scene, "scene");
  if (camera !== "none") add(`camera to the ${camera}`, "camera");
  return chips;
}

/** Words that change nothing. */
function left({ unread, understood: record }) {
  const words = [...new Set([...(unread ?? []), ...(record?.no_effect ?? [])])];
  return words.map((label) => ({ kind: "left", label, title: "Not understood: without effect" }));
}
