package rollcall

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// tryAgain is the time after which a replica that had no room is asked again.
const tryAgain = 2 * time.Second

// session holds all registrations of a client with the same ttl. They share one stream, over any number of replicas, so
// that 10,000 of them cost one call and one keep-alive. The session's goroutine runs while there is a registration.
type session struct {
	client *Client
	ttl    time.Duration
	// wake wakes the goroutine when there are new requests.
	wake chan struct{}

	mu        sync.Mutex
	state     *regState
	isRunning bool
	// isBroken reports that no stream is open.
	isBroken bool
	// trouble is why no replica is connected, for a message.
	trouble *failure
}

// sessionOf returns the session for a ttl.
func (c *Client) sessionOf(ttl time.Duration) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[ttl] == nil {
		c.sessions[ttl] = &session{client: c, ttl: ttl, wake: make(chan struct{}, 1), state: newRegState()}
	}
	return c.sessions[ttl]
}

func (s *session) add(of *Registration, value *v1.Value, exclusive bool, waiter chan<- error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isRunning && !s.client.spawn(s.run) {
		return closed("the client")
	}
	s.isRunning = true
	defer s.nudge()
	return s.state.add(of, value, exclusive, waiter)
}

func (s *session) update(of *Registration, value *v1.Value, waiter chan<- error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.nudge()
	return s.state.update(of, value, waiter)
}

func (s *session) remove(of *Registration, waiter chan<- error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.nudge()
	s.state.remove(of, waiter)
}

// leave takes down all registrations, and waits until they are gone.
func (s *session) leave(ctx context.Context) {
	s.mu.Lock()
	gone := make(chan error, len(s.state.entries))
	left := len(s.state.entries)
	for _, entry := range s.state.entries {
		s.state.remove(entry.of, gone)
	}
	s.mu.Unlock()
	s.nudge()
	for ; left > 0; left-- {
		select {
		case <-gone:
		case <-ctx.Done():
			return
		}
	}
}

// await waits for an answer.
func (s *session) await(ctx context.Context, answer <-chan error) error {
	bounded, cancel := s.client.bound(ctx, 0)
	defer cancel()
	select {
	case err := <-answer:
		return err
	case <-bounded.Done():
	}
	select {
	case err := <-answer:
		return err
	default:
	}
	s.mu.Lock()
	trouble := s.trouble
	s.mu.Unlock()
	if trouble == nil {
		trouble = &failure{err: &Error{Message: "the replica waits for zookeeper"}}
	}
	return s.client.ended(ctx, trouble)
}

func (s *session) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// with calls do with the state.
func (s *session) with(do func(*regState)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s.state)
}

// isOver reports whether there is nothing left to do; the goroutine then ends.
func (s *session) isOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isRunning = !s.state.isEmpty() && s.client.ctx.Err() == nil
	return !s.isRunning
}

// run keeps a stream going for as long as there is a registration.
func (s *session) run() {
	doubt := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.isBroken {
			s.state.doubt()
		}
	}
	// When a stream breaks, the registrations certainly stay for a while.
	doubting := time.AfterFunc(time.Hour, doubt)
	doubting.Stop()
	defer doubting.Stop()
	// sureUntil is the time until which they do; zero: they are in doubt already, or there are none.
	var sureUntil time.Time
	for !s.isOver() {
		stream := s.connect(s.client.ctx, none)
		if stream == nil {
			continue
		}
		doubting.Stop()
		s.with(func(state *regState) {
			s.isBroken = false
			state.begin()
		})
		h := holding{session: s, stream: stream, sureUntil: sureUntil, unease: s.client.replicas.newUnease()}
		sureUntil = time.Time{}
		if h.run(s.client.ctx) {
			sureUntil = h.sureUntil
			doubting.Reset(time.Until(sureUntil))
		}
		h.end()
	}
}

