// A WHEP player that stays: it joins, watches over the connection, restarts ICE where the network changes, and joins
// again after any end.

import { fragment, iceServers, restarted, takes } from "./ice.js";
import { canPlay, playMp4 } from "./mp4.js";
import { Problem } from "./problem.js";

const BACKOFF_MS = { first: 500, most: 8000 };
const QUIET_MS = 2000; // without a packet, though connected: another way to the server is looked for
const SILENCE_MS = 6000; // the same: the server is gone
const ANSWER_MS = 10000;
const CONNECT_MS = 5000; // after an answer; then the video comes over HTTP, or ICE is restarted once more
const TICK_MS = 500;
const LONGEST_MS = 2 ** 31 - 1; // that a browser's timer can wait
const MOST_CANDIDATES = 20; // that the server takes
const TRICKLE_MS = 100; // in which candidates are collected, to be told together

/** Detail of the state "playing" where the video does not come over WebRTC. */
export const OVER_HTTP = "WebRTC does not connect from here, so the video comes over HTTP, a little later.";

/** WebRTC did not connect, though the server answered. */
class NoConnection extends Error {}

/** A pause that can be cut short. */
export class Pause {
  #end = () => {};

  /** Resolves after `ms` milliseconds or when `cut` is called. */
  wait(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#end = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  cut() {
    this.#end();
  }
}

/** Milliseconds to wait before attempt number `failures`; spread, so that viewers do not return all at once. */
export function backoffMs(failures) {
  const ms = Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** (failures - 1));
  return ms * (0.8 + 0.4 * Math.random());
}

/**
 * Plays the WHEP endpoint `url` in `video`, or `mp4Url` where WebRTC does not connect.
 *
 * `headers()` gives the headers of every request. `onState(state, detail)` hears "connecting", "playing", with
 * OVER_HTTP where it does not come over WebRTC, "waiting" with the reason and the status of a refusal, and "locked" when
 * the server wants a token; "locked" waits for `retry()`.
 */
export class WhepPlayer {
  #video;
  #url;
  #mp4Url;
  #headers;
  #onState;
  #pause = new Pause();
  #session = null; // { peer, location, connected, restarting, restartedMs, end }
  #fallback = null; // an AbortController while the video comes over HTTP
  #running = false;
  #failures = 0;

  constructor(video, url, mp4Url, headers, onState) {
    this.#video = video;
    this.#url = url;
    this.#mp4Url = mp4Url;
    this.#headers = headers;
    this.#onState = onState;
  }

