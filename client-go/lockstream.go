package rollcall

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

const (
	// lockHeartbeat is the longest silence of a quiet lock stream before the replica sends something. While the lock is
	// held, the replica sends at least every third of the lock's horizon.
	lockHeartbeat = 3 * time.Second
	// lockSilence is the time without a word after which a stream is given up, and a lock without a ttl is lost, where the
	// replica has given no horizon: a replica of an older version, or one that has not granted the lock yet.
	lockSilence = 10 * time.Second
	// leastLockSilence is the shortest silence after which a stream is given up, though its lock may be lost earlier: in
	// doubt, the horizon is the rest of the lock's certainty.
	leastLockSilence = time.Second
)

// lockTerms are the terms of a request for a lock.
type lockTerms struct {
	client  *Client
	ttl     time.Duration
	request *v1.AcquireLockRequest
	// base gives the streams their values; it never ends.
	base context.Context
}

// grant is a lock that was granted.
type grant struct {
	id    string
	token int64
	// sentAt is when the last request that a replica has answered with this grant was sent.
	sentAt time.Time
	// heardAt is when the replica last said that the lock is held, or that nothing has changed. horizon is the time after
	// that for which a lock without a ttl is certain.
	heardAt time.Time
	horizon time.Duration
	stream  *lockStream
}

// until is the time until which a grant is certain.
func (t *lockTerms) until(g grant) time.Time {
	if t.ttl > 0 {
		return g.sentAt.Add(t.ttl)
	}
	return g.heardAt.Add(g.horizon)
}

// horizon is the time without a word from the replica after which the lock is lost.
func horizon(held *v1.Held) time.Duration {
	if held.GetHorizon() == nil {
		return lockSilence
	}
	return held.GetHorizon().AsDuration()
}

// lockSilenceAfter is the time that a stream may be silent after a message; zero means as long as before.
func lockSilenceAfter(message *v1.AcquireLockResponse) time.Duration {
	if held := message.GetHeld(); held != nil {
		return min(lockSilence, max(leastLockSilence, horizon(held)))
	}
	return 0
}

// lockStream is an open AcquireLock call.
type lockStream struct {
	at     *replica
	in     *inbox[v1.AcquireLockResponse]
	vigil  *vigil
	sentAt time.Time
}

// open queues for the lock anew, or resumes the place or lock that has an id. The stream outlives ctx, which bounds the
// opening. The use of the replica ends with the stream, or with the failure.
func (t *lockTerms) open(ctx context.Context, at *replica, id string, wait *time.Duration) (*lockStream, *failure) {
	request := proto.Clone(t.request).(*v1.AcquireLockRequest)
	request.LockId = id
	if wait != nil {
		request.Wait = durationpb.New(max(*wait, 0))
	}
	base, cancel := t.client.join(t.base)
	v := keepVigil(base)
	context.AfterFunc(v.ctx, cancel)
	stop := context.AfterFunc(ctx, v.end)
	sentAt := time.Now()
	stream, err := at.stub.AcquireLock(v.ctx, request)
	if err == nil {
		// A replica sends headers at once; without them the stream is not open.
		header, problem := stream.Header()
		if err = problem; err == nil && header == nil {
			_, err = stream.Recv()
		}
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		why := v.why(err)
		v.end()
		at.release()
		return nil, why
	}
	in := receive(t.client, v, stream, lockSilence, lockSilenceAfter, at.release)
	if in == nil {
		return nil, failureOf(context.Canceled, false)
	}
	return &lockStream{at: at, in: in, vigil: v, sentAt: sentAt}, nil
}

// renew resumes a lock at a replica, and waits for at most a part of the ttl until the replica says that it is held.
func (t *lockTerms) renew(ctx context.Context, at *replica, id string) (grant, *failure) {
	ctx, cancel := context.WithTimeout(ctx, max(t.ttl/6, 300*time.Millisecond))
	defer cancel()
	stream, why := t.open(ctx, at, id, nil)
	if why != nil {
		return grant{}, why
	}
	for {
		select {
		case message, ok := <-stream.in.messages:
			if !ok {
				return grant{}, stream.in.ended
			}
			if held := message.GetHeld(); held != nil {
				return stream.granted(held), nil
			}
		case <-ctx.Done():
			stream.end()
			return grant{}, failureOf(errSilent, true)
		}
	}
}

func (s *lockStream) granted(held *v1.Held) grant {
	return grant{
		id: held.GetLockId(), token: held.GetFencingToken(), sentAt: s.sentAt, heardAt: time.Now(), horizon: horizon(held),
		stream: s,
	}
}

// messages are the messages of the replica; nil when there is no stream.
func (s *lockStream) messages() <-chan *v1.AcquireLockResponse {
	if s == nil {
		return nil
	}
	return s.in.messages
}

// end ends the call, and with it its goroutine.
func (s *lockStream) end() {
	if s != nil {
		s.vigil.end()
	}
}
