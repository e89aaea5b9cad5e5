package rollcall

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// A replica that has lost ZooKeeper keeps its streams: it goes on answering from memory, and holds waiting requests. So
// a stream stays where it is until another replica is known to have ZooKeeper. If none has it, moving gains nothing,
// and puts at risk the state that the replica still holds for the stream.

const (
	// firstLook and lastLook are the first and the longest pause before a stream whose replica has lost ZooKeeper looks
	// for another replica. If the first pause is shorter, streams move for a ZooKeeper server that is merely replaced; if
	// the last is longer, a stream stays without ZooKeeper for longer than it has to.
	firstLook = time.Second
	lastLook  = 10 * time.Second
	// question is the time that the other replicas have to say that they have ZooKeeper. A replica that has lost it
	// answers later than that.
	question = time.Second
)

func lookPause(looks int) time.Duration { return min(firstLook<<min(looks, 16), lastLook) }

// unease decides when a stream looks for another replica. Pure: the time is given.
type unease struct {
	// lookAt is when to look next. It is set while the replica has no ZooKeeper.
	lookAt time.Time
	// looks is the number of times that the stream has looked, or moved, in this outage.
	looks int
	// stays reports that the stream stays where it is for the rest of this outage.
	stays bool
	// spread, from 0 to 1, is how much longer the first pause is, so that clients that lose ZooKeeper together do not move
	// together. It is the same for all streams of a client, which share their rounds of questions.
	spread float64
}

func (r *replicas) newUnease() unease { return unease{spread: r.spread} }

// set records whether the stream's replica is without ZooKeeper.
func (u *unease) set(isWithout bool, now time.Time) {
	switch {
	case !isWithout:
		*u = unease{spread: u.spread}
	case u.lookAt.IsZero() && !u.stays:
		u.lookAt = now.Add(u.pause())
	}
}

// looked records that the stream looks. The next look, at whichever replica it then is, comes after a longer pause, so
// that a stream does not hop for ever between replicas that promise more than they can do.
func (u *unease) looked(now time.Time) {
	u.looks++
	u.lookAt = now.Add(u.pause())
}

func (u *unease) pause() time.Duration {
	pause := lookPause(u.looks)
	if u.looks == 0 {
		pause += time.Duration(float64(pause) * u.spread)
	}
	return pause
}

// moved records that the stream has moved. Whether the new replica has ZooKeeper is not known yet.
func (u *unease) moved() { u.lookAt, u.stays = time.Time{}, false }

// returned records that the stream has gone back, since the other replica could not take it.
func (u *unease) returned() { u.lookAt, u.stays = time.Time{}, true }

// rounds is the result of the last round of questions. All streams of a client share it, so that a client with a
// thousand streams asks no more than a client with one. Pure: the time is given.
type rounds struct {
	at     time.Time
	found  bool
	inVain int
}

// last is the result of a round that was made a moment ago. If ok is false, it is time for another.
func (r *rounds) last(now time.Time) (found, ok bool) {
	// Kept for less time than a stream waits, or each stream would come just too early.
	kept := firstLook / 2
	if !r.found {
		kept = lookPause(max(r.inVain-1, 0)) / 2
	}
	return r.found, !r.at.IsZero() && now.Before(r.at.Add(kept))
}

// put records the result of a round.
func (r *rounds) put(found bool, now time.Time) {
	switch isOld := r.at.IsZero() || now.After(r.at.Add(4*lastLook)); {
	case found:
		r.inVain = 0
	case isOld || r.found:
		r.inVain = 1
	default:
		r.inVain++
	}
	r.at, r.found = now, found
}

// round is a round that is under way.
type round struct {
	than int
	done chan struct{}
}

// foundBetter asks the others whether they have ZooKeeper, which the replica at than has lost. If one has, the next
// calls and streams go there. All callers that want to leave the same replica share one round of questions, and its
// answer for a while.
func (r *replicas) foundBetter(ctx context.Context, than int) bool {
	if len(r.names) == 1 {
		return false
	}
	for {
		r.mu.Lock()
		if found, ok := r.rounds[than].last(time.Now()); ok {
			defer r.mu.Unlock()
			return found && r.choice.current != than
		}
		under := r.round
		if under == nil {
			under = &round{than: than, done: make(chan struct{})}
			r.round = under
			r.mu.Unlock()
			return r.askOthers(ctx, under)
		}
		r.mu.Unlock()
		select {
		case <-under.done:
		case <-ctx.Done():
			return false
		}
	}
}

func (r *replicas) askOthers(ctx context.Context, under *round) bool {
	asking, cancel := context.WithTimeout(ctx, question)
	found := make(chan int, len(r.names))
	var asked sync.WaitGroup
	for _, index := range rand.Perm(len(r.names)) {
		if index != under.than && !r.stops(index) {
			asked.Go(func() {
				if r.hasZooKeeper(asking, index) {
					found <- index
					cancel()
				}
			})
		}
	}
	asked.Wait()
	cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.round = nil
	close(under.done)
	select {
	case index := <-found:
		if time.Now().Before(r.stopsUntil[index]) {
			break
		}
		r.choice.prefer(index)
		r.rounds[under.than].put(true, time.Now())
		return true
	default:
	}
	// A round that its caller has left has no result.
	if ctx.Err() == nil {
		r.rounds[under.than].put(false, time.Now())
	}
	return false
}

// stops reports whether a replica is about to stop. Such a replica still answers, and is no better than one without
// ZooKeeper.
func (r *replicas) stops(index int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.stopsUntil[index])
}

// hasZooKeeper reports whether a replica can make a round trip to ZooKeeper.
func (r *replicas) hasZooKeeper(ctx context.Context, index int) bool {
	r.mu.Lock()
	at, err := r.connect(chosen{index: index})
	r.mu.Unlock()
	if err != nil {
		return false
	}
	defer at.release()
	// The path is ZooKeeper's own node, or nothing below a chroot: small, and the same for all clients of a replica.
	request := &v1.GetRequest{Path: "/zookeeper", PageSize: 1, Consistency: v1.Consistency_CONSISTENCY_LATEST}
	if _, err := at.stub.Get(ctx, request); err != nil {
		// The path may not be read. That is an answer of ZooKeeper's, or of a replica that has no need to ask it.
		why := failureOf(err, true)
		return why.refusedFor(NoAuth) || why.refusedFor(Rule)
	}
	return true
}

// lookout looks for another replica while the present replica of a watch has no ZooKeeper. It ends the watch's stream
// when it has found one.
type lookout struct {
	cancel context.CancelFunc
	done   chan struct{}
	// found and unease may be read once done is closed.
	found  bool
	unease unease
}

// lookOut starts a lookout; end ends the watch's stream.
func (r *replicas) lookOut(ctx context.Context, than int, from unease, end func()) *lookout {
	ctx, cancel := context.WithCancel(ctx)
	l := &lookout{cancel: cancel, done: make(chan struct{}), unease: from}
	go func() {
		defer close(l.done)
		for {
			l.unease.set(true, time.Now())
			if sleep(ctx, time.Until(l.unease.lookAt)) != nil {
				return
			}
			l.unease.looked(time.Now())
			if l.found = r.foundBetter(ctx, than); l.found {
				end()
				return
			}
		}
	}()
	return l
}

// stop ends the lookout, and reports whether it has found another replica.
func (l *lookout) stop() bool {
	if l == nil {
		return false
	}
	l.cancel()
	<-l.done
	return l.found
}
