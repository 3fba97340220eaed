"""`/usr/bin/python3 tests/player_gst.py URL vp8|h264`: GStreamer's webrtcbin as a WHEP player that counts frames.

It runs with the system's Python, to which Debian's python3-gi belongs.
"""

import json
import sys
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

FRAMES = 20
LIMIT_S = 15
DECODERS = {"vp8": "rtpvp8depay ! vp8dec", "h264": "rtph264depay ! h264parse ! openh264dec"}


class Player:
    """One webrtcbin that decodes what it gets."""

    def __init__(self, url: str, codec: str) -> None:
        self.frames = 0
        self._url, self._codec = url, codec
        self.loop = GLib.MainLoop()
        self._pipeline = Gst.Pipeline.new("player")
        self._bin = Gst.ElementFactory.make("webrtcbin", "bin")
        self._bin.set_property("bundle-policy", GstWebRTC.WebRTCBundlePolicy.MAX_BUNDLE)
        self._pipeline.add(self._bin)
        caps = f"application/x-rtp,media=video,encoding-name={codec.upper()},clock-rate=90000,payload=96"
        direction = GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY
        self._transceiver = self._bin.emit("add-transceiver", direction, Gst.Caps.from_string(caps))
        self._bin.connect("on-negotiation-needed", self._offer)
        self._bin.connect("notify::ice-gathering-state", self._gathered)
        self._bin.connect("pad-added", self._decode)

    def run(self) -> None:
        self._pipeline.set_state(Gst.State.PLAYING)
        GLib.timeout_add_seconds(LIMIT_S, self.loop.quit)
        self.loop.run()
        self._pipeline.set_state(Gst.State.NULL)

    def _offer(self, element: Gst.Element) -> None:
        self._promise = Gst.Promise.new_with_change_func(self._offered, None)
        element.emit("create-offer", None, self._promise)

    def _offered(self, promise: Gst.Promise, _: object) -> None:
        # The SDP belongs to the reply and is freed with it.
        self._reply = promise.get_reply()
        self._description = self._reply.get_value("offer")
        self._bin.emit("set-local-description", self._description, Gst.Promise.new())

    def _gathered(self, element: Gst.Element, _: object) -> None:
        if element.get_property("ice-gathering-state") == GstWebRTC.WebRTCICEGatheringState.COMPLETE:
            GLib.idle_add(self._join)

    def _join(self) -> None:
        offer = self._bin.get_property("local-description").sdp.as_text()
        request = urllib.request.Request(self._url, offer.encode(), {"content-type": "application/sdp"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            answer = reply.read()
        _, message = GstSdp.SDPMessage.new_from_text(answer.decode())
        self._answer = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
        self._bin.emit("set-remote-description", self._answer, Gst.Promise.new())

    def _decode(self, _: Gst.Element, pad: Gst.Pad) -> None:
        text = f"queue ! {DECODERS[self._codec]} ! fakesink name=sink signal-handoffs=true sync=false"
        decoder = Gst.parse_bin_from_description(text, True)
        decoder.get_by_name("sink").connect("handoff", self._count)
        self._pipeline.add(decoder)
        decoder.sync_state_with_parent()
        pad.link(decoder.get_static_pad("sink"))

    def _count(self, *_: object) -> None:
        self.frames += 1
        if self.frames == FRAMES:
            GLib.idle_add(self.loop.quit)


if __name__ == "__main__":
    Gst.init(None)
    player = Player(sys.argv[1], sys.argv[2])
    player.run()
    sys.stdout.write(json.dumps({"frames": player.frames, "version": Gst.version_string().split()[-1]}) + "\n")
