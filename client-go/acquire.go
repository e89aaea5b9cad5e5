package rollcall

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// queueing is an attempt to get a lock, from the first request to the grant.
type queueing struct {
	ctx      context.Context
	client   *Client
	terms    *lockTerms
	settings lockSettings
	// deadline is the end of the wait that the caller asked for; nil for none.
	deadline *time.Time
	// id is the id of the place in the queue; empty while there is no place.
	id string
	// left is the previous place, kept until the new one is certain.
	left   *lockStream
	leftID string
	// heardAt is the time of a replica's last message.
	heardAt time.Time
	last    *failure
}

func newQueueing(ctx context.Context, c *Client, path string, settings lockSettings) *queueing {
	request := &v1.AcquireLockRequest{
		Path:         path,
		Simultaneous: settings.simultaneous,
		Name:         settings.name,
		Heartbeat:    durationpb.New(lockHeartbeat),
	}
	if settings.ttl > 0 {
		request.Ttl = durationpb.New(settings.ttl)
	}
	terms := &lockTerms{client: c, ttl: settings.ttl, request: request, base: context.WithoutCancel(ctx)}
	q := &queueing{ctx: ctx, client: c, terms: terms, settings: settings, heardAt: time.Now()}
	if settings.wait != nil {
		deadline := q.heardAt.Add(*settings.wait)
		q.deadline = &deadline
	}
	return q
}

// acquire queues, at one replica after another, until the lock is granted or the time is over.
func (q *queueing) acquire() (*Lock, error) {
	defer q.giveUp()
	joined, cancel := q.client.join(q.ctx)
	defer cancel()
	for {
		at, err := q.pick(joined)
		if err != nil {
			return nil, err
		}
		granted, why := q.queue(joined, at)
		switch {
		case joined.Err() != nil:
			if granted.stream != nil {
				granted.stream.end()
			}
			return nil, q.outOfTime()
		case why == nil && granted.stream == nil:
			// Queue again, or resume the place, at another replica.
		case why == nil:
			lock, err := q.client.hold(q.ctx, q.terms, granted)
			if err == nil {
				q.id = ""
			}
			return lock, err
		case why.refusedFor(LockLost) && q.id != "":
			// The place is gone. A place that a replica still knows must not block our own next request.
			q.client.releaseLater(q.id)
			q.id = ""
		case why.kind == refused:
			at.succeeded()
			// The replica has already ended the place.
			q.id = ""
			return nil, why.err
		default:
			at.failed(why)
			q.last = why
		}
	}
}

// pick waits for a replica, until the client's time-out has passed since the last message of any replica.
func (q *queueing) pick(ctx context.Context) (*replica, error) {
	bounded, cancel := context.WithDeadline(ctx, q.heardAt.Add(q.client.patience))
	defer cancel()
	but := none
	if q.left != nil {
		but = q.left.at.index
	}
	at, err := q.client.replicas.pick(bounded, but, q.client.patience/6)
	switch {
	case err == nil, errors.Is(err, Invalid), errors.Is(err, Closed):
		return at, err
	case ctx.Err() != nil:
		return nil, q.outOfTime()
	}
	return nil, unreachable(q.client.replicas.String(), q.last, nil)
}

// outOfTime is the error when the context has ended.
func (q *queueing) outOfTime() error {
	if errors.Is(q.ctx.Err(), context.DeadlineExceeded) && q.last == nil {
		return &Error{
			Reason:  LockBusy,
			Code:    codes.Aborted,
			Message: q.terms.request.GetPath() + " was not granted in time",
			cause:   q.ctx.Err(),
		}
	}
	return q.client.ended(q.ctx, q.last)
}

