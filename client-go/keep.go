package rollcall

import (
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// keeper keeps a lock: renewals, doubt, and the end.
type keeper struct {
	lock   *Lock
	terms  *lockTerms
	stream *lockStream
	grant  grant
	// but is the replica that is about to stop.
	but int
	// renewing reports that a renewal was begun since the stream was opened. It may have superseded the stream.
	renewing bool
}

// keepByRenewal keeps a lock with a ttl. It renews the lock every third of the ttl, at any replica that answers. The
// lock's own clock ends the lock when none does.
func (k *keeper) keepByRenewal() {
	defer func() { k.stream.end() }()
	renew := time.NewTimer(time.Until(k.renewAt()))
	defer renew.Stop()
	for {
		select {
		case <-k.lock.keeping.Done():
			return
		case <-renew.C:
			renew.Reset(k.renew())
		case message, ok := <-k.stream.messages():
			if !ok {
				k.broke(k.stream.in.ended)
				renew.Reset(0)
			} else if k.heard(message) {
				renew.Reset(0)
			}
		}
	}
}

func (k *keeper) renewAt() time.Time { return k.grant.sentAt.Add(k.terms.ttl / 3) }

// heard reports whether it is time for a renewal.
func (k *keeper) heard(message *v1.AcquireLockResponse) bool {
	until := k.terms.until(k.grant)
	switch event := message.GetEvent().(type) {
	case *v1.AcquireLockResponse_Held:
		k.lock.show(LockHeld, until)
	case *v1.AcquireLockResponse_Suspended:
		doubt := time.Now().Add(event.Suspended.GetRemaining().AsDuration())
		if doubt.Before(until) {
			until = doubt
		}
		k.lock.show(LockSuspended, until)
	case *v1.AcquireLockResponse_Lost:
		k.lock.lose(lostReason(event.Lost), nil)
	case *v1.AcquireLockResponse_Draining:
		k.stream.at.drains()
		k.but = k.stream.at.index
		return true
	}
	return false
}

// broke records that the stream broke, which ends the lock only if the replica says so.
func (k *keeper) broke(why *failure) {
	at := k.stream.at
	k.stream = nil
	if k.isEnd(why, k.renewing) {
		return
	}
	at.failed(why)
}

// renew tries once, and returns the pause before the next attempt.
func (k *keeper) renew() time.Duration {
	at, err := k.lock.client.replicas.pick(k.lock.keeping, k.but, k.terms.ttl/6)
	if err != nil {
		// The lock is over.
		return k.terms.ttl
	}
	k.renewing = true
	renewed, why := k.terms.renew(k.lock.keeping, at, k.grant.id)
	switch {
	case k.lock.keeping.Err() != nil:
		renewed.stream.end()
		return k.terms.ttl
	case why == nil:
		at.succeeded()
		k.stream.end()
		k.stream, k.grant, k.but, k.renewing = renewed.stream, renewed, none, false
		k.lock.show(LockHeld, k.terms.until(renewed))
		return time.Until(k.renewAt())
	case !k.isEnd(why, true):
		at.failed(why)
	}
	return 0
}

// isEnd reports whether a failure ends the lock or is worth another attempt; in the first case it ends the lock. With
// renewing, a renewal of our own may have superseded the stream.
func (k *keeper) isEnd(why *failure, renewing bool) bool {
	switch {
	case why.isEnd:
		k.lock.lose(LostReleased, nil)
	case why.refusedFor(LockLost):
		k.lock.lose(LostSession, why.err)
	case why.refusedFor(Superseded) && !renewing:
		k.lock.lose(LostSuperseded, why.err)
	default:
		// A single replica may refuse, or refuse only for a moment, so the ttl decides.
		return false
	}
	return true
}

// keepByStream keeps a lock without a ttl, which lives as long as the stream.
func (k *keeper) keepByStream() {
	defer k.stream.end()
	// While the replica is in doubt, the lock is certain until doubt. ends is when a stopping replica releases the lock.
	var doubt, ends time.Time
	for {
		select {
		case <-k.lock.keeping.Done():
			return
		case message, ok := <-k.stream.in.messages:
			if !ok {
				k.disconnected(k.stream.in.ended)
				return
			}
			doubt, ends = k.doubt(message, doubt, ends)
		}
		kind, until := LockHeld, k.terms.until(k.grant)
		if !doubt.IsZero() {
			kind, until = LockSuspended, doubt
		}
		if !ends.IsZero() {
			kind = LockSuspended
			if ends.Before(until) {
				until = ends
			}
		}
		k.lock.show(kind, until)
	}
}

// doubt returns the doubt and the end after a message.
func (k *keeper) doubt(message *v1.AcquireLockResponse, doubt, ends time.Time) (time.Time, time.Time) {
	now := time.Now()
	switch event := message.GetEvent().(type) {
	case *v1.AcquireLockResponse_Held:
		k.grant.heardAt, k.grant.horizon = now, horizon(event.Held)
		return time.Time{}, ends
	case *v1.AcquireLockResponse_Heartbeat:
		k.grant.heardAt = now
	case *v1.AcquireLockResponse_Suspended:
		return now.Add(event.Suspended.GetRemaining().AsDuration()), ends
	case *v1.AcquireLockResponse_Lost:
		k.lock.lose(lostReason(event.Lost), nil)
	case *v1.AcquireLockResponse_Draining:
		k.stream.at.drains()
		return doubt, now.Add(event.Draining.GetRemaining().AsDuration())
	}
	return doubt, ends
}

// disconnected records that the stream ended, and the lock with it.
func (k *keeper) disconnected(why *failure) {
	if k.isEnd(why, false) {
		return
	}
	if why.kind == refused {
		k.lock.lose(LostRefused, why.err)
		return
	}
	k.stream.at.failed(why)
	k.lock.lose(LostConnection, why.err)
}

func lostReason(lost *v1.LockLost) LostReason {
	switch lost.GetReason() {
	case v1.LostReason_LOST_REASON_TAKEN_OVER:
		return LostTakenOver
	case v1.LostReason_LOST_REASON_EXPIRED:
		return LostExpired
	case v1.LostReason_LOST_REASON_REMOVED:
		return LostRemoved
	}
	return LostSession
}
