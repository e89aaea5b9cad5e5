package rollcall

import (
	"sync"
	"time"
)

// pulse is since when a replica has certainly heard from us. A replica counts the ttl from what it has heard, not from
// what it has said; so a keep-alive counts once it is answered, from when it was sent. It is safe for concurrent use.
type pulse struct {
	mu sync.Mutex
	// heard: the replica has heard from us after this moment.
	heard time.Time
	// askedAt is when the keep-alive was sent whose answer counts next, and awaited how many answers come up to that.
	askedAt time.Time
	awaited int
	// unanswered is how many keep-alives are.
	unanswered int
}

// newPulse begins with the opening of a stream, which was sent then.
func newPulse(sentAt time.Time) *pulse { return &pulse{heard: sentAt} }

// asks: a keep-alive is about to be sent.
func (p *pulse) asks(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unanswered++
	if p.awaited == 0 {
		p.askedAt, p.awaited = now, p.unanswered
	}
}

// answered: the oldest keep-alive is. Where none was sent it is the heartbeat of the replica, and tells nothing.
func (p *pulse) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unanswered == 0 {
		return
	}
	p.unanswered--
	if p.awaited == 0 {
		return
	}
	if p.awaited--; p.awaited == 0 {
		p.heard = p.askedAt
	}
}

// certain: the replica has heard from us after this moment.
func (p *pulse) certain() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heard
}
