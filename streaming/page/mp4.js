// The video over HTTP, as fragmented mp4: for networks where WebRTC does not connect.

import { Problem } from "./problem.js";

const KIND = 'video/mp4; codecs="avc1.42C01F"'; // as the server encodes: Constrained Baseline, level 3.1
const LAG_S = { most: 1.5, least: 0.4 }; // behind the newest picture
const KEPT_S = 10; // of what was shown
const SILENCE_MS = 6000; // without a byte, or without a picture of them: the server or the browser's player is gone

/** Whether this browser can play it. */
export const canPlay = () => globalThis.MediaSource?.isTypeSupported(KIND) ?? false;

/** Plays `url` in `video` until `signal` or its end, and rejects then. `onPlaying` hears of the first picture. */
export async function playMp4(video, url, headers, signal, onPlaying) {
  const source = new MediaSource();
  const address = URL.createObjectURL(source);
  try {
    const opened = happened(source, "sourceopen", signal);
    video.srcObject = null;
    video.src = address;
    await soon(opened);
    const buffer = source.addSourceBuffer(KIND);
    const answer = fetch(url, { headers, signal }).catch((error) => {
      throw new Error("The server does not answer.", { cause: error });
    });
    const reply = await soon(answer);
    if (!reply.ok) throw await Problem.from(reply);
    let shown = false;
    const loaded = () => {
      shown = true;
      onPlaying();
    };
    video.addEventListener("loadeddata", loaded, { once: true, signal });
    video.play().catch(() => {}); // another stream may take its place
    const reader = reply.body.getReader();
    const beganMs = performance.now();
    for (;;) {
      const { done, value } = await soon(reader.read());
      if (done) throw new Error("The video ended.");
      await soon(changed(buffer, signal, () => buffer.appendBuffer(value)));
      await soon(follow(video, buffer, signal));
      if (!shown && performance.now() - beganMs > SILENCE_MS) throw new Error("The browser shows no picture.");
    }
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** Keeps close to the newest picture, steps over a hole, and forgets what was shown. */
async function follow(video, buffer, signal) {
  const { buffered } = buffer;
  if (!buffered.length) return;
  const end = buffered.end(buffered.length - 1);
  const start = buffered.start(buffered.length - 1);
  if (end - video.currentTime > LAG_S.most || video.currentTime < start) {
    video.currentTime = Math.max(start, end - LAG_S.least);
  }
  const old = video.currentTime - KEPT_S;
  if (old - buffered.start(0) > KEPT_S) await changed(buffer, signal, () => buffer.remove(0, old));
}

function changed(buffer, signal, change) {
  const done = happened(buffer, "updateend", signal);
  change();
  return done;
}

function happened(target, name, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => reject(new Error("stopped"));
    signal.addEventListener("abort", stop, { once: true });
    const heard = () => {
      signal.removeEventListener("abort", stop);
      resolve();
    };
    target.addEventListener(name, heard, { once: true });
  });
}

function soon(promise) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("No more video arrives.")), SILENCE_MS);
  });
  return Promise.race([promise, silence]).finally(() => clearTimeout(timer));
}
