package rollcall

import (
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// The shortest and the longest pause before a replica that has failed is tried again. Each is jittered down to
	// half.
	shortestPause = 100 * time.Millisecond
	longestPause  = 5 * time.Second
	// The longest pause that a replica may ask for.
	longestAsked = 30 * time.Second
	// The longest pause of a caller that has no time-out of its own: each pause counts in full.
	anyPause = longestAsked * 2
)

// none is the index of no replica.
const none = -1

// choice is which of several replicas to use: sticky while it answers, another at once when it does not, with a growing
// pause before the same is tried again. Pure: the time and the chance are given.
type choice struct {
	replicas []health
	current  int
	chance   *rand.Rand
}

type health struct {
	// era rises with each failure, so that many streams that break at once count as one.
	era      uint64
	failures int
	// since is when it failed, and pause how long it is left alone then; no pause: it may be tried.
	since time.Time
	pause time.Duration
	// jitter, from a half to one, spreads clients that failed at the same moment.
	jitter float64
}

// freeAt is the time from which it may be tried again, where its pause is cut to longest.
func (h *health) freeAt(longest time.Duration) time.Time {
	return h.since.Add(min(h.pause, time.Duration(float64(longest)*h.jitter)))
}

// chosen is a replica that was chosen, at one moment.
type chosen struct {
	index int
	era   uint64
}

func newChoice(count int, chance *rand.Rand) *choice {
	// Clients that start together do not all begin with the first.
	return &choice{replicas: make([]health, count), current: chance.IntN(count), chance: chance}
}

// choose gives a replica, or, where ok is false, the time at which to choose again. It gives but only while no other may
// be tried. A pause counts for no more than longest: a caller whose lock or registration runs out cannot wait for
// longer.
func (c *choice) choose(now time.Time, but int, longest time.Duration) (use chosen, again time.Time, ok bool) {
	isFree := func(index int) bool { return !c.replicas[index].freeAt(longest).After(now) }
	if c.current == but || !isFree(c.current) {
		var free []int
		for index := range c.replicas {
			if isFree(index) {
				free = append(free, index)
			} else if at := c.replicas[index].freeAt(longest); again.IsZero() || at.Before(again) {
				again = at
			}
		}
		if len(free) > 1 {
			free = slices.DeleteFunc(free, func(index int) bool { return index == but })
		}
		if len(free) == 0 {
			return chosen{}, again, false
		}
		// Not simply the next: the clients of a replica that died spread over all others.
		c.current = free[c.chance.IntN(len(free))]
	}
	return chosen{c.current, c.replicas[c.current].era}, time.Time{}, true
}

// succeeded: it answers.
func (c *choice) succeeded(replica chosen) {
	if health := &c.replicas[replica.index]; health.era == replica.era {
		health.failures, health.pause = 0, 0
	}
}

// prefer: it is known to serve what the present one does not, so it is the next to be used.
func (c *choice) prefer(index int) {
	c.current = index
	c.replicas[index].failures, c.replicas[index].pause = 0, 0
}

// failed: it does not answer, or not now; asked is the pause that it has asked for. Says whether that was news.
func (c *choice) failed(replica chosen, asked time.Duration, now time.Time) bool {
	health := &c.replicas[replica.index]
	if health.era != replica.era {
		return false
	}
	grown := min(shortestPause<<min(health.failures, 16), longestPause)
	health.jitter = 0.5 + c.chance.Float64()/2
	jittered := time.Duration(float64(grown) * health.jitter)
	health.era++
	health.failures++
	health.since, health.pause = now, max(jittered, min(asked, longestAsked))
	return true
}
