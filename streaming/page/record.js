// The record button, and the recordings of the channel on screen.

import { isLocked, request } from "./api.js";
import { $, clock, make, say } from "./dom.js";
import { withToken } from "./token.js";

const LOOK_MS = 2000; // at a recording that runs
const LISTED = 5;

export class Recorder {
  #url;
  #steer;
  #running = null; // the report of the one that runs
  #timer;

  /** `url` is the channel's; `steer` is `request` for what needs the control token. */
  constructor(url, steer) {
    this.#url = `${url}/recordings`;
    this.#steer = steer;
  }

  /** Begins a recording, or ends the one that runs. */
  async toggle() {
    if ($("record").hidden) return;
    const { id } = this.#running ?? {};
    try {
      if (id) await this.#steer("DELETE", `${this.#url}/${id}`);
      else await this.#steer("POST", this.#url, {});
      say(id ? "The recording is in the list." : "Recording.");
    } catch (error) {
      say(error.message);
    }
    await this.look();
  }

  /** Shows what the server has; again and again while a recording runs. */
  async look() {
    clearTimeout(this.#timer);
    try {
      this.#show(await (await request("GET", this.#url)).json());
    } catch (error) {
      // A server without a folder for them has no such button; another trouble passes.
      if ([404, 409].includes(error.status)) $("record").hidden = true;
      if (isLocked(error) || $("record").hidden) return;
    }
    if (this.#running) this.#timer = setTimeout(() => this.look(), LOOK_MS);
  }

  #show(reports) {
    const before = this.#running?.id;
    this.#running = reports.find((one) => one.state === "recording") ?? null;
    const ended = reports.find((one) => one.id === before && one.state === "finished" && one.error);
    if (ended) say(`The recording ended: ${ended.error}.`);
    const button = $("record");
    button.hidden = false;
    button.setAttribute("aria-pressed", String(this.#running !== null));
    button.title = this.#running ? "Stop recording (R)" : "Record (R)";
    $("on-record").hidden = !this.#running;
    if (this.#running) $("on-record").lastElementChild.textContent = clock(this.#running.seconds ?? 0);
    $("recordings").parentElement.hidden = !reports.length;
    $("recordings").replaceChildren(...reports.slice(0, LISTED).map((report) => this.#row(report)));
  }

  #row({ id, state, bytes, seconds }) {
    const began = new Date(id.replace(/^(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)-(\d{3})$/, "$1-$2-$3T$4:$5:$6.$7Z"));
    const when = began.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
    const facts = [seconds === null ? null : clock(seconds), `${(bytes / 1e6).toFixed(1)} MB`].filter(Boolean).join(" · ");
    const href = withToken(`${this.#url}/${id}.mp4`);
    const link = make("a", { href, download: "", textContent: when, title: "Download as mp4" });
    return make("li", {}, link, make("span", { textContent: state === "recording" ? `${facts}, runs` : facts }));
  }
}
