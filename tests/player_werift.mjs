// `node tests/player_werift.mjs FOLDER URL vp8|h264`: werift, from FOLDER/node_modules, as a WHEP player that counts frames.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const [folder, url, codec] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const { RTCPeerConnection, RTCRtpCodecParameters } = require("werift");
const version = JSON.parse(readFileSync(`${folder}/node_modules/werift/package.json`)).version;
const FRAMES = 20;
const LIMIT_MS = 20_000;

const rtcpFeedback = [{ type: "nack" }, { type: "nack", parameter: "pli" }, { type: "goog-remb" }];
const parameters = codec === "h264" ? "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f" : undefined;
const video = new RTCRtpCodecParameters({
  mimeType: `video/${codec.toUpperCase()}`, clockRate: 90000, rtcpFeedback, parameters, payloadType: 96,
});
const peer = new RTCPeerConnection({ codecs: { audio: [], video: [video] }, iceServers: [] });
let frames = 0;
const transceiver = peer.addTransceiver("video", { direction: "recvonly" });
const seen = new Promise((resolve) => {
  transceiver.onTrack.subscribe((track) => {
    track.onReceiveRtp.subscribe((packet) => {
      if (packet.header.marker && ++frames === FRAMES) resolve();
    });
  });
});
await peer.setLocalDescription(await peer.createOffer());
if (peer.iceGatheringState !== "complete") {
  await new Promise((resolve) => peer.iceGatheringStateChange.subscribe((state) => state === "complete" && resolve()));
}
const headers = { "content-type": "application/sdp" };
const reply = await fetch(url, { method: "POST", headers, body: peer.localDescription.sdp });
await peer.setRemoteDescription({ type: "answer", sdp: await reply.text() });
await Promise.race([seen, new Promise((resolve) => setTimeout(resolve, LIMIT_MS))]);
console.log(JSON.stringify({ frames, version }));
process.exit(0);
