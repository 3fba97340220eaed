// Refusals of the server.

/** A refusal; `detail` is its sentence for people. */
export class Problem extends Error {
  constructor(status, detail, retryAfterMs) {
    super(detail);
    this.status = status;
    this.retryAfterMs = retryAfterMs;
  }

  /** Reads a problem+json reply. */
  static async from(reply) {
    const problem = await reply.json().catch(() => null);
    const retryAfterMs = Number(reply.headers.get("retry-after")) * 1000;
    return new Problem(reply.status, problem?.detail ?? `The server answered ${reply.status}.`, retryAfterMs);
  }
}
