"""`/usr/bin/python3 gstreamer_server.py FILM.h264 PORT FPS`: GStreamer as a WHEP server, one webrtcbin a viewer.

It runs with the system's Python, to which Debian's python3-gi belongs. One pipeline reads and packs the film for all.
"""

import http.server
import sys
import threading
from typing import Any

if __name__ == "__main__":
    # Who walks through the package has another Python, without these.
    import gi  # type: ignore[import-not-found]

    gi.require_version("Gst", "1.0")
    gi.require_version("GstWebRTC", "1.0")
    gi.require_version("GstSdp", "1.0")
    from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # type: ignore[import-not-found]

FILM = (
    "multifilesrc location={film} loop=true caps=video/x-h264,stream-format=byte-stream,framerate={fps}/1 "
    "! h264parse config-interval=-1 ! clocksync ! rtph264pay pt={{}} aggregate-mode=zero-latency mtu=1300 "
    "! application/x-rtp,media=video,encoding-name=H264,payload={{}} ! tee name=tee allow-not-linked=true"
)
ANSWER_LIMIT_S = 20.0


class Server:
    """Its pipeline, and viewers that are added to it."""

    def __init__(self, film: str, fps: str) -> None:
        self._description = FILM.format(film=film, fps=fps)
        self._pipeline: Any = None
        self._lock = threading.Lock()

    def answer(self, offer: str) -> str:
        """The answer to an offer. Raises RuntimeError."""
        with self._lock:
            payload = _payload(offer)
            if self._pipeline is None:
                self._pipeline = Gst.parse_launch(self._description.format(payload, payload))
                self._pipeline.set_state(Gst.State.PLAYING)
            queue, viewer = Gst.ElementFactory.make("queue"), Gst.ElementFactory.make("webrtcbin")
            viewer.set_property("bundle-policy", GstWebRTC.WebRTCBundlePolicy.MAX_BUNDLE)
            for element in (queue, viewer):
                self._pipeline.add(element)
            tee = self._pipeline.get_by_name("tee")
            queue.link(viewer)
            # Nothing flowed yet that would tell it.
            caps = f"application/x-rtp,media=video,encoding-name=H264,clock-rate=90000,payload={payload}"
            viewer.emit("get-transceiver", 0).set_property("codec-preferences", Gst.Caps.from_string(caps))
            viewer.sync_state_with_parent()
            _, message = GstSdp.SDPMessage.new_from_text(offer)
            described = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.OFFER, message)
            _wait(viewer, "set-remote-description", described)
            reply = _wait(viewer, "create-answer", None)
            _wait(viewer, "set-local-description", reply.get_value("answer"))
            gathered = threading.Event()
            viewer.connect("notify::ice-gathering-state", lambda *_: gathered.set() if _gathered(viewer) else None)
            if not _gathered(viewer):
                gathered.wait(ANSWER_LIMIT_S)
            queue.sync_state_with_parent()
            tee.link(queue)
            return str(viewer.get_property("local-description").sdp.as_text())


def _gathered(viewer: Any) -> bool:
    return bool(viewer.get_property("ice-gathering-state") == GstWebRTC.WebRTCICEGatheringState.COMPLETE)


def _wait(viewer: Any, signal: str, *values: object) -> Any:
    promise = Gst.Promise.new()
    viewer.emit(signal, *values, promise)
    promise.wait()
    return promise.get_reply()


def _payload(offer: str) -> int:
    """The payload type that the viewer gave H.264."""
    for line in offer.splitlines():
        if line.startswith("a=rtpmap:") and "H264/90000" in line:
            return int(line.split(":")[1].split()[0])
    raise RuntimeError("the offer has no H264")


def main() -> None:
    Gst.init(None)
    server = Server(sys.argv[1], sys.argv[3])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = server.answer(self.rfile.read(int(self.headers["Content-Length"])).decode()).encode()
            self.send_response(201)
            self.send_header("Content-Type", "application/sdp")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            return

    threading.Thread(target=GLib.MainLoop().run, daemon=True).start()
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()


if __name__ == "__main__":
    main()
