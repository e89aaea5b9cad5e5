package rollcall

import (
	"context"
	"errors"
	"sync"
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// lockTTL is the default time for which a lock outlives its program.
const lockTTL = 30 * time.Second

// Place is a place in the queue for a lock.
type Place struct {
	// Position is counted from 1.
	Position int
	// Holders are the names of the holders of the lock.
	Holders []string
}

// LockStateKind is the kind of a lock's state.
type LockStateKind int

// The states of a lock.
const (
	// LockHeld means that the lock is held.
	LockHeld LockStateKind = iota
	// LockSuspended means that the lock is still held, but may soon be lost: ZooKeeper does not answer, or the replica is
	// about to stop.
	LockSuspended
	// LockIsLost means that the lock is no longer held.
	LockIsLost
	// LockUnlocked means that this program released the lock.
	LockUnlocked
)

// LockState is the state of a lock.
type LockState struct {
	// Kind is the kind of the state. The other fields belong to it.
	Kind LockStateKind
	// Until is the time until which the lock is certainly held; renewals move it on. Of LockHeld and LockSuspended.
	Until time.Time
	// Err is a *[LostError] with the cause. Of LockIsLost.
	Err error
}

func (s LockState) isOver() bool { return s.Kind == LockIsLost || s.Kind == LockUnlocked }

// Lock is a lock that is held until it is unlocked or lost. It is safe for concurrent use.
type Lock struct {
	client *Client
	path   string
	id     string
	token  int64
	// ctx ends with the lock. keeping ends when the lock need not be kept any more, which is after its release.
	ctx     context.Context
	cancel  context.CancelCauseFunc
	keeping context.Context
	unkeep  context.CancelFunc

	mu    sync.Mutex
	state LockState
	// expiry ends the lock by this program's own clock.
	expiry *time.Timer
}

// Lock takes a lock, and waits until it is held: first come, first served, across all replicas and all programs that
// use kazoo's Semaphore. When the context ends first, the place in the queue is given up. After a broken connection the
// place is kept if the replica still knows it; otherwise a new place is taken, at the end of the queue.
//
// The lock is held until it is unlocked or lost, or the client is closed; the context bounds only the wait.
//
// A lock alone does not keep out a program that was paused while its lock ran out: between its last check and its
// write, another program may have got the lock. Where that matters, pass the [Lock.FencingToken] to the guarded
// resource, and have it refuse a token smaller than the largest it has seen.
//
// Errors have the reason [LockBusy] (the time is over; the metadata holders may name the holders), [LockLimitDiffers],
// [NotALock], [Invalid], those of every call, or [Unreachable]: no replica answered for the client's time-out.
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

// ReleaseLock releases a lock, or a place in its queue, by the id that [Lock.Leave] gave. Any program can do so.
//
// Errors have the reason [LockLost] (it is no longer held under this id) or [Unreachable].
func (c *Client) ReleaseLock(ctx context.Context, id string) error {
	request := &v1.ReleaseLockRequest{LockId: id}
	attempts := 0
	// Releasing twice is the same as once.
	release := func(ctx context.Context, at *replica) (*v1.ReleaseLockResponse, error) {
		attempts++
		return at.stub.ReleaseLock(ctx, request)
	}
	_, err := call(ctx, c, "", reads, 0, release)
	if attempts > 1 && errors.Is(err, LockLost) {
		// An earlier attempt was carried out, and its answer was lost.
		return nil
	}
	return err
}

// hold makes a Lock of a grant.
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

// FencingToken rises with every grant of this lock. Pass it to the resource that the lock guards, and have that
// resource refuse a token smaller than the largest it has seen.
func (l *Lock) FencingToken() int64 { return l.token }

// Context ends when the lock is unlocked, or when it is lost by a replica's word or by this program's own clock. For as
// long as this program runs, the latter is before any other client can get the lock. context.Cause then returns a
// *[LostError], or an error of reason [Closed]. The context has the values of the context that was given to
// [Client.Lock], but does not end with it.
func (l *Lock) Context() context.Context { return l.ctx }

// State is the present state of the lock, by this program's clock.
func (l *Lock) State() LockState {
	l.check()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Unlock releases the lock, and waits until that is done. It may be called more than once: a call after the first one,
// or beside it, returns at once.
//
// An error is a *[LostError]: the lock was lost before; or it has the reason [Unreachable] or is the context's: no
// replica could be reached in time. Then the client goes on trying; at the latest the lock goes with its ttl.
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

// Leave stops renewing the lock and leaves it held for its ttl. It returns the id by which any program can release the
// lock with [Client.ReleaseLock]. The id is a secret: anyone who knows it can release the lock. A lock without a ttl is
// released. The lock's Context ends.
func (l *Lock) Leave() string {
	l.over(LockState{Kind: LockUnlocked}, closed(l.path))
	l.unkeep()
	return l.id
}

// show publishes a state, unless the lock is over already.
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

// over ends the lock, and reports whether that is news. The keeper goes on until keeping ends.
func (l *Lock) over(state LockState, cause error) bool {
	l.mu.Lock()
	if l.state.isOver() {
		l.mu.Unlock()
		return false
	}
	l.state = state
	l.expiry.Stop()
	// Before anybody can see that the lock is over, so that the context never lags behind the state.
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

// lockContext checks the clock, so that a program that was paused finds out before its timers fire.
type lockContext struct {
	context.Context
	lock *Lock
}

func (c lockContext) Err() error {
	c.lock.check()
	return c.Context.Err()
}

// releaseLater releases a lock in the background, as far as the end of the program leaves time for that.
func (c *Client) releaseLater(id string) {
	if id != "" {
		// An error means that the lock is gone already, which is just as good.
		c.giveBack(func() { _ = c.ReleaseLock(c.ctx, id) })
	}
}

// giveBack runs a task in the background, for which the end of the client waits. It reports whether there is time for
// it.
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
