package rollcall

import (
	"context"
	"errors"
	"sync"
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// lockTTL is how long a lock outlives its program, unless it is told otherwise.
const lockTTL = 30 * time.Second

// Place is a place in the queue for a lock.
type Place struct {
	// Position is counted from 1.
	Position int
	// Holders are the names of those who hold the lock.
	Holders []string
}

// LockStateKind is how a lock stands.
type LockStateKind int

// How a lock can stand.
const (
	// LockHeld: it is held.
	LockHeld LockStateKind = iota
	// LockSuspended: it is still held, but may soon be lost: ZooKeeper does not answer, or the replica is about to
	// stop.
	LockSuspended
	// LockIsLost: it is not held any more.
	LockIsLost
	// LockUnlocked: it was given back, by this program.
	LockUnlocked
)

// LockState is how a lock stands.
type LockState struct {
	// Kind is what the other fields belong to.
	Kind LockStateKind
	// Until is until when it is certain; renewals move it on. Of LockHeld and LockSuspended.
	Until time.Time
	// Err is a *[LostError] that says why. Of LockIsLost.
	Err error
}

func (s LockState) isOver() bool { return s.Kind == LockIsLost || s.Kind == LockUnlocked }

// Lock is a lock that is held until it is unlocked or lost. It is safe for use by any number of goroutines.
type Lock struct {
	client *Client
	path   string
	id     string
	token  int64
	// ctx ends with the lock; keeping ends when nobody is to keep it any more, which is after it was given back.
	ctx     context.Context
	cancel  context.CancelCauseFunc
	keeping context.Context
	unkeep  context.CancelFunc

	mu    sync.Mutex
	state LockState
	// expiry ends the lock by this program's own clock.
	expiry *time.Timer
}

// Lock takes a lock, and waits until it is held: first come, first served, across all replicas and programs that use
// kazoo's Semaphore. When the context ends before, the place in the queue is given up. A place is kept if the replica
// still knows it after a broken connection, and otherwise a new one is taken at the end.
//
// The lock is held until it is unlocked or lost, or the client is closed; the context bounds the waiting alone.
//
// A lock alone does not keep out a program that was paused while its lock ran out: between its last look and its write,
// another may have been given the lock. Where that matters, hand the [Lock.FencingToken] to what is guarded, and have
// it refuse a smaller one than it has seen.
//
// Errors are of the reasons [LockBusy] (the time is over; the metadata holders may say who holds it),
// [LockLimitDiffers], [NotALock], [Invalid], those of every call, and [Unreachable]: no replica answered for the
// client's time-out.
func (c *Client) Lock(ctx context.Context, path string, opts ...LockOption) (*Lock, error) {
	settings := lockSettings{ttl: lockTTL, simultaneous: 1, name: c.name}
	for _, option := range opts {
		option.applyLock(&settings)
	}
	if err := checkTTL(settings.ttl); err != nil {
		return nil, err
	}
	return newQueueing(ctx, c, path, settings).acquire()
}

// ReleaseLock gives back a lock, or a place in its queue, by the id that [Lock.Leave] gave; from any program.
//
// Errors are of the reasons [LockLost] (it is not held under this id any more) and [Unreachable].
func (c *Client) ReleaseLock(ctx context.Context, id string) error {
	request := &v1.ReleaseLockRequest{LockId: id}
	attempts := 0
	// Released twice is the same as once.
	release := func(ctx context.Context, at *replica) (*v1.ReleaseLockResponse, error) {
		attempts++
		return at.stub.ReleaseLock(ctx, request)
	}
	_, err := call(ctx, c, "", reads, 0, release)
	if attempts > 1 && errors.Is(err, LockLost) {
		// An earlier attempt was carried out, and its answer lost.
		return nil
	}
	return err
}

// hold makes a lock of a grant.
func (c *Client) hold(ctx context.Context, terms *lockTerms, granted grant) (*Lock, error) {
	l := &Lock{client: c, path: terms.request.GetPath(), id: granted.id, token: granted.token}
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	l.ctx, l.cancel = lockContext{inner, l}, cancel
	l.keeping, l.unkeep = context.WithCancel(context.WithoutCancel(ctx))
	l.state = LockState{Kind: LockHeld, Until: terms.until(granted)}
	c.mu.Lock()
	c.locks[l.id] = l
	c.mu.Unlock()
	l.mu.Lock()
	l.expiry = time.AfterFunc(time.Until(l.state.Until), l.check)
	l.mu.Unlock()
	keeper := keeper{lock: l, terms: terms, stream: granted.stream, grant: granted, but: none}
	keep := keeper.keepByStream
	if terms.ttl > 0 {
		keep = keeper.keepByRenewal
	}
	if !c.spawn(keep) {
		granted.stream.end()
		l.unkeep()
		l.over(LockState{Kind: LockUnlocked}, closed("the client"))
		return nil, closed("the client")
	}
	return l, nil
}

// Path is the path of the lock.
func (l *Lock) Path() string { return l.path }

// FencingToken rises with every grant of this lock. Pass it to what the lock guards, and have that refuse a smaller one
// than it has seen.
func (l *Lock) FencingToken() int64 { return l.token }

// Context ends when the lock does: when it is lost, by a replica's word or by this program's own clock, before anybody
// else can be given it as long as this program runs; and when it is unlocked. context.Cause then gives a *[LostError],
// or an error of reason [Closed]. It has the values of the context that [Client.Lock] was given, but does not end with
// that.
func (l *Lock) Context() context.Context { return l.ctx }

// State is how the lock stands now, by this program's clock.
func (l *Lock) State() LockState {
	l.check()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Unlock gives the lock back, and waits until that is done. It may be called more than once: a call after the first one,
// or beside it, returns at once.
//
// An error is a *[LostError]: the lock was lost before; or of reason [Unreachable], or the context's: no replica could
// be told in time. The client goes on trying; at the latest the lock goes with its ttl.
func (l *Lock) Unlock(ctx context.Context) error {
	l.check()
	if !l.over(LockState{Kind: LockUnlocked}, closed(l.path)) {
		return l.State().Err
	}
	err := l.client.ReleaseLock(ctx, l.id)
	l.unkeep()
	switch {
	case errors.Is(err, LockLost):
		return &LostError{Path: l.path, Reason: LostSession, cause: err}
	case err != nil:
		l.client.releaseLater(l.id)
	}
	return err
}

// Leave leaves the lock held for its ttl, without renewing it, and gives the id by which any program may give it back
// with [Client.ReleaseLock]. The id is a secret: who has it can release the lock. A lock without a ttl is given back.
// The lock's Context ends.
func (l *Lock) Leave() string {
	l.over(LockState{Kind: LockUnlocked}, closed(l.path))
	l.unkeep()
	return l.id
}

// show tells how the lock stands, unless that is settled for good.
func (l *Lock) show(kind LockStateKind, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.state.isOver() {
		l.state = LockState{Kind: kind, Until: until}
		l.expiry.Reset(time.Until(until))
	}
}

// lose ends the lock.
func (l *Lock) lose(reason LostReason, cause error) {
	lost := &LostError{Path: l.path, Reason: reason, cause: cause}
	l.over(LockState{Kind: LockIsLost, Err: lost}, lost)
	l.unkeep()
}

// over says whether that is news. Whoever keeps the lock goes on until it is told not to.
func (l *Lock) over(state LockState, cause error) bool {
	l.mu.Lock()
	if l.state.isOver() {
		l.mu.Unlock()
		return false
	}
	l.state = state
	l.expiry.Stop()
	// Before anybody can see that it is over: who asks the context must not be told that it is not.
	l.cancel(cause)
	l.mu.Unlock()
	l.client.mu.Lock()
	delete(l.client.locks, l.id)
	l.client.mu.Unlock()
	return true
}

// check ends the lock if its time is over.
func (l *Lock) check() {
	l.mu.Lock()
	left := time.Until(l.state.Until)
	isHeld := !l.state.isOver()
	if isHeld && left > 0 {
		l.expiry.Reset(left)
	}
	l.mu.Unlock()
	if isHeld && left <= 0 {
		l.lose(LostExpired, nil)
	}
}

// lockContext looks at the clock, so that a program that was paused finds out before its timers do.
type lockContext struct {
	context.Context
	lock *Lock
}

func (c lockContext) Err() error {
	c.lock.check()
	return c.Context.Err()
}

// releaseLater gives a lock back in the background, as far as the program's end leaves time for it.
func (c *Client) releaseLater(id string) {
	if id != "" {
		// That it is gone already is as good.
		c.giveBack(func() { _ = c.ReleaseLock(c.ctx, id) })
	}
}

// giveBack does something in the background that the end of the client waits for; it tells whether there is time for it.
func (c *Client) giveBack(task func()) bool {
	c.mu.Lock()
	c.releasing++
	c.mu.Unlock()
	done := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.releasing--; c.releasing == 0 && c.idle != nil {
			close(c.idle)
			c.idle = nil
		}
	}
	spawned := c.spawn(func() {
		defer done()
		task()
	})
	if !spawned {
		done()
	}
	return spawned
}

func (c *Client) awaitReleases(ctx context.Context) {
	c.mu.Lock()
	if c.releasing == 0 {
		c.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	c.idle = idle
	c.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}
