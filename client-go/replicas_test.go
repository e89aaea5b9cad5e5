package rollcall_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	rollcall "github.com/rollcall/rollcall/client-go"
)

const many = 100

// The session time-out is far longer than the test, so that the nodes of a killed replica do not go by themselves
// meanwhile.
var longSession = []string{"--session-timeout", "60s"}

// unseen follows a path until it is stopped, and fails the test if a name is ever missing.
func unseen(t *testing.T, ctx context.Context, client *rollcall.Client, path string, count int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var task sync.WaitGroup
	stop = func() { cancel(); task.Wait() }
	t.Cleanup(stop)
	first := make(chan struct{})
	task.Go(func() {
		isFirst := true
		var last int64
		for update, err := range client.Watch(ctx, path) {
			if err != nil {
				return
			}
			if len(update.Children) != count || update.Revision < last {
				t.Errorf("%d names, not %d; revision %d after %d", len(update.Children), count, update.Revision, last)
			}
			last = update.Revision
			if isFirst {
				isFirst = false
				close(first)
			}
		}
	})
	<-first
	return stop
}

// held registers many names, half of them with a ttl of their own.
func held(t *testing.T, ctx context.Context, client *rollcall.Client, path string) []*rollcall.Registration {
	t.Helper()
	var registrations []*rollcall.Registration
	for number := range many {
		ttl := rollcall.TTL(time.Duration(20+number%2) * time.Second)
		registration, err := client.Register(ctx, fmt.Sprintf("%s/%d", path, number), map[string]any{"n": number}, ttl)
		must(t, err)
		registrations = append(registrations, registration)
	}
	return registrations
}

// resumed waits until all are registered at the only remaining replica.
func resumed(t *testing.T, ctx context.Context, registrations []*rollcall.Registration, after map[string]int64) {
	t.Helper()
	for _, registration := range registrations {
		eventually(t, ctx, "it is resumed elsewhere", func() error {
			state := registration.State()
			isLater := state.Generation > after[registration.Path()]
			return wrongUnless(state.Kind == rollcall.Registered && isLater, "%+v", state)
		})
	}
}

func generations(registrations []*rollcall.Registration) map[string]int64 {
	all := make(map[string]int64)
	for _, registration := range registrations {
		all[registration.Path()] = registration.State().Generation
	}
	return all
}

func TestTheDeathOfAReplicaIsSeenByNobody(t *testing.T) {
	ctx := begin(t)
	home := replica(t, "", longSession...)
	other := &server{address: freeAddress(t)}
	// Only one replica exists when they begin, so that the test knows which one to kill.
	moving, watcher := connect(t, nil, home, other), connect(t, nil, home, other)
	registrations := held(t, ctx, moving, "/go/death")
	stop := unseen(t, ctx, watcher, "/go/death", many)
	lock, err := moving.Lock(ctx, "/go/death-lock")
	must(t, err)
	all := backends(t, 2)
	for _, one := range all {
		_, err := watcher.Register(ctx, "/go/death-web/"+one.address, nil)
		must(t, err)
	}
	conn := dial(t, "rollcall:///go/death-web", grpc.WithResolvers(rollcall.NewResolver(moving)))
	served(t, ctx, conn, all...)
	before := generations(registrations)

	other = replica(t, other.address, longSession...)
	home.kill()
	resumed(t, ctx, registrations, before)
	served(t, ctx, conn, all...)
	must(t, lock.Context().Err())
	rival := connect(t, nil, other)
	if _, err := rival.Lock(ctx, "/go/death-lock", rollcall.Wait(0)); !errors.Is(err, rollcall.LockBusy) {
		t.Fatal(err)
	}
	view, err := rival.Get(ctx, "/go/death", rollcall.Latest())
	must(t, err)
	if len(view.Children) != many {
		t.Fatalf("%d names", len(view.Children))
	}
	must(t, lock.Unlock(ctx))
	taken, err := rival.Lock(ctx, "/go/death-lock", rollcall.Wait(soon))
	must(t, err)
	if taken.FencingToken() <= lock.FencingToken() {
		t.Fatal("the token rises")
	}
	stop()
}