// queue follows a place in the queue. It returns neither a grant nor a failure when the place was left for another.
func (q *queueing) queue(ctx context.Context, at *replica) (grant, *failure) {
	var wait *time.Duration
	if q.deadline != nil {
		left := time.Until(*q.deadline)
		wait = &left
	}
	stream, why := q.terms.open(ctx, at, q.id, wait)
	if why != nil {
		return grant{}, why
	}
	for {
		var message *v1.AcquireLockResponse
		select {
		case next, ok := <-stream.in.messages:
			if !ok {
				return grant{}, q.ended(stream)
			}
			message = next
		case <-ctx.Done():
			q.abandon(stream)
			return grant{}, nil
		}
		at.succeeded()
		q.heardAt, q.last = time.Now(), nil
		switch event := message.GetEvent().(type) {
		case *v1.AcquireLockResponse_Queued:
			q.take(event.Queued)
		case *v1.AcquireLockResponse_Held:
			return q.held(ctx, stream, event.Held)
		case *v1.AcquireLockResponse_Heartbeat:
			// Without ZooKeeper there is no place. The replica goes on waiting for ZooKeeper, though another replica may have
			// it.
			if q.id == "" && q.client.replicas.foundBetter(ctx, at.index) {
				q.abandon(stream)
				return grant{}, nil
			}
		case *v1.AcquireLockResponse_Lost:
			// The lock was lost before it was used.
			stream.end()
			return grant{}, nil
		case *v1.AcquireLockResponse_Draining:
			at.drains()
			q.leave(stream)
			return grant{}, nil
		}
	}
}

// held takes in a grant. The lock's certainty counts from the request, which is long ago after a long wait; then held
// renews the lock first.
func (q *queueing) held(ctx context.Context, stream *lockStream, held *v1.Held) (grant, *failure) {
	q.id = held.GetLockId()
	q.client.seen.note(held.GetFencingToken())
	if q.terms.ttl == 0 || time.Since(stream.sentAt) <= q.terms.ttl/3 {
		return stream.granted(held), nil
	}
	defer stream.end()
	return q.terms.renew(ctx, stream.at.again(), q.id)
}

// take takes in a new place, or the confirmation of the old one.
func (q *queueing) take(queued *v1.Queued) {
	if q.id != queued.GetLockId() {
		q.client.releaseLater(q.id)
		q.id = queued.GetLockId()
	}
	q.forgetLeft()
	if tell := q.settings.onQueued; tell != nil {
		tell(Place{Position: int(queued.GetPosition()), Holders: queued.GetHolders()})
	}
}

// abandon ends a stream. While the place of the stream is not known, it is read on in the background: the lock may be
// granted before the replica notices that the caller is gone, and would then be held unused for its ttl.
func (q *queueing) abandon(stream *lockStream) {
	patience := q.client.patience
	readOn := func() {
		defer stream.end()
		bounded, cancel := context.WithTimeout(q.client.ctx, patience)
		defer cancel()
		for {
			select {
			case message := <-stream.in.messages:
				if queued := message.GetQueued(); queued != nil {
					stream.end()
					_ = q.client.ReleaseLock(q.client.ctx, queued.GetLockId())
				}
				if message.GetHeartbeat() == nil {
					return
				}
			case <-bounded.Done():
				return
			}
		}
	}
	if q.id != "" || !q.client.giveBack(readOn) {
		stream.end()
	}
}

// leave keeps a place at a replica that is about to stop until there is another place, since it can't be moved.
func (q *queueing) leave(stream *lockStream) {
	q.forgetLeft()
	if q.id == "" {
		stream.end()
		return
	}
	q.left, q.leftID, q.id = stream, q.id, ""
}

func (q *queueing) forgetLeft() {
	q.left.end()
	q.client.releaseLater(q.leftID)
	q.left, q.leftID = nil, ""
}

// ended is the failure with which a stream ended.
func (q *queueing) ended(stream *lockStream) *failure {
	if why := stream.in.ended; !why.isEnd {
		return why
	}
	q.id = ""
	message := "the place in the queue was given back by its id"
	return &failure{kind: refused, err: &Error{Reason: LockLost, Code: codes.Aborted, Message: message}}
}

// giveUp leaves the queue, even when a replica has granted a lock of which the caller has not heard yet.
func (q *queueing) giveUp() {
	q.forgetLeft()
	q.client.releaseLater(q.id)
}
