package rollcall

import (
	"testing"
	"time"
)

func TestAKeepAliveCountsOnceItIsAnsweredFromWhenItWasSent(t *testing.T) {
	begun := time.Now()
	after := func(seconds int) time.Time { return begun.Add(time.Duration(seconds) * time.Second) }
	p := newPulse(begun)
	expect := func(seconds int) {
		t.Helper()
		if got := p.certain(); !got.Equal(after(seconds)) {
			t.Fatalf("it is certain since %v, not %d s", got.Sub(begun), seconds)
		}
	}
	p.answered()
	expect(0) // A heartbeat.
	p.asks(after(1))
	expect(0)
	p.answered()
	expect(1)
	p.answered()
	expect(1)
	// A late answer does not count for a keep-alive that was sent meanwhile.
	p.asks(after(2))
	p.asks(after(3))
	p.answered()
	expect(2)
	p.asks(after(4))
	p.answered()
	expect(2)
	p.answered()
	expect(4)
	p.asks(after(5))
	p.asks(after(6))
	p.answered()
	p.answered()
	expect(5)
	p.asks(after(7))
	p.answered()
	expect(7)
}

func TestWithoutItsStreamARegistrationIsCertainFromWhenAReplicaThatHadItAllHasHeardFromUs(t *testing.T) {
	heard, before := time.Now(), time.Now().Add(-time.Hour)
	for _, c := range []struct {
		hasAll       bool
		ttl          time.Duration
		before, want time.Time
	}{
		{true, time.Minute, before, heard.Add(time.Minute)},
		{false, time.Minute, before, before},
		{false, time.Minute, time.Time{}, time.Time{}},
		{true, 0, time.Time{}, time.Time{}},
	} {
		stream := &regStream{pulse: newPulse(heard)}
		h := holding{session: &session{ttl: c.ttl}, stream: stream, hasAll: c.hasAll, sureUntil: c.before}
		if got := h.certainty(); !got.Equal(c.want) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestWhatAStreamThatWasLeftKeepsIsNotInDoubt(t *testing.T) {
	left, now := &regStream{}, time.Now()
	for _, c := range []struct {
		h    holding
		want bool
	}{
		{holding{sureUntil: now}, true},
		{holding{}, false},
		{holding{sureUntil: now, hasAll: true}, false},
		{holding{sureUntil: now, left: left, leftHadAll: true}, false},
		// The previous stream has never taken everything over itself.
		{holding{sureUntil: now, left: left}, true},
	} {
		if got := c.h.mayDoubt(); got != c.want {
			t.Errorf("%+v: %v", c.h, got)
		}
	}
}
