// Pion as a WHEP player that counts frames, and as a relay that takes one stream and serves many.
//
//	player_pion play URL
//	player_pion relay URL LISTEN

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/webrtc/v3"
)

const (
	frames = 20
	limit  = 20 * time.Second
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// join opens a WHEP session; received gets its track.
func join(url string, received func(*webrtc.PeerConnection, *webrtc.TrackRemote)) {
	peer, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	check(err)
	direction := webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}
	_, err = peer.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo, direction)
	check(err)
	peer.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) { received(peer, track) })
	offer, err := peer.CreateOffer(nil)
	check(err)
	gathered := webrtc.GatheringCompletePromise(peer)
	check(peer.SetLocalDescription(offer))
	<-gathered
	reply, err := http.Post(url, "application/sdp", strings.NewReader(peer.LocalDescription().SDP))
	check(err)
	answer, err := io.ReadAll(reply.Body)
	check(err)
	check(peer.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: string(answer)}))
}

func play(url string) {
	seen := make(chan string)
	count := 0
	join(url, func(_ *webrtc.PeerConnection, track *webrtc.TrackRemote) {
		for {
			packet, _, err := track.ReadRTP()
			check(err)
			if packet.Marker {
				count++
			}
			if count == frames {
				seen <- track.Codec().MimeType
				return
			}
		}
	})
	codec := ""
	select {
	case codec = <-seen:
	case <-time.After(limit):
	}
	text, err := json.Marshal(map[string]any{"frames": count, "codec": codec})
	check(err)
	fmt.Println(string(text))
}

func relay(url string, listen string) {
	taken := make(chan *webrtc.TrackLocalStaticRTP)
	join(url, func(peer *webrtc.PeerConnection, track *webrtc.TrackRemote) {
		local, err := webrtc.NewTrackLocalStaticRTP(track.Codec().RTPCodecCapability, "video", "relay")
		check(err)
		taken <- local
		go func() {
			// A viewer of the relay needs a key frame to begin with.
			for range time.Tick(time.Second) {
				pli := &rtcp.PictureLossIndication{MediaSSRC: uint32(track.SSRC())}
				_ = peer.WriteRTCP([]rtcp.Packet{pli})
			}
		}()
		for {
			packet, _, err := track.ReadRTP()
			check(err)
			_ = local.WriteRTP(packet)
		}
	})
	local := <-taken
	http.HandleFunc("/whep/main", func(reply http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		check(err)
		peer, err := webrtc.NewPeerConnection(webrtc.Configuration{})
		check(err)
		_, err = peer.AddTrack(local)
		check(err)
		check(peer.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: string(body)}))
		answer, err := peer.CreateAnswer(nil)
		check(err)
		gathered := webrtc.GatheringCompletePromise(peer)
		check(peer.SetLocalDescription(answer))
		<-gathered
		reply.Header().Set("Content-Type", "application/sdp")
		reply.Header().Set("Location", "/whep/main/1")
		reply.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(reply, peer.LocalDescription().SDP)
	})
	fmt.Println("relaying")
	check(http.ListenAndServe(listen, nil))
}

func main() {
	if os.Args[1] == "play" {
		play(os.Args[2])
	} else {
		relay(os.Args[2], os.Args[3])
	}
}