func TestADrainIsSeenByNobodyAndLosesNothing(t *testing.T) {
	ctx := begin(t)
	home := replica(t, "", longSession...)
	other := &server{address: freeAddress(t)}
	moving, watcher := connect(t, nil, home, other), connect(t, nil, home, other)
	registrations := held(t, ctx, moving, "/go/drain")
	stop := unseen(t, ctx, watcher, "/go/drain", many)
	lock, err := moving.Lock(ctx, "/go/drain-lock")
	must(t, err)
	queued, granted := make(chan struct{}, 8), make(chan *rollcall.Lock, 1)
	go func() {
		tell := rollcall.OnQueued(func(rollcall.Place) { queued <- struct{}{} })
		lock, err := watcher.Lock(ctx, "/go/drain-lock", tell)
		if err != nil {
			t.Error(err)
		}
		granted <- lock
	}()
	<-queued
	before := generations(registrations)
	replica(t, other.address, longSession...)
	home.drain(t)
	ended := make(chan error, 1)
	go func() { ended <- home.command.Wait() }()
	resumed(t, ctx, registrations, before)
	select {
	case err := <-ended:
		must(t, err)
	case <-ctx.Done():
		t.Fatal("it does not end")
	}
	must(t, lock.Context().Err())
	must(t, lock.Unlock(ctx))
	next := <-granted
	if next == nil || next.FencingToken() <= lock.FencingToken() {
		t.Fatal("it goes in turn")
	}
	must(t, next.Unlock(ctx))
	stop()
	for _, registration := range registrations {
		must(t, registration.Close(ctx))
	}
}

func TestAReplicaThatDrainedIsTriedAgainWhileTheOthersAreDown(t *testing.T) {
	ctx := begin(t)
	options := []string{"--session-timeout", "4s", "--drain", "1s"}
	home := replica(t, "", options...)
	moving := connect(t, nil, &server{address: freeAddress(t)}, home)
	ttl := rollcall.TTL(12 * time.Second)
	lock, err := moving.Lock(ctx, "/go/return-lock", ttl)
	must(t, err)
	registration, err := moving.Register(ctx, "/go/return/one", nil, ttl)
	must(t, err)
	queued, granted := make(chan struct{}, 8), make(chan *rollcall.Lock, 1)
	go func() {
		tell := rollcall.OnQueued(func(rollcall.Place) { queued <- struct{}{} })
		lock, err := moving.Lock(ctx, "/go/return-lock", ttl, tell)
		if err != nil {
			t.Error(err)
		}
		granted <- lock
	}()
	<-queued
	registrations := []*rollcall.Registration{registration}
	before := generations(registrations)
	home.drain(t)
	must(t, home.command.Wait())
	replica(t, home.address, options...)
	select {
	case <-queued:
	case <-granted:
		t.Fatal("it was not granted yet")
	case <-ctx.Done():
		t.Fatal("the place is not taken anew")
	}
	resumed(t, ctx, registrations, before)
	must(t, lock.Context().Err())
	must(t, lock.Unlock(ctx))
	next := <-granted
	if next == nil || next.FencingToken() <= lock.FencingToken() {
		t.Fatal("it goes in turn")
	}
	must(t, next.Unlock(ctx))
}

func TestAReplicaThatHangsIsLeftAndHarmsNothingWhenItWakesUp(t *testing.T) {
	ctx := begin(t)
	home := replica(t, "", longSession...)
	other := &server{address: freeAddress(t)}
	moving, watcher := connect(t, nil, home, other), connect(t, nil, home, other)
	registrations := held(t, ctx, moving, "/go/hang")
	stop := unseen(t, ctx, watcher, "/go/hang", many)
	lock, err := moving.Lock(ctx, "/go/hang-lock")
	must(t, err)
	before := generations(registrations)
	replica(t, other.address, longSession...)
	home.signal(t, syscall.SIGSTOP)
	resumed(t, ctx, registrations, before)
	view, err := moving.Get(ctx, "/go/hang", rollcall.Latest())
	must(t, err)
	if len(view.Children) != many {
		t.Fatalf("%d names", len(view.Children))
	}
	after := generations(registrations)
	home.signal(t, syscall.SIGCONT)
	// Once the replica serves a new stream, it has ended its old ones.
	awake := connect(t, nil, home)
	_, err = awake.Register(ctx, "/go/hang-other", nil)
	must(t, err)
	for _, registration := range registrations {
		state := registration.State()
		if state.Kind != rollcall.Registered || state.Generation != after[registration.Path()] {
			t.Fatalf("%+v", state)
		}
	}
	must(t, lock.Context().Err())
	must(t, lock.Unlock(ctx))
	stop()
}
