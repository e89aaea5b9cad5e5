package rollcall

import (
	"sync"
	"time"
)

// pulse is the time since which a replica has certainly heard from this client. A replica counts the ttl from the last
// message that it has heard, not from the last that it has sent. So a keep-alive counts once it is answered, from when
// it was sent. A pulse is safe for concurrent use.
type pulse struct {
	mu sync.Mutex
	// The replica has heard from this client after the time heard.
	heard time.Time
	// askedAt is when the keep-alive was sent whose answer counts next. awaited is the number of answers up to and
	// including that one.
	askedAt time.Time
	awaited int
	// unanswered is the number of unanswered keep-alives.
	unanswered int
}

// newPulse begins with the opening of a stream, which was sent at sentAt.
func newPulse(sentAt time.Time) *pulse { return &pulse{heard: sentAt} }

// asks records that a keep-alive is about to be sent.
func (p *pulse) asks(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unanswered++
	if p.awaited == 0 {
		p.askedAt, p.awaited = now, p.unanswered
	}
}

// answered records that the oldest keep-alive is answered. If none was sent, the message is the replica's heartbeat and
// has no meaning here.
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

// certain is a time after which the replica has heard from this client.
func (p *pulse) certain() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heard
}
