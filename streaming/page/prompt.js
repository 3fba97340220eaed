// The prompt field: sends what a person types, tells when it is on screen, and which of its words were understood.

import { isLocked } from "./api.js";
import { $, seconds, setText } from "./dom.js";
import { showWords } from "./words.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class PromptBox {
  #ask;
  #isPlaying;
  #pending = null; // the last change sent: { prompt, frame, sentMs }; frame is null before the answer

  /** `ask(prompt)` gives the server's answer; `isPlaying()` tells whether somebody would see a picture. */
  constructor(ask, isPlaying) {
    this.#ask = ask;
    this.#isPlaying = isPlaying;
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send($("prompt").value);
    });
  }

  async send(text) {
    const change = { prompt: text.trim(), frame: null, sentMs: performance.now() };
    this.#pending = change;
    this.#tell("sending", "Sending");
    showWords(null);
    try {
      const answer = await this.#ask(change.prompt);
      if ($("prompt").value === text) $("prompt").value = "";
      if (this.#pending !== change) return;
      if (answer.replaced_by) return this.#replaced(answer.replaced_by);
      Object.assign(change, { prompt: answer.prompt, frame: answer.frame });
      this.#tell("taken", this.#isPlaying() ? `Planned. On screen in about ${seconds(answer.eta_s)}.` : "Planned.", answer.eta_s);
      showWords(answer);
    } catch (error) {
      if (this.#pending !== change) return;
      this.#pending = null;
      // The server names the field; people see only one. A locked one is asked for elsewhere.
      const words = isLocked(error) ? error.message : error.message.replace(/^body\.prompt: /, "");
      this.#tell("refused", words);
    }
  }

  /** A new report: an event may have been lost with a connection, and the report knows too. */
  onState(report) {
    const newest = report.prompts.at(-1);
    if (this.#pending?.frame != null && newest.prompt === this.#pending.prompt && newest.shown) this.#settle();
  }

  onPrompt({ prompt, frame }) {
    const pending = this.#pending;
    if (pending && prompt === pending.prompt && (pending.frame ?? frame) === frame) this.#settle();
  }

  /** A prompt that was accepted is never shown, since another took its place. */
  onReplaced({ prompt, frame, replaced_by: other }) {
    const pending = this.#pending;
    if (pending && prompt === pending.prompt && pending.frame === frame) this.#replaced(other);
  }

  /** The server is back: one that was started anew knows nothing of what it had accepted. */
  recheck(report) {
    const pending = this.#pending;
    if (pending?.frame == null || report.prompts.some((entry) => entry.prompt === pending.prompt)) return;
    if ($("prompt").value === "") $("prompt").value = pending.prompt;
    this.#pending = null;
    this.#tell("refused", "The server was started anew before this prompt was shown. Send it again.");
    showWords(null);
  }

  /** What was said of an earlier engine or server is over. */
  forget() {
    setText($("reaction"), "–");
    if ($("outcome").dataset.state !== "shown") return;
    this.#tell("", "");
    showWords(null);
  }

  #settle() {
    const tookS = (performance.now() - this.#pending.sentMs) / 1000;
    this.#pending = null;
    setText($("reaction"), tookS.toFixed(1));
    this.#tell("shown", `On screen after ${seconds(tookS)}.`);
  }

  #replaced(other) {
    this.#pending = null;
    this.#tell("refused", `Another prompt came in its place before it was shown: ${other}`);
    showWords(null);
  }

  #tell(name, text, waitS = 0) {
    const box = $("outcome");
    box.dataset.state = name;
    setText(box.querySelector("p"), text);
    $("prompt").setAttribute("aria-invalid", String(name === "refused"));
    const meter = box.querySelector("i");
    meter.getAnimations().forEach((animation) => animation.cancel());
    if (waitS > 0 && !calm.matches) meter.animate({ transform: ["scaleX(0)", "scaleX(1)"] }, waitS * 1000);
  }
}
