// Pion as a WHEP player that counts frames, as a relay that takes one stream and serves many, and as a WHIP server that
// counts the frames of the first push. With "rsa" that one has an RSA certificate and wants to be the DTLS server.
//
//	player_pion play URL
//	player_pion relay URL LISTEN
//	player_pion take LISTEN ecdsa|rsa

package main

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/pion/interceptor"
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

// count tells the codec of a track once it brought enough frames, which are counted meanwhile.
func count(track *webrtc.TrackRemote, number *int, seen chan<- string) {
	for {
		packet, _, err := track.ReadRTP()
		check(err)
		if packet.Marker {
			*number++
		}
		if *number == frames {
			seen <- track.Codec().MimeType
			return
		}
	}
}

// tell prints how many frames came, and in which codec.
func tell(number *int, seen <-chan string) {
	codec := ""
	select {
	case codec = <-seen:
	case <-time.After(limit):
	}
	text, err := json.Marshal(map[string]any{"frames": *number, "codec": codec})
	check(err)
	fmt.Println(string(text))
}

func play(url string) {
	seen := make(chan string)
	number := 0
	join(url, func(_ *webrtc.PeerConnection, track *webrtc.TrackRemote) { count(track, &number, seen) })
	tell(&number, seen)
}

// answer takes an offer and replies with 201, SDP and Location.
func answer(peer *webrtc.PeerConnection, reply http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	check(err)
	check(peer.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: string(body)}))
	answer, err := peer.CreateAnswer(nil)
	check(err)
	gathered := webrtc.GatheringCompletePromise(peer)
	check(peer.SetLocalDescription(answer))
	<-gathered
	reply.Header().Set("Content-Type", "application/sdp")
	reply.Header().Set("Location", request.URL.Path+"/1")
	reply.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(reply, peer.LocalDescription().SDP)
}

func take(listen string, kind string) {
	seen := make(chan string)
	number := 0
	configuration := webrtc.Configuration{}
	settings := webrtc.SettingEngine{}
	if kind == "rsa" {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		check(err)
		certificate, err := webrtc.GenerateCertificate(key)
		check(err)
		configuration.Certificates = []webrtc.Certificate{*certificate}
		check(settings.SetAnsweringDTLSRole(webrtc.DTLSRoleServer))
	}
	media := &webrtc.MediaEngine{}
	check(media.RegisterDefaultCodecs())
	registry := &interceptor.Registry{}
	check(webrtc.RegisterDefaultInterceptors(media, registry))
	api := webrtc.NewAPI(
		webrtc.WithSettingEngine(settings), webrtc.WithMediaEngine(media), webrtc.WithInterceptorRegistry(registry),
	)
	http.HandleFunc("/whip/main", func(reply http.ResponseWriter, request *http.Request) {
		peer, err := api.NewPeerConnection(configuration)
		check(err)
		peer.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) { count(track, &number, seen) })
		answer(peer, reply, request)
	})
	go func() { check(http.ListenAndServe(listen, nil)) }()
	fmt.Println("taking")
	tell(&number, seen)
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
		peer, err := webrtc.NewPeerConnection(webrtc.Configuration{})
		check(err)
		_, err = peer.AddTrack(local)
		check(err)
		answer(peer, reply, request)
	})
	fmt.Println("relaying")
	check(http.ListenAndServe(listen, nil))
}

func main() {
	switch os.Args[1] {
	case "play":
		play(os.Args[2])
	case "take":
		take(os.Args[2], os.Args[3])
	default:
		relay(os.Args[2], os.Args[3])
	}
}
