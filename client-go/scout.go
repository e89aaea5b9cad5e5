package rollcall

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// A replica that has lost ZooKeeper keeps its streams: it goes on answering from memory, and keeps what waits. So a
// stream stays where it is until another replica is known to have ZooKeeper; where none has, nothing is gained by
// moving, and what the replica still holds for the stream would be put at risk.

const (
	// firstLook and lastLook are the first and the longest pause before a stream whose replica has lost ZooKeeper looks
	// for another replica. A shorter first one would move streams for a ZooKeeper server that is merely replaced; a
	// longer last one leaves a stream without ZooKeeper for longer than it has to be.
	firstLook = time.Second
	lastLook  = 10 * time.Second
	// question is how long the other replicas may take to say that they have ZooKeeper. One that has lost it answers
	// later than that.
	question = time.Second
)

func lookPause(looks int) time.Duration { return min(firstLook<<min(looks, 16), lastLook) }

// unease is when one stream looks for another replica. Pure: the time is given.
type unease struct {
	// lookAt is set while its replica has no ZooKeeper.
	lookAt time.Time
	// looks counts how often it has looked, or moved, in this trouble.
	looks int
	// stays: it stays where it is for as long as this trouble lasts.
	stays bool
	// spread, from 0 to 1, is how much longer the first pause is: clients that lose ZooKeeper together don't move
	// together. It is the same for all streams of a client, which share their rounds of questions.
	spread float64
}

func (r *replicas) newUnease() unease { return unease{spread: r.spread} }

// set: whether the stream's replica has lost ZooKeeper, or says so still.
func (u *unease) set(isWithout bool, now time.Time) {
	switch {
	case !isWithout:
		*u = unease{spread: u.spread}
	case u.lookAt.IsZero() && !u.stays:
		u.lookAt = now.Add(u.pause())
	}
}

// looked: the next time, at the replica where it then is, comes after a longer pause. So a stream does not hop for ever
// between replicas that promise more than they hold.
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

// moved: whether the new replica has ZooKeeper is not known yet.
func (u *unease) moved() { u.lookAt, u.stays = time.Time{}, false }

// returned: it has gone back, since the other replica could not take it.
func (u *unease) returned() { u.lookAt, u.stays = time.Time{}, true }

// rounds is what the last round of questions came to. All streams of a client share it, so that a client with a
// thousand of them asks no more than one. Pure: the time is given.
type rounds struct {
	at     time.Time
	found  bool
	inVain int
}

// last is what a round that was begun a moment ago has come to; where ok is false it is time for another.
func (r *rounds) last(now time.Time) (found, ok bool) {
	// A moment less than the streams wait, or each would come just too early.
	kept := firstLook / 2
	if !r.found {
		kept = lookPause(max(r.inVain-1, 0)) / 2
	}
	return r.found, !r.at.IsZero() && now.Before(r.at.Add(kept))
}

// put: another round has come to this.
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

// round is one that is under way.
type round struct {
	than int
	done chan struct{}
}

// foundBetter asks the others whether they have ZooKeeper, which the one at than has lost. If one has, whatever comes
// next goes there. All who want another one than this share one round of questions, and its answer for a while.
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
	// A round that its caller has left says nothing.
	if ctx.Err() == nil {
		r.rounds[under.than].put(false, time.Now())
	}
	return false
}

// stops tells whether a replica is about to stop: it still answers, and is no better than one without ZooKeeper.
func (r *replicas) stops(index int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.stopsUntil[index])
}

// hasZooKeeper tells whether a round trip to ZooKeeper can be made at a replica.
func (r *replicas) hasZooKeeper(ctx context.Context, index int) bool {
	r.mu.Lock()
	at, err := r.connect(chosen{index: index})
	r.mu.Unlock()
	if err != nil {
		return false
	}
	defer at.release()
	// ZooKeeper's own node, or nothing below a chroot: small, and the same for all clients of a replica.
	request := &v1.GetRequest{Path: "/zookeeper", PageSize: 1, Consistency: v1.Consistency_CONSISTENCY_LATEST}
	if _, err := at.stub.Get(ctx, request); err != nil {
		// It may not be read; that is an answer of ZooKeeper's, or of a replica that has no need to ask.
		why := failureOf(err, true)
		return why.refusedFor(NoAuth) || why.refusedFor(Rule)
	}
	return true
}

// lookout looks for another replica while the present one of a watch has no ZooKeeper, and ends the watch's stream when
// it has found one.
type lookout struct {
	cancel context.CancelFunc
	done   chan struct{}
	// found and unease are to be read once done is closed.
	found  bool
	unease unease
}

// lookOut begins; end is what ends the stream.
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

// stop ends it, and tells whether another replica was found.
func (l *lookout) stop() bool {
	if l == nil {
		return false
	}
	l.cancel()
	<-l.done
	return l.found
}
