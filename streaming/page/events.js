// A channel's server-sent events, for ever: a stream that breaks, or says nothing, is opened again.

import { backoffMs, Pause } from "./whep.js";

const QUIET_MS = 5000; // state comes every second

/**
 * Listens to the event stream at the address that `url()` gives for each try.
 *
 * `handlers` maps an event's name to a function of its value. `onOpen` hears of every stream that opens, `onLost` of
 * every one that ends.
 */
export class Events {
  #url;
  #handlers;
  #onOpen;
  #onLost;
  #pause = new Pause();

  constructor(url, handlers, onOpen, onLost) {
    this.#url = url;
    this.#handlers = handlers;
    this.#onOpen = onOpen;
    this.#onLost = onLost;
  }

  /** Never ends. */
  async listen() {
    for (let failures = 1; ; failures += 1) {
      if (await this.#stream()) failures = 1;
      this.#onLost();
      await this.#pause.wait(backoffMs(failures));
    }
  }

  /** Ends a wait before the next attempt. */
  retry() {
    this.#pause.cut();
  }

  /** One stream; resolves when it is over, to whether anything was heard. */
  #stream() {
    return new Promise((resolve) => {
      const source = new EventSource(this.#url());
      let heard = false;
      const end = () => {
        clearTimeout(timer);
        source.close();
        resolve(heard);
      };
      let timer = setTimeout(end, 2 * QUIET_MS);
      source.onopen = this.#onOpen;
      source.onerror = end;
      for (const [name, handle] of Object.entries(this.#handlers)) {
        source.addEventListener(name, (event) => {
          clearTimeout(timer);
          timer = setTimeout(end, QUIET_MS);
          heard = true;
          handle(JSON.parse(event.data));
        });
      }
    });
  }
}
