// What a WHEP player says and reads of ICE: servers, fragments with candidates, and the answer after a restart.

const LINK = /<([^>]*)>((?:\s*;\s*[\w-]+=(?:"(?:[^"\\]|\\.)*"|[^",;\s]*))*)/g; // one link of a `Link` header
const TRANSPORT = /^a=(ice-ufrag|ice-pwd|candidate|end-of-candidates)\b/; // lines that a restart changes

/** Whether this browser knows a kind of ICE server; one that it does not know would cost it all others. */
export function takes(peer, server) {
  try {
    peer.setConfiguration({ iceServers: [server] });
    return true;
  } catch {
    return false;
  }
}

/** The ICE servers of a `Link` header, which may be null. */
export function iceServers(header) {
  return [...(header ?? "").matchAll(LINK)].flatMap(([, urls, text]) => {
    const values = {};
    for (const [, name, quoted, plain] of text.matchAll(/([\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))/g)) {
      values[name] = quoted?.replace(/\\(.)/g, "$1") ?? plain;
    }
    const { rel, username, credential } = values;
    return rel === "ice-server" ? [username ? { urls, username, credential } : { urls }] : [];
  });
}

/** The body of a PATCH: the ICE session of a local description, and lines of candidates. */
export function fragment(sdp, lines) {
  const credentials = sdp.match(/^a=ice-(ufrag|pwd):.*$/gm).slice(0, 2);
  return [...credentials, "m=video 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0", ...lines, ""].join("\r\n");
}

/** The answer after an ICE restart: the one before it, of one section, with the transport of the server's fragment. */
export function restarted(answer, reply) {
  const lines = (text) => text.split(/\r?\n/).filter((line) => line);
  const kept = lines(answer).filter((line) => !TRANSPORT.test(line));
  return [...kept, ...lines(reply).filter((line) => TRANSPORT.test(line)), ""].join("\r\n");
}
