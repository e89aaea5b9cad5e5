package rollcall

import (
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// Shortest and longest pause before a failed replica is tried again. Jitter shortens a pause to as little as half.
	shortestPause = 100 * time.Millisecond
	longestPause  = 5 * time.Second
	// Longest pause that a replica may ask for.
	longestAsked = 30 * time.Second
	// Longest pause for a caller without a time-out of its own: each pause counts in full.
	anyPause = longestAsked * 2
)

// none is the index that stands for no replica.
const none = -1

// choice is the choice among several replicas. It stays with one replica while that answers and moves to another at
// once when it does not; the pause before the same replica is tried again grows. Pure: the time and the chance are
// given.
type choice struct {
	replicas []health
	current  int
	chance   *rand.Rand
}

type health struct {
	// era rises with each failure, so that many streams that break at once count as one failure.
	era      uint64
	failures int
	// since is the time of the failure, and pause the time for which the replica is left alone after it; 0: it may be
	// tried.
	since time.Time
	pause time.Duration
	// jitter, from a half to one, spreads clients that failed at the same moment.
	jitter float64
}

// freeAt is the time from which the replica may be tried again, with its pause cut to longest.
func (h *health) freeAt(longest time.Duration) time.Time {
	return h.since.Add(min(h.pause, time.Duration(float64(longest)*h.jitter)))
}

// chosen is a replica that was chosen, and its era at that moment.
type chosen struct {
	index int
	era   uint64
}

func newChoice(count int, chance *rand.Rand) *choice {
	// Clients that start together do not all begin with the first replica.
	return &choice{replicas: make([]health, count), current: chance.IntN(count), chance: chance}
}

// choose returns a replica or, if ok is false, the time at which to choose again. It returns but only while no other
// may be tried. A pause counts for no more than longest: a caller whose lock or registration runs out cannot wait
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
		// Not simply the next replica: the clients of a replica that died spread over all others.
		c.current = free[c.chance.IntN(len(free))]
	}
	return chosen{c.current, c.replicas[c.current].era}, time.Time{}, true
}

// succeeded records that the replica answers.
func (c *choice) succeeded(replica chosen) {
	if health := &c.replicas[replica.index]; health.era == replica.era {
		health.failures, health.pause = 0, 0
	}
}

// prefer records that the replica serves where the present one does not, so it is used next.
func (c *choice) prefer(index int) {
	c.current = index
	c.replicas[index].failures, c.replicas[index].pause = 0, 0
}

// failed records that the replica does not answer, or can't serve now. asked is the pause that the replica has asked
// for. It reports whether that was news.
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
