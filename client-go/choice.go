package rollcall

import (
	"math/rand/v2"
	"time"
)

const (
	// The shortest and the longest pause before a replica that has failed is tried again. Each is jittered down to
	// half.
	shortestPause = 100 * time.Millisecond
	longestPause  = 5 * time.Second
	// The longest pause that a replica may ask for.
	longestAsked = 30 * time.Second
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
	era        uint64
	failures   int
	avoidUntil time.Time
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

// choose gives a replica, or, where ok is false, the time at which to choose again. It gives but only when there is no
// other.
func (c *choice) choose(now time.Time, but int) (use chosen, again time.Time, ok bool) {
	isWanted := func(index int) bool { return index != but || len(c.replicas) == 1 }
	isFree := func(index int) bool { return !c.replicas[index].avoidUntil.After(now) }
	if !isWanted(c.current) || !isFree(c.current) {
		var candidates []int
		for index := range c.replicas {
			if !isWanted(index) {
				continue
			}
			if isFree(index) {
				candidates = append(candidates, index)
			} else if until := c.replicas[index].avoidUntil; again.IsZero() || until.Before(again) {
				again = until
			}
		}
		if len(candidates) == 0 {
			return chosen{}, again, false
		}
		// Not simply the next: the clients of a replica that died spread over all others.
		c.current = candidates[c.chance.IntN(len(candidates))]
	}
	return chosen{c.current, c.replicas[c.current].era}, time.Time{}, true
}

// succeeded: it answers.
func (c *choice) succeeded(replica chosen) {
	if health := &c.replicas[replica.index]; health.era == replica.era {
		health.failures, health.avoidUntil = 0, time.Time{}
	}
}

// failed: it does not answer, or not now; asked is the pause that it has asked for. Says whether that was news.
func (c *choice) failed(replica chosen, asked time.Duration, now time.Time) bool {
	health := &c.replicas[replica.index]
	if health.era != replica.era {
		return false
	}
	grown := min(shortestPause<<min(health.failures, 16), longestPause)
	jittered := time.Duration(float64(grown) * (0.5 + c.chance.Float64()/2))
	health.era++
	health.failures++
	health.avoidUntil = now.Add(max(jittered, min(asked, longestAsked)))
	return true
}
