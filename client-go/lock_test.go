package rollcall_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	rollcall "github.com/rollcall/rollcall/client-go"
)

func TestALockIsHeldByOneAndGoesInTurn(t *testing.T) {
	ctx := begin(t)
	server := embedded(t)
	first, second := connect(t, []rollcall.Option{rollcall.WithName("first")}, server), connect(t, nil, server)
	for _, ttl := range []time.Duration{0, 30 * time.Second} {
		path := "/jobs/" + ttl.String()
		one, err := first.Lock(ctx, path, rollcall.TTL(ttl))
		must(t, err)
		_, err = second.Lock(ctx, path, rollcall.Wait(0))
		var busy *rollcall.Error
		if !errors.As(err, &busy) || busy.Reason != rollcall.LockBusy || !busy.Retryable() ||
			busy.Metadata["holders"] != "first" {
			t.Fatalf("%+v", err)
		}
		places := make(chan rollcall.Place, 8)
		granted := make(chan *rollcall.Lock, 1)
		go func() {
			tell := func(place rollcall.Place) { places <- place }
			two, err := second.Lock(ctx, path, rollcall.TTL(ttl), rollcall.Name("second"), rollcall.OnQueued(tell))
			if err != nil {
				t.Error(err)
			}
			granted <- two
		}()
		if place := <-places; place.Position != 1 || len(place.Holders) != 1 || place.Holders[0] != "first" {
			t.Fatalf("%+v", place)
		}
		description, err := first.DescribeLock(ctx, path)
		must(t, err)
		holder := description.Holders[0]
		if description.Simultaneous != 1 || holder.Name != "first" || holder.TTL != ttl ||
			holder.FencingToken != one.FencingToken() || description.Waiters[0].Name != "second" {
			t.Fatalf("%+v", description)
		}
		if one.Context().Err() != nil || one.State().Kind != rollcall.LockHeld {
			t.Fatalf("%+v", one.State())
		}
		must(t, one.Unlock(ctx))
		must(t, one.Unlock(ctx))
		cause := context.Cause(one.Context())
		if !errors.Is(cause, rollcall.Closed) || one.State().Kind != rollcall.LockUnlocked {
			t.Fatal(cause)
		}
		two := <-granted
		if two == nil || two.FencingToken() <= one.FencingToken() {
			t.Fatalf("the token rises with every grant: %v", two)
		}
		must(t, two.Unlock(ctx))
	}
}

func TestWhoGivesUpWaitingLeavesNothingBehind(t *testing.T) {
	ctx := begin(t)
	server := embedded(t)
	first, second := connect(t, nil, server), connect(t, nil, server)
	one, err := first.Lock(ctx, "/lock")
	must(t, err)
	for _, how := range []string{"wait", "deadline", "cancel"} {
		waiting, cancel := context.WithCancel(ctx)
		options := []rollcall.LockOption{rollcall.OnQueued(func(rollcall.Place) {
			if how == "cancel" {
				cancel()
			}
		})}
		want := error(rollcall.LockBusy)
		switch how {
		case "wait":
			options = append(options, rollcall.Wait(50*time.Millisecond))
		case "deadline":
			waiting, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
		case "cancel":
			want = context.Canceled
		}
		_, err := second.Lock(waiting, "/lock", options...)
		cancel()
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v", how, err)
		}
		eventually(t, ctx, "nobody waits", func() error {
			description, err := first.DescribeLock(ctx, "/lock")
			if err == nil && len(description.Waiters) > 0 {
				err = errors.New(description.Waiters[0].Name)
			}
			return err
		})
	}
	must(t, one.Unlock(ctx))
	two, err := second.Lock(ctx, "/lock", rollcall.Wait(0))
	must(t, err)
	must(t, two.Unlock(ctx))
}

func TestALockThatIsLeftIsGivenBackByItsID(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	lock, err := client.Lock(ctx, "/lock")
	must(t, err)
	id := lock.Leave()
	if lock.Context().Err() == nil {
		t.Fatal("nobody keeps it any more")
	}
	if _, err = client.Lock(ctx, "/lock", rollcall.Wait(0)); !errors.Is(err, rollcall.LockBusy) {
		t.Fatal(err)
	}
	must(t, client.ReleaseLock(ctx, id))
	if err := client.ReleaseLock(ctx, id); !errors.Is(err, rollcall.LockLost) {
		t.Fatal(err)
	}
	lock, err = client.Lock(ctx, "/lock", rollcall.Wait(0))
	must(t, err)
	must(t, lock.Unlock(ctx))
	_, err = client.Lock(ctx, "/lock", rollcall.Simultaneous(2))
	if !errors.Is(err, rollcall.LockLimitDiffers) {
		t.Fatal(err)
	}
	_, err = client.Put(ctx, "/other", "x")
	must(t, err)
	if _, err = client.Lock(ctx, "/other"); !errors.Is(err, rollcall.NotALock) {
		t.Fatal(err)
	}
}

func TestALockIsRenewedForAsLongAsItIsHeld(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	lock, err := client.Lock(ctx, "/lock", rollcall.TTL(time.Second))
	must(t, err)
	until := lock.State().Until
	eventually(t, ctx, "renewals move the end on, past the first ttl twice", func() error {
		state := lock.State()
		return wrongUnless(state.Kind == rollcall.LockHeld && state.Until.Sub(until) > 2*time.Second, "%+v", state)
	})
	must(t, lock.Context().Err())
	must(t, lock.Unlock(ctx))
}

func TestALockEndsByItsOwnClockWhenNobodyAnswers(t *testing.T) {
	for _, ttl := range []time.Duration{0, 2 * time.Second} {
		ctx := begin(t)
		server := embedded(t)
		client := connect(t, nil, server)
		lock, err := client.Lock(ctx, "/lock", rollcall.TTL(ttl))
		must(t, err)
		server.signal(t, syscall.SIGSTOP)
		select {
		case <-lock.Context().Done():
		case <-ctx.Done():
			t.Fatal("it is still held")
		}
		var lost *rollcall.LostError
		if !errors.As(context.Cause(lock.Context()), &lost) || lock.State().Kind != rollcall.LockIsLost {
			t.Fatalf("%+v", lock.State())
		}
		if err := lock.Unlock(ctx); !errors.As(err, &lost) {
			t.Fatal(err)
		}
		server.kill()
	}
}
