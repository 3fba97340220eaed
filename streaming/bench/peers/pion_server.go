// pion_server FILM.h264 PORT FPS: Pion as a WHEP server in the way of its broadcast example. The film is read once, one
// track is written for all viewers.

package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/pion/webrtc/v3"
	"github.com/pion/webrtc/v3/pkg/media"
	"github.com/pion/webrtc/v3/pkg/media/h264reader"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	fps, err := strconv.Atoi(os.Args[3])
	check(err)
	capability := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeH264}
	track, err := webrtc.NewTrackLocalStaticSample(capability, "video", "film")
	check(err)
	settings := webrtc.SettingEngine{}
	settings.SetIPFilter(func(ip net.IP) bool { return ip.IsLoopback() })
	settings.SetIncludeLoopbackCandidate(true)
	engine := &webrtc.MediaEngine{}
	check(engine.RegisterDefaultCodecs())
	api := webrtc.NewAPI(webrtc.WithSettingEngine(settings), webrtc.WithMediaEngine(engine))
	http.HandleFunc("/whep", func(reply http.ResponseWriter, request *http.Request) {
		offer, err := io.ReadAll(request.Body)
		check(err)
		peer, err := api.NewPeerConnection(webrtc.Configuration{})
		check(err)
		sender, err := peer.AddTrack(track)
		check(err)
		go func() {
			for {
				if _, _, err := sender.ReadRTCP(); err != nil {
					return
				}
			}
		}()
		check(peer.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: string(offer)}))
		answer, err := peer.CreateAnswer(nil)
		check(err)
		gathered := webrtc.GatheringCompletePromise(peer)
		check(peer.SetLocalDescription(answer))
		<-gathered
		reply.Header().Set("Content-Type", "application/sdp")
		reply.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(reply, peer.LocalDescription().SDP)
	})
	go play(track, os.Args[1], time.Second/time.Duration(fps))
	check(http.ListenAndServe("127.0.0.1:"+os.Args[2], nil))
}

// play writes the film's NAL units, and waits a period after each picture.
func play(track *webrtc.TrackLocalStaticSample, path string, period time.Duration) {
	ticker := time.NewTicker(period)
	for {
		file, err := os.Open(path)
		check(err)
		reader, err := h264reader.NewReader(file)
		check(err)
		var picture []byte
		for {
			nal, err := reader.NextNAL()
			if err == io.EOF {
				break
			}
			check(err)
			picture = append(append(picture, 0, 0, 0, 1), nal.Data...)
			if nal.UnitType == h264reader.NalUnitTypeCodedSliceIdr || nal.UnitType == h264reader.NalUnitTypeCodedSliceNonIdr {
				check(track.WriteSample(media.Sample{Data: picture, Duration: period}))
				picture = nil
				<-ticker.C
			}
		}
		_ = file.Close()
	}
}
