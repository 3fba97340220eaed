// The strip under the video: what is planned and not yet on air. A click drops it from there on.

import { request } from "./api.js";
import { $, make, say, seconds, setText } from "./dom.js";
import { withToken } from "./token.js";
import { phrase } from "./words.js";

const LOOK_MS = 1500; // between looks at what is planned

export class PlanStrip {
  #url;
  #steer;
  #sinceMs = -Infinity; // of the last look
  #busy = false;
  #missing = false; // a server without look-ahead

  /** `url` is the channel's; `steer` is `request` for what needs the control token. */
  constructor(url, steer) {
    this.#url = `${url}/plan`;
    this.#steer = steer;
  }

  /** A new report: the plan is read anew, as often as it is worth it. */
  async onState({ frame, fps }) {
    if (this.#missing || this.#busy || document.hidden || performance.now() - this.#sinceMs < LOOK_MS) return;
    this.#busy = true;
    this.#sinceMs = performance.now();
    try {
      const { parts } = await (await request("GET", this.#url)).json();
      // The first part is on air; the report may be older.
      const now = Math.max(frame ?? 0, parts[0]?.frame ?? 0);
      this.#show(parts.filter((part) => part.frame + part.frames > now), now, fps);
    } catch (error) {
      this.#missing = error.status === 404;
      $("plan").hidden = true;
    } finally {
      this.#busy = false;
    }
  }

  #show(parts, now, fps) {
    const list = $("plan-list");
    $("plan").hidden = !parts.length;
    const rows = new Map([...list.children].map((row) => [Number(row.dataset.frame), row]));
    const ordered = parts.map((part) => {
      const row = rows.get(part.frame) ?? this.#row(part.frame);
      const button = row.firstElementChild;
      const [picture, time, words] = button.children;
      // A picture is made when there is time for it.
      const address = part.picture && withToken(part.picture);
      if (!address) picture.removeAttribute("src");
      else if (picture.getAttribute("src") !== address) picture.src = address;
      // What is on air stays.
      button.disabled = part.frame <= now;
      setText(time, button.disabled ? "Now" : `in ${seconds((part.frame - now) / fps)}`);
      setText(words, phrase(part.words) || part.prompt);
      row.dataset.rendered = part.rendered;
      button.title = button.disabled ? part.prompt : `${part.prompt}. A click drops it, and what follows`;
      return row;
    });
    // Rows stay in place while they are the same, so that a focus is not lost.
    for (const row of [...list.children]) if (!ordered.includes(row)) row.remove();
    ordered.forEach((row, place) => {
      if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
    });
  }

  #row(frame) {
    const button = make("button", { type: "button" }, make("img", { alt: "", width: 96, height: 64 }), make("time"), make("span"));
    button.addEventListener("click", () => this.#discard(frame));
    const row = make("li", {}, button);
    row.dataset.frame = frame;
    return row;
  }

  async #discard(frame) {
    try {
      await this.#steer("POST", `${this.#url}/discard`, { frame });
      say("Dropped. It is planned anew from there on.");
      this.#sinceMs = -Infinity;
    } catch (error) {
      say(error.message);
    }
  }
}
