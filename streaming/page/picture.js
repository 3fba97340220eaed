// What the video element shows: how many pictures a second, whether they stand, and their colours.

const TICK_MS = 1000;
const RATE_TICKS = 4; // over which the frame rate is taken
const LOOK_MS = 250;
const STANDING_MS = 1500; // without a new picture; the server repeats a late one, so it is the network
const GLOW_MS = 400;

/** Tells `onRate` each second how many pictures a second really reached the screen. */
export function watchRate(video, onRate) {
  const counts = [];
  setInterval(() => {
    const { totalVideoFrames, droppedVideoFrames } = video.getVideoPlaybackQuality();
    counts.push({ frames: totalVideoFrames - droppedVideoFrames, ms: performance.now() });
    if (counts.length > RATE_TICKS + 1) counts.shift();
    const [first, last] = [counts[0], counts.at(-1)];
    // A new stream counts from zero.
    if (last.frames < first.frames) counts.splice(0, counts.length - 1);
    onRate(((last.frames - first.frames) / (last.ms - first.ms)) * 1000);
  }, TICK_MS);
}

/** Tells `onChange` whether the picture stands, seconds before the connection is given up. */
export function watchPicture(video, onChange) {
  let frames = 0;
  let sinceMs = performance.now();
  let standing = false;
  setInterval(() => {
    const { totalVideoFrames } = video.getVideoPlaybackQuality();
    // Neither a hidden page, which draws nothing, nor a person's pause says anything about the network.
    if (totalVideoFrames !== frames || document.hidden || video.paused) sinceMs = performance.now();
    frames = totalVideoFrames;
    const stands = performance.now() - sinceMs > STANDING_MS;
    if (stands === standing) return;
    standing = stands;
    onChange(standing);
  }, LOOK_MS);
}

/** Lights the room with the picture's colours. */
export function glow(video, canvas) {
  setInterval(() => {
    if (!document.hidden && video.readyState >= 2) copyPicture(video, canvas, 12, 8);
  }, GLOW_MS);
}

export function copyPicture(video, canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d").drawImage(video, 0, 0, width, height);
}
