package rollcall

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func seeded(count int, seed uint64) *choice { return newChoice(count, rand.New(rand.NewPCG(seed, 0))) }

func mustChoose(t *testing.T, c *choice, now time.Time) chosen {
	t.Helper()
	use, _, ok := c.choose(now, none, anyPause)
	if !ok {
		t.Fatal("all are avoided")
	}
	return use
}

func TestAReplicaThatAnswersIsKept(t *testing.T) {
	c, now := seeded(3, 1), time.Now()
	first := mustChoose(t, c, now)
	c.succeeded(first)
	for range 100 {
		if mustChoose(t, c, now) != first {
			t.Fatal("it was left without a reason")
		}
	}
}

func TestAnotherIsTriedAtOnceAndTheSameAfterAGrowingPause(t *testing.T) {
	c, now := seeded(2, 1), time.Now()
	first := mustChoose(t, c, now)
	if !c.failed(first, 0, now) || c.failed(first, 0, now) {
		t.Fatal("streams that break together count once")
	}
	second := mustChoose(t, c, now)
	if second.index == first.index {
		t.Fatal("the other is tried at once")
	}
	c.failed(second, 0, now)
	var longest time.Duration
	for range 40 {
		_, again, ok := c.choose(now, none, anyPause)
		pause := again.Sub(now)
		if ok || pause > longestPause {
			t.Fatalf("%v %v", ok, pause)
		}
		longest, now = max(longest, pause), again
		c.failed(mustChoose(t, c, now), 0, now)
	}
	if longest <= longestPause/2 {
		t.Fatalf("it has not grown: %v", longest)
	}
	_, again, _ := c.choose(now, none, anyPause)
	c.succeeded(mustChoose(t, c, again))
	c.failed(mustChoose(t, c, again), 0, again)
	if until := c.replicas[c.current].pause; until > shortestPause {
		t.Fatalf("an answer ends the growth: %v", until)
	}
}

func TestAPauseThatWasAskedForIsKeptWithinReason(t *testing.T) {
	for _, pause := range [][2]time.Duration{{7 * time.Second, 7 * time.Second}, {time.Hour, longestAsked}} {
		c, now := seeded(1, 1), time.Now()
		c.failed(mustChoose(t, c, now), pause[0], now)
		if _, again, ok := c.choose(now, none, anyPause); ok || again.Sub(now) != pause[1] {
			t.Fatalf("asked for %v, got %v", pause[0], again.Sub(now))
		}
	}
}

func TestOneThatDrainsIsLeftForAnyOtherAndKeptWithoutOne(t *testing.T) {
	now := time.Now()
	two := seeded(2, 1)
	first := mustChoose(t, two, now)
	if other, _, ok := two.choose(now, first.index, anyPause); !ok || other.index == first.index {
		t.Fatal("there is another")
	}
	if _, _, ok := seeded(1, 1).choose(now, 0, anyPause); !ok {
		t.Fatal("there is no other")
	}
}

// tried returns the replica that is chosen once the pauses are over, and the time of that.
func tried(c *choice, now time.Time, but int, longest time.Duration) (chosen, time.Time) {
	for {
		use, again, ok := c.choose(now, but, longest)
		if ok {
			return use, now
		}
		now = again
	}
}

func TestOneThatDrainsIsTriedAgainWhileTheOthersFail(t *testing.T) {
	for seed := range uint64(50) {
		c, now := seeded(3, seed), time.Now()
		end := now.Add(20 * time.Second)
		drained := mustChoose(t, c, now)
		c.failed(drained, drainPause, now)
		var tries [3]int
		for now.Before(end) {
			var use chosen
			use, now = tried(c, now, drained.index, anyPause)
			tries[use.index]++
			c.failed(use, 0, now)
		}
		if slices.Min(tries[:]) < 4 || slices.Max(tries[:]) > 15 {
			t.Fatalf("%v", tries)
		}
	}
}

func TestWhoCannotWaitForLongTriesEachInTime(t *testing.T) {
	c, now := seeded(2, 1), time.Now()
	for range 20 {
		var use chosen
		use, now = tried(c, now, none, anyPause)
		c.failed(use, 20*time.Second, now)
	}
	last := [2]time.Time{now, now}
	for range 40 {
		var use chosen
		use, now = tried(c, now, 0, time.Second)
		if pause := now.Sub(last[use.index]); pause > time.Second {
			t.Fatalf("it was left alone for %v", pause)
		}
		last[use.index] = now
		c.failed(use, 20*time.Second, now)
	}
}

func TestTheClientsOfOneThatDiedSpread(t *testing.T) {
	var seen [4]int
	for seed := range uint64(400) {
		c, now := seeded(4, seed), time.Now()
		c.current = 0
		c.failed(mustChoose(t, c, now), 0, now)
		seen[mustChoose(t, c, now).index]++
	}
	if seen[0] != 0 || min(seen[1], seen[2], seen[3]) <= 80 {
		t.Fatalf("%v", seen)
	}
}
