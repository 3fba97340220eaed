// Prompts to try.

// What the small model's world holds: a colour, a subject, a motion and a scene.
export const IDEAS = [
  "a red car drives slowly to the right through the desert",
  "a white sailboat drifts gently to the left on the sea",
  "a yellow ball rolls quickly to the right over green hills",
  "a blue fish swims up under the stars at night",
  "a purple car goes fast to the left at night",
  "a green ball floats slowly up in the desert at sunset",
  "a red sailboat sails to the right over the blue sea",
  "a white fish glides down over the hills on a sunny day",
];
export const PARTS = {
  colour: ["red", "yellow", "green", "blue", "purple", "white"],
  subject: { ball: "floats", sailboat: "sails", car: "drives", fish: "swims" },
  speed: ["slowly", "at a steady pace", "fast"],
  direction: ["to the left", "to the right", "up", "down"],
  scene: ["over green hills", "in the desert at sunset", "on the sea", "under the stars at night"],
};

const pick = (list) => list[Math.floor(Math.random() * list.length)];

/** A prompt that nobody chose. */
export function surprise() {
  const subject = pick(Object.keys(PARTS.subject));
  const verb = PARTS.subject[subject];
  return `a ${pick(PARTS.colour)} ${subject} ${verb} ${pick(PARTS.speed)} ${pick(PARTS.direction)} ${pick(PARTS.scene)}`;
}
