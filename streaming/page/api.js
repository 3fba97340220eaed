// Requests to the server, with words for people where one fails.

import { Problem } from "./problem.js";
import { headers } from "./token.js";

const ANSWER_MS = 15000; // for a prompt; the server gives up before

/** The reply to a request, with `body` as JSON if there is one. Throws Problem or another Error for people. */
export async function request(method, url, body) {
  const json = body === undefined ? {} : { "Content-Type": "application/json" };
  const reply = await fetch(url, {
    method,
    headers: { ...headers(), ...json },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(ANSWER_MS),
  }).catch((error) => {
    throw new Error("The server cannot be reached; try again.", { cause: error });
  });
  if (!reply.ok) throw await Problem.from(reply);
  return reply;
}

/** Whether an error says that a token is missing or does not suffice. */
export const isLocked = (error) => [401, 403].includes(error.status);
