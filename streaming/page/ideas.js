// Prompts to try.

// What the small model's world holds: a colour, a subject, a motion and a scene.
export const IDEAS = [
  "a red hot-air balloon drifts slowly to the right over green hills",
  "a white sailboat drifts gently to the left on the sea",
  "a yellow car drives fast to the right over the city at night, the camera pans right",
  "an orange fish swims to the left deep under water",
  "a pink butterfly flutters up over the mountains at sunset",
  "a blue ball bounces in the desert by day",
  "a green airplane above a red car moves to the right at sunset",
  "a purple bird flies down over the hills on a sunny day",
];
export const PARTS = {
  colour: ["red", "yellow", "green", "blue", "purple", "white", "orange", "pink"],
  subject: {
    ball: "floats", sailboat: "sails", car: "drives", fish: "swims",
    "hot-air balloon": "drifts", bird: "flies", airplane: "flies", butterfly: "flutters",
  },
  speed: ["slowly", "at a steady pace", "fast"],
  direction: ["to the left", "to the right", "up", "down"],
  scene: ["over green hills", "through the desert", "on the sea", "over the city at night", "at sunset", "under water"],
  camera: ["", "", "", ", the camera pans left", ", the camera pans right"],
};

const pick = (list) => list[Math.floor(Math.random() * list.length)];

/** A prompt that nobody chose. */
export function surprise() {
  const subject = pick(Object.keys(PARTS.subject));
  const verb = PARTS.subject[subject];
  const colour = pick(PARTS.colour);
  const article = colour === "orange" ? "an" : "a";
  const motion = `${verb} ${pick(PARTS.speed)} ${pick(PARTS.direction)}`;
  return `${article} ${colour} ${subject} ${motion} ${pick(PARTS.scene)}${pick(PARTS.camera)}`;
}