// connect opens a stream, at a replica other than but if there is one; nil: the attempt failed.
func (s *session) connect(ctx context.Context, but int) *regStream {
	longest := anyPause
	if s.ttl > 0 {
		longest = s.ttl / 6
	}
	at, err := s.client.replicas.pick(ctx, but, longest)
	if err != nil {
		return nil
	}
	stream, why := openRegister(ctx, s.client, at, s.ttl)
	if ctx.Err() != nil {
		if stream != nil {
			stream.end()
		}
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = why
	if why == nil {
		at.succeeded()
		return stream
	}
	at.failed(why)
	if why.kind == refused && why.err.Reason != ReadOnly && !why.err.Retryable() {
		s.state.refuse(why.err)
	}
	return nil
}

// holding keeps the registrations on a stream, and moves them to the next when the replica is about to stop.
type holding struct {
	*session
	stream *regStream
	// hasAll reports that the stream has answered everything once.
	hasAll bool
	// sureUntil is the time until which the earlier registrations certainly stay, for as long as not all of them were
	// taken over; zero: they are in doubt already.
	sureUntil time.Time
	// left is the previous stream, kept alive until everything has been taken over from it. leftHadAll reports whether
	// every registration is held on it.
	left       *regStream
	leftHadAll bool
	// leftIsOpen reports that its replica would go on: the stream was left for a replica that has ZooKeeper.
	leftIsOpen bool
	// opening yields the next stream, or nil. opening itself is nil while no stream is being opened.
	opening    chan *regStream
	endOpening context.CancelFunc
	// isLeaving reports that the present stream is about to end, so another one is needed.
	isLeaving bool
	// unease decides whether to look for another replica, because the present one has lost ZooKeeper.
	unease unease
}

// run keeps the registrations on streams. It ends when the stream breaks, which it reports, or when no registration is
// left.
func (h *holding) run(ctx context.Context) (broke bool) {
	again := time.NewTicker(tryAgain)
	defer again.Stop()
	doubting := time.NewTimer(time.Until(h.sureUntil))
	defer doubting.Stop()
	looking := time.NewTimer(time.Hour)
	defer looking.Stop()
	var request *v1.RegisterRequest
	for {
		h.mu.Lock()
		if request == nil {
			request = h.state.next()
		}
		isEmpty, isSettled := h.state.isEmpty(), request == nil && h.state.isSettled()
		isWithout, lacksRoom := h.state.isWithoutZooKeeper(), len(h.state.later) > 0
		h.mu.Unlock()
		if isEmpty {
			return false
		}
		if isSettled {
			h.hasAll = true
			// Registrations for which there was no room are still held on the previous stream.
			if !lacksRoom {
				h.letGo()
			}
		}
		if isSettled || isWithout {
			h.unease.set(isWithout, time.Now())
		}
		var look <-chan time.Time
		if h.opening == nil && !h.unease.lookAt.IsZero() {
			looking.Reset(time.Until(h.unease.lookAt))
			look = looking.C
		}
		var inDoubt <-chan time.Time
		if h.mayDoubt() {
			inDoubt = doubting.C
		}
		var room chan<- *v1.RegisterRequest
		if request != nil {
			room = h.stream.requests
		}
		select {
		case room <- request:
			request = nil
		case message, ok := <-h.stream.in.messages:
			if !ok && h.left != nil && h.leftIsOpen {
				// Registrations that have not been taken over yet are held on the previous stream, and would go with it.
				h.stream.at.failed(h.stream.in.ended)
				h.goBack()
				h.letGo()
				request = nil
				doubting.Reset(time.Until(h.sureUntil))
				continue
			}
			if !ok {
				h.broke(h.stream.in.ended)
				return true
			}
			if h.missesLeft(message) {
				h.goBack()
				request = nil
				doubting.Reset(time.Until(h.sureUntil))
			} else {
				h.take(ctx, message)
			}
		case stream := <-h.opening:
			if h.moved(ctx, stream) {
				request = nil
				doubting.Reset(time.Until(h.sureUntil))
			}
		case message, ok := <-h.left.messages():
			// The stream only has to be kept alive. Of its messages only the draining of its replica still counts.
			if !ok {
				h.letGo()
			} else if message.GetDraining() != nil {
				h.leftIsOpen = false
			} else if message.GetKeptAlive() != nil {
				h.left.pulse.answered()
			}
		case <-inDoubt:
			h.with((*regState).doubtTheRest)
			h.sureUntil = time.Time{}
		case <-look:
			h.unease.looked(time.Now())
			h.open(ctx)
		case <-h.wake:
		case <-again.C:
			h.with((*regState).tryAgain)
		case <-ctx.Done():
			return false
		}
	}
}

func (h *holding) take(ctx context.Context, message *v1.RegisterResponse) {
	switch {
	case message.GetDraining() != nil:
		h.stream.at.drains()
		h.isLeaving = true
		if h.opening == nil {
			h.open(ctx)
		}
	case message.GetKeptAlive() != nil:
		h.stream.pulse.answered()
	default:
		h.client.seen.noteRegistration(message)
		h.with(func(state *regState) { state.take(message) })
	}
}

// mayDoubt reports whether a registration is certain only by sureUntil: the present stream has not taken it over, and
// the previous stream does not keep it.
func (h *holding) mayDoubt() bool {
	isKept := h.left != nil && h.leftHadAll
	return !h.hasAll && !isKept && !h.sureUntil.IsZero()
}

// certainty is the time until which the registrations certainly stay without the present stream; zero: they do not.
func (h *holding) certainty() time.Time {
	switch {
	case !h.hasAll:
		// Anything that this replica has taken over says nothing about the rest.
		return h.sureUntil
	case h.ttl == 0:
		return time.Time{}
	}
	return h.stream.pulse.certain().Add(h.ttl)
}

// open begins to open the next stream. If the present stream may as well stay, it does so only if another replica has
// ZooKeeper.
func (h *holding) open(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	opening, but, isLeaving := make(chan *regStream, 1), h.stream.at.index, h.isLeaving
	spawned := h.client.spawn(func() {
		var stream *regStream
		if isLeaving || h.client.replicas.foundBetter(ctx, but) {
			stream = h.connect(ctx, but)
		}
		if stream == nil {
			cancel()
		} else {
			context.AfterFunc(stream.vigil.ctx, cancel)
		}
		opening <- stream
	})
	if spawned {
		h.opening, h.endOpening = opening, cancel
	} else {
		cancel()
	}
}

// moved takes in the result of opening a stream. It reports whether that stream has become the present one.
func (h *holding) moved(ctx context.Context, stream *regStream) bool {
	h.opening = nil
	if stream == nil {
		if h.isLeaving {
			h.open(ctx)
		}
		return false
	}
	h.leftIsOpen = !h.isLeaving
	h.isLeaving = false
	h.unease.moved()
	h.letGo()
	h.sureUntil = h.certainty()
	h.left, h.leftHadAll = h.stream, h.hasAll
	h.stream, h.hasAll = stream, false
	h.with((*regState).begin)
	return true
}

// missesLeft reports whether it is better to go back. The replica that has ZooKeeper has no room, so the request would
// end, or wait there for room, when it could as well wait for ZooKeeper on the previous stream.
func (h *holding) missesLeft(message *v1.RegisterResponse) bool {
	rejected := message.GetRejected()
	// A quota is set in ZooKeeper, and is the same at every replica.
	isFull := codes.Code(rejected.GetCode()) == codes.ResourceExhausted && Reason(rejected.GetReason()) != Quota
	return h.left != nil && h.leftIsOpen && isFull
}

// goBack makes the previous stream the present one again. The registrations that the other stream has taken over stay
// there until then.
func (h *holding) goBack() {
	h.endOpenings()
	h.stream, h.left = h.left, h.stream
	h.leftIsOpen, h.isLeaving, h.hasAll = false, false, false
	if h.leftHadAll && h.ttl > 0 {
		h.sureUntil = h.stream.pulse.certain().Add(h.ttl)
	}
	h.unease.returned()
	h.with((*regState).begin)
}

func (h *holding) broke(why *failure) {
	h.stream.at.failed(why)
	h.sureUntil = h.certainty()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.isBroken, h.trouble = true, why
	if h.sureUntil.IsZero() {
		h.state.doubt()
	}
}

// letGo ends the previous stream, if there is one.
func (h *holding) letGo() {
	if h.left != nil {
		h.left.end()
		h.left = nil
	}
}

// endOpenings gives up the stream that is being opened, if there is one.
func (h *holding) endOpenings() {
	if h.opening != nil {
		h.endOpening()
		if stream := <-h.opening; stream != nil {
			stream.end()
		}
		h.opening = nil
	}
}

// end ends all streams.
func (h *holding) end() {
	h.endOpenings()
	h.letGo()
	h.stream.end()
}

// errNotOpened means that the server speaks another protocol.
var errNotOpened = &Error{Reason: Protocol, Code: codes.Internal, Message: "the replica did not say opened first"}
