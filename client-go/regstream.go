package rollcall

import (
	"context"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

const (
	// shortestSilence is the shortest silence after which a replica is given up, for registrations that outlive it.
	// silenceWithoutTTL is the same for a replica of an older version, without a horizon, that expects no keep-alives: it
	// sends a heartbeat every 20 seconds, and its connection is pinged.
	shortestSilence   = time.Second
	silenceWithoutTTL = 50 * time.Second
	// inHorizon is the number of keep-alives in the time after which a silent replica is given up.
	inHorizon = 3
	// shortestKeepAlive is the shortest interval of keep-alives, whatever the replica asks for. A third of the shortest
	// ttl is longer.
	shortestKeepAlive = 100 * time.Millisecond
	// unsent is the maximum number of requests that wait to be sent.
	unsent = 256
)

// regStream is an open Register call. A goroutine of its own sends the items of requests, and keep-alives.
type regStream struct {
	at       *replica
	requests chan *v1.RegisterRequest
	in       *inbox[v1.RegisterResponse]
	vigil    *vigil
	pulse    *pulse
}

// openRegister opens a stream and awaits opened. The use of the replica ends with the stream, or with the failure.
func openRegister(ctx context.Context, c *Client, at *replica, ttl time.Duration) (*regStream, *failure) {
	v := keepVigil(ctx)
	stream, err := at.stub.Register(v.ctx)
	var opened *v1.Opened
	sentAt := time.Now()
	if err == nil {
		opened, err = sayOpen(stream, c.name, ttl)
	}
	if err != nil {
		why := v.why(err)
		v.end()
		at.release()
		return nil, why
	}
	keepAlive, silence := keepAliveTerms(opened)
	r := &regStream{at: at, requests: make(chan *v1.RegisterRequest, unsent), vigil: v, pulse: newPulse(sentAt)}
	if r.in = receive(c, v, stream, silence, unchanged, at.release); r.in == nil {
		return nil, failureOf(context.Canceled, false)
	}
	c.spawn(func() { r.send(stream, keepAlive) })
	return r, nil
}

// keepAliveTerms returns the interval of keep-alives, 0 for none, and the time that a replica may be silent.
func keepAliveTerms(opened *v1.Opened) (keepAlive, silence time.Duration) {
	keepAlive, silence = opened.GetKeepAliveInterval().AsDuration(), silenceWithoutTTL
	least := inHorizon * shortestKeepAlive
	if keepAlive > 0 {
		keepAlive = max(keepAlive, shortestKeepAlive)
		least = shortestSilence
		silence = max(2*keepAlive, least)
	}
	if opened.GetHorizon() != nil {
		horizon := opened.GetHorizon().AsDuration()
		often := max(horizon/inHorizon, shortestKeepAlive)
		if keepAlive == 0 || often < keepAlive {
			keepAlive = often
		}
		silence = max(horizon, least)
	}
	return keepAlive, silence
}

// unchanged means that no message changes how long a replica may be silent.
func unchanged(*v1.RegisterResponse) time.Duration { return 0 }

func sayOpen(stream grpc.BidiStreamingClient[v1.RegisterRequest, v1.RegisterResponse], name string, ttl time.Duration) (
	*v1.Opened, error,
) {
	open := &v1.OpenSession{ClientName: name, Pid: uint32(os.Getpid())}
	if ttl > 0 {
		open.Ttl = durationpb.New(ttl)
	}
	request := &v1.RegisterRequest{Request: &v1.RegisterRequest_Open{Open: open}}
	// Recv returns the cause of a failed Send.
	_ = stream.Send(request)
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if first.GetOpened() == nil {
		return nil, errNotOpened
	}
	return first.GetOpened(), nil
}

// send ends with the stream. Recv returns the cause of that end.
func (r *regStream) send(stream interface {
	Send(*v1.RegisterRequest) error
}, keepAlive time.Duration) {
	var due <-chan time.Time
	if keepAlive > 0 {
		// Sent even beside other requests: its answer shows since when the replica has heard from this client.
		ticker := time.NewTicker(keepAlive)
		defer ticker.Stop()
		due = ticker.C
	}
	for {
		var request *v1.RegisterRequest
		select {
		case request = <-r.requests:
		case <-due:
			request = &v1.RegisterRequest{Request: &v1.RegisterRequest_KeepAlive{KeepAlive: &v1.KeepAlive{}}}
			r.pulse.asks(time.Now())
		case <-r.vigil.ctx.Done():
			return
		}
		if stream.Send(request) != nil {
			return
		}
	}
}

// messages are the messages of the replica; nil when there is no stream.
func (r *regStream) messages() <-chan *v1.RegisterResponse {
	if r == nil {
		return nil
	}
	return r.in.messages
}

// end ends the call, and with it its goroutines.
func (r *regStream) end() { r.vigil.end() }
