package rollcall

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// defaultPatience is the time that a call may take, unless the client or its context sets another.
	defaultPatience = 10 * time.Second
	// attemptBound is the time that one replica may take to answer before another is asked, if there is enough time;
	// shortestAttempt is the shortest such time.
	attemptBound    = 4 * time.Second
	shortestAttempt = time.Second
	// openBound is the time that a replica may take to open a stream.
	openBound = 4 * time.Second
	// goodbye is the time that Close waits for replicas to release everything that is still held.
	goodbye = 3 * time.Second
)

// Client is a client of any number of replicas. It is safe for concurrent use; one client per program is enough.
type Client struct {
	replicas *replicas
	patience time.Duration
	name     string
	// seen is the latest transaction that any replica has shown.
	seen seen

	// ctx ends with the client.
	ctx    context.Context
	cancel context.CancelFunc

	mu sync.Mutex
	// tasks are the client's goroutines; none starts after the client is closed.
	tasks    sync.WaitGroup
	isClosed bool
	sessions map[time.Duration]*session
	// locks are the locks that are held, by id. releasing counts those that are being released in the background; idle, if
	// it is set, is closed when releasing reaches zero.
	locks     map[string]*Lock
	releasing int
	idle      chan struct{}

	closing sync.Once
}

// New creates a client of one or more replicas, HOST:PORT[,HOST:PORT…]. Nothing is connected before the first call.
//
// The error has the reason [Invalid]: an endpoint or an option is not valid.
func New(endpoints string, opts ...Option) (*Client, error) {
	settings := options{patience: defaultPatience, name: defaultName()}
	for _, option := range opts {
		option(&settings)
	}
	names, err := parseEndpoints(endpoints)
	if err != nil {
		return nil, err
	}
	dial := dialer(&settings)
	// Options that contradict each other fail here, not in the first call.
	probe, err := dial(names[0])
	if err != nil {
		return nil, invalid("%s: %v", names[0], err)
	}
	_ = probe.Close()
	client := &Client{
		replicas: newReplicas(names, dial),
		patience: settings.patience,
		name:     settings.name,
		sessions: make(map[time.Duration]*session),
		locks:    make(map[string]*Lock),
	}
	client.ctx, client.cancel = context.WithCancel(context.Background())
	return client, nil
}

func defaultName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "rollcall"
	}
	return fmt.Sprintf("%s:%d", host, os.Getpid())
}

// Close takes down all registrations and releases all locks that are still held, and waits a few seconds at most for
// that. Then it ends everything else, watches and calls under way included. It may be called more than once.
func (c *Client) Close() error {
	c.closing.Do(func() {
		ctx, cancel := context.WithTimeout(c.ctx, goodbye)
		defer cancel()
		c.sayGoodbye(ctx)
		c.mu.Lock()
		c.isClosed = true
		c.mu.Unlock()
		c.cancel()
		c.tasks.Wait()
		c.replicas.close()
	})
	return nil
}

func (c *Client) sayGoodbye(ctx context.Context) {
	c.mu.Lock()
	held, kept := slices.Collect(maps.Values(c.locks)), slices.Collect(maps.Values(c.sessions))
	c.mu.Unlock()
	said := make(chan struct{})
	c.spawn(func() {
		var all sync.WaitGroup
		for _, lock := range held {
			all.Go(func() { _ = lock.Unlock(ctx) })
		}
		for _, session := range kept {
			all.Go(func() { session.leave(ctx) })
		}
		all.Wait()
		c.awaitReleases(ctx)
		close(said)
	})
	select {
	case <-said:
	case <-ctx.Done():
	}
}

// spawn runs a task of the client, and reports whether it does: not after the client is closed.
func (c *Client) spawn(task func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed {
		return false
	}
	c.tasks.Go(task)
	return true
}

// bound returns a context that ends with the caller's and with the client. If the caller's context has no deadline, it
// also ends after the client's time-out plus the time for which the call may be held back.
func (c *Client) bound(ctx context.Context, hold time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := c.join(ctx)
	if _, ok := ctx.Deadline(); ok {
		return ctx, cancel
	}
	ctx, expire := context.WithTimeout(ctx, c.patience+hold)
	return ctx, func() { expire(); cancel() }
}

// join returns a context that ends with the caller's and with the client.
func (c *Client) join(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// ended is the error for a caller whose time is over. ctx is the caller's own context.
func (c *Client) ended(ctx context.Context, last *failure) error {
	switch err := ctx.Err(); {
	case c.ctx.Err() != nil:
		return closed("the client")
	case errors.Is(err, context.Canceled):
		return err
	default:
		return unreachable(c.replicas.String(), last, err)
	}
}

// effect is the effect of making a call twice.
type effect int

const (
	// reads: making the call twice is the same as once.
	reads effect = iota
	// writes: the call is tried again only when it was certainly not carried out.
	writes
)

// call makes a call, at one replica after another, until one answers or the time is over. hold is the time for which
// the replica may hold the answer back.
func call[A any](
	ctx context.Context, c *Client, path string, does effect, hold time.Duration,
	attempt func(context.Context, *replica) (A, error),
) (A, error) {
	var nothing A
	bounded, cancel := c.bound(ctx, hold)
	defer cancel()
	var last *failure
	for {
		replica, err := c.replicas.pick(bounded, none, anyPause)
		if err != nil {
			if last != nil && (last.kind == notNow || last.kind == refused) && !errors.Is(err, context.Canceled) {
				return nothing, last.err
			}
			if errors.Is(err, Invalid) {
				return nothing, err
			}
			return nothing, c.ended(ctx, last)
		}
		answer, why := try(bounded, replica, does, hold, attempt)
		if why == nil {
			return answer, nil
		}
		switch {
		case why.refusedFor(PageExpired):
		case why.kind == refused:
			return nothing, why.err
		case why.kind == broken && does == writes:
			message := fmt.Sprintf("%s may or may not have been written: %s", path, why.err.Message)
			return nothing, &Error{Reason: OutcomeUnknown, Code: why.err.Code, Message: message, cause: ctx.Err()}
		}
		last = why
	}
}

// try makes a call at one replica, and records the result for the choice of replicas.
func try[A any](
	ctx context.Context, at *replica, does effect, hold time.Duration,
	attempt func(context.Context, *replica) (A, error),
) (A, *failure) {
	defer at.release()
	begun, bound := time.Now(), attemptBound
	marked, mark := markSent(ctx)
	if does == reads {
		deadline, _ := ctx.Deadline()
		// A caller in a hurry can still get an answer from another replica.
		bound = min(attemptBound, max(shortestAttempt, (time.Until(deadline)-hold)/2)) + hold
		bounded, cancel := context.WithTimeout(marked, bound)
		defer cancel()
		marked = bounded
	}
	answer, err := attempt(marked, at)
	if err == nil {
		at.succeeded()
		return answer, nil
	}
	why := failureOf(err, mark.Load())
	switch {
	case why.kind == refused:
		at.succeeded()
	case ctx.Err() != nil && time.Since(begun) < bound:
		// The caller has given up, and not because of the replica.
	default:
		at.failed(why)
	}
	return answer, why
}