  /** Joins, and joins again after every end, until `stop`. */
  async start() {
    if (this.#running) return;
    this.#running = true;
    while (this.#running) {
      this.#onState("connecting", "");
      let error = await this.#watch().catch((error) => error);
      if (this.#running && error instanceof NoConnection && canPlay()) {
        error = await this.#fallBack().catch((error) => error);
      }
      if (!this.#running) return;
      this.#failures += 1;
      const locked = error.status === 401;
      this.#onState(locked ? "locked" : "waiting", error.message, error.status);
      await this.#pause.wait(locked ? LONGEST_MS : error.retryAfterMs || backoffMs(this.#failures));
    }
  }

  /** Leaves; the server hears of it even when the page goes away. */
  stop() {
    this.#running = false;
    this.#pause.cut();
    this.#session?.end(new Error("stopped"));
    this.#fallback?.abort();
  }

  /** Ends a wait before the next attempt. */
  retry() {
    this.#pause.cut();
  }

  /** The network changed: the video comes from the new one on, in the same session. */
  moved() {
    if (this.#session) this.#restart(this.#session);
  }

  /** Asks the server whether it still knows this session, and joins again if not. */
  async check() {
    const session = this.#session;
    if (!session?.location) return;
    const reply = await fetch(session.location, { headers: this.#headers() }).catch(() => null);
    if (reply?.status === 404) session.end(new Error("The server was restarted."));
  }

  /** One session; rejects when it is over. */
  async #watch() {
    if (!globalThis.RTCPeerConnection) throw new NoConnection("This browser has no WebRTC.");
    const peer = new RTCPeerConnection({ iceServers: [] });
    const session = { peer, location: null, connected: false, restarting: false, restartedMs: -Infinity };
    let connecting;
    const over = new Promise((_, reject) => (session.end = reject));
    over.catch(() => {}); // it may end before anyone waits
    this.#session = session;
    const watchdog = setInterval(this.#watchdog(session), TICK_MS);
    try {
      peer.addTransceiver("video", { direction: "recvonly" });
      peer.ontrack = ({ track }) => this.#show(track);
      peer.onconnectionstatechange = () => {
        session.connected ||= peer.connectionState === "connected";
        if (session.connected) this.#mend(session, false);
        else if (["failed", "closed"].includes(peer.connectionState)) session.end(new NoConnection("No connection."));
      };
      await Promise.race([this.#negotiate(session), over]);
      connecting = setTimeout(() => {
        if (!session.connected) session.end(new NoConnection("No connection came about."));
      }, CONNECT_MS);
      await over;
    } finally {
      clearTimeout(connecting);
      clearInterval(watchdog);
      this.#session = null;
      peer.close();
      if (session.location) {
        const leave = { method: "DELETE", headers: this.#headers(), keepalive: true };
        fetch(session.location, leave).catch(() => {});
      }
    }
  }

  /** The video over HTTP; rejects when it is over. */
  async #fallBack() {
    this.#fallback = new AbortController();
    try {
      await playMp4(this.#video, this.#mp4Url, this.#headers(), this.#fallback.signal, () => {
        this.#failures = 0;
        this.#onState("playing", OVER_HTTP);
      });
    } finally {
      this.#fallback.abort();
      this.#fallback = null;
    }
  }

  async #negotiate(session) {
    const { peer } = session;
    // Gathering begins with the local description, and by then the answer has told the ICE servers.
    const offer = await peer.createOffer();
    const reply = await fetch(this.#url, {
      method: "POST",
      headers: { ...this.#headers(), "Content-Type": "application/sdp" },
      body: offer.sdp,
      signal: AbortSignal.timeout(ANSWER_MS),
    }).catch((error) => {
      throw new Error("The server does not answer.", { cause: error });
    });
    if (!reply.ok) throw await Problem.from(reply);
    session.location = new URL(reply.headers.get("location"), reply.url).href;
    const answer = await reply.text();
    const servers = iceServers(reply.headers.get("link")).filter((server) => takes(peer, server));
    peer.setConfiguration({ iceServers: servers });
    this.#tellCandidates(session, reply.headers.get("etag"));
    await peer.setLocalDescription(offer);
    await peer.setRemoteDescription({ type: "answer", sdp: answer });
  }

  /** Restarts ICE where a connection that there was is lost, or seems to be, as when nothing comes over it. */
  #mend(session, quiet) {
    const state = session.peer.connectionState;
    if (state === "closed") session.end(new Error("The connection was lost."));
    const connects = performance.now() - session.restartedMs < CONNECT_MS;
    if ((quiet || ["disconnected", "failed"].includes(state)) && !connects) this.#restart(session);
  }

  /** Finds a new way to the server for the same video. Where that leads nowhere the watchdog ends the session. */
  async #restart(session) {
    const { peer } = session;
    if (!session.connected || session.restarting) return;
    session.restarting = true;
    try {
      const offer = await peer.createOffer({ iceRestart: true });
      const reply = await this.#patch(session, fragment(offer.sdp, []), "*");
      const failed = peer.connectionState === "failed" || reply?.status === 404; // the server has ended it
      if (!reply?.ok && failed) throw new Error("The connection was lost.");
      if (!reply?.ok) return; // there is no way to the server yet, or it has no port for another connection
      session.restartedMs = performance.now();
      const answer = await reply.text();
      this.#tellCandidates(session, reply.headers.get("etag"));
      await peer.setLocalDescription(offer);
      await peer.setRemoteDescription({ type: "answer", sdp: restarted(peer.remoteDescription.sdp, answer) });
    } catch (error) {
      session.end(error);
    } finally {
      session.restarting = false;
    }
  }

  /** Tells candidates as they are found. Most servers are reached without them, so nobody waits for this. */
  #tellCandidates(session, etag) {
    let waiting = [];
    let told = 0;
    let timer = null;
    let last = Promise.resolve(); // nothing may overtake the word that there are no more
    const tell = (complete) => {
      clearTimeout(timer);
      timer = null;
      const some = waiting.slice(0, MOST_CANDIDATES - told);
      told += some.length;
      waiting = [];
      if (some.length || complete) last = last.then(() => this.#trickle(session, some, complete, etag));
    };
    session.peer.onicecandidate = ({ candidate }) => {
      if (!candidate?.candidate) return tell(true);
      waiting.push(candidate);
      timer ??= setTimeout(tell, TRICKLE_MS, false);
    };
  }

  async #trickle(session, candidates, complete, etag) {
    if (this.#session !== session) return;
    const lines = candidates.map(({ candidate }) => `a=${candidate}`);
    if (complete) lines.push("a=end-of-candidates");
    await this.#patch(session, fragment(session.peer.localDescription.sdp, lines), etag);
  }

  /** The answer to a fragment; null where none comes. */
  #patch(session, body, etag) {
    const headers = { ...this.#headers(), "Content-Type": "application/trickle-ice-sdpfrag", "If-Match": etag };
    const signal = AbortSignal.timeout(ANSWER_MS);
    return fetch(session.location, { method: "PATCH", headers, body, signal }).catch(() => null);
  }

  #show(track) {
    const loaded = () => {
      this.#failures = 0;
      this.#onState("playing", "");
    };
    this.#video.addEventListener("loadeddata", loaded, { once: true });
    this.#video.srcObject = new MediaStream([track]);
    this.#video.play().catch(() => {}); // a replaced stream ends the earlier call
  }

  /** A function for a timer that ends a session which never connected, or receives nothing any more. */
  #watchdog(session) {
    let packets = -1;
    let sinceMs = performance.now();
    return async () => {
      let now = 0;
      for (const entry of (await session.peer.getStats()).values()) {
        if (entry.type === "inbound-rtp") now = entry.packetsReceived;
      }
      if (now !== packets) {
        packets = now;
        sinceMs = performance.now();
      } else if (performance.now() - sinceMs > (now > 0 ? SILENCE_MS : ANSWER_MS)) {
        session.end(session.connected ? new Error("No more video arrives.") : new NoConnection("No connection."));
      }
      if (session.connected) this.#mend(session, now > 0 && performance.now() - sinceMs > QUIET_MS);
    };
  }
}
