package rollcall

import (
	"math/rand/v2"
	"testing"
	"time"
)

func seeded(count int, seed uint64) *choice { return newChoice(count, rand.New(rand.NewPCG(seed, 0))) }

func mustChoose(t *testing.T, c *choice, now time.Time) chosen {
	t.Helper()
	use, _, ok := c.choose(now, none)
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
		_, again, ok := c.choose(now, none)
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
	_, again, _ := c.choose(now, none)
	c.succeeded(mustChoose(t, c, again))
	c.failed(mustChoose(t, c, again), 0, again)
	if until := c.replicas[c.current].avoidUntil.Sub(again); until > shortestPause {
		t.Fatalf("an answer ends the growth: %v", until)
	}
}

func TestAPauseThatWasAskedForIsKeptWithinReason(t *testing.T) {
	for _, pause := range [][2]time.Duration{{7 * time.Second, 7 * time.Second}, {time.Hour, longestAsked}} {
		c, now := seeded(1, 1), time.Now()
		c.failed(mustChoose(t, c, now), pause[0], now)
		if _, again, ok := c.choose(now, none); ok || again.Sub(now) != pause[1] {
			t.Fatalf("asked for %v, got %v", pause[0], again.Sub(now))
		}
	}
}

func TestOneThatDrainsIsLeftForAnyOtherAndKeptWithoutOne(t *testing.T) {
	now := time.Now()
	two := seeded(2, 1)
	first := mustChoose(t, two, now)
	if other, _, ok := two.choose(now, first.index); !ok || other.index == first.index {
		t.Fatal("there is another")
	}
	if _, _, ok := seeded(1, 1).choose(now, 0); !ok {
		t.Fatal("there is no other")
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
