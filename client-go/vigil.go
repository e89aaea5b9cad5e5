package rollcall

import (
	"context"
	"time"
)

// vigil is the context of one stream. It ends when nothing is heard for too long.
type vigil struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	sent   *sent
}

// keepVigil starts a vigil, with a bound on the opening of the stream.
func keepVigil(ctx context.Context) *vigil {
	marked, sent := markSent(ctx)
	marked, cancel := context.WithCancelCause(marked)
	timer := time.AfterFunc(openBound, func() { cancel(errSilent) })
	return &vigil{marked, cancel, timer, sent}
}

// expect gives the replica this much time for its next message.
func (v *vigil) expect(within time.Duration) { v.timer.Reset(within) }

// rest expects no message for now.
func (v *vigil) rest() { v.timer.Stop() }

// why returns how the stream ended.
func (v *vigil) why(err error) *failure {
	if context.Cause(v.ctx) == errSilent {
		err = errSilent
	}
	return failureOf(err, v.sent.Load())
}

// end ends the stream.
func (v *vigil) end() {
	v.timer.Stop()
	v.cancel(nil)
}

// inbox reads a stream in a goroutine of its own. The goroutine ends with the vigil, and ends the vigil.
type inbox[T any] struct {
	// messages is closed at the end of the stream.
	messages chan *T
	// ended is the cause of the end. It may be read once messages is closed.
	ended *failure
}

// unread is the maximum number of messages in an inbox.
const unread = 64

// receive reads a stream whose sender is silent for no longer than silence. If after returns a positive time for a
// message, that time takes the place of silence. done is called at the end. receive returns nil when the client is
// closed.
func receive[T any](
	c *Client, v *vigil, stream interface{ Recv() (*T, error) }, silence time.Duration, after func(*T) time.Duration,
	done func(),
) *inbox[T] {
	in := &inbox[T]{messages: make(chan *T, unread)}
	read := func() {
		defer done()
		defer v.end()
		defer close(in.messages)
		for {
			v.expect(silence)
			message, err := stream.Recv()
			if err != nil {
				in.ended = v.why(err)
				return
			}
			v.rest()
			if changed := after(message); changed > 0 {
				silence = changed
			}
			select {
			case in.messages <- message:
			case <-v.ctx.Done():
				in.ended = v.why(v.ctx.Err())
				return
			}
		}
	}
	if !c.spawn(read) {
		done()
		v.end()
		return nil
	}
	return in
}
