package rollcall

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

func TestAStreamLooksAfterAMomentAndThenLessOftenWhereverItIs(t *testing.T) {
	var u unease
	now, last := time.Now(), time.Duration(0)
	for turn := range 8 {
		u.set(true, now)
		u.set(true, now.Add(firstLook/2))
		pause := u.lookAt.Sub(now)
		if pause < last || (turn == 0 && pause != firstLook) || (turn == 7 && pause != lastLook) {
			t.Fatalf("%v after %v", pause, last)
		}
		now, last = u.lookAt, pause
		u.looked(now)
		if turn%2 == 0 {
			u.moved()
		}
	}
	u.set(false, now)
	if !u.lookAt.IsZero() {
		t.Fatal("there is no trouble")
	}
	u.set(true, now)
	if u.lookAt.Sub(now) != firstLook {
		t.Fatal("the next trouble begins anew")
	}
}

func TestClientsDoNotLookInTheSameMoment(t *testing.T) {
	now := time.Now()
	for spread, pause := range map[float64]time.Duration{0: firstLook, 0.25: firstLook * 5 / 4, 1: 2 * firstLook} {
		u := unease{spread: spread}
		u.set(false, now)
		u.set(true, now)
		if u.lookAt.Sub(now) != pause {
			t.Fatalf("%v: %v", spread, u.lookAt.Sub(now))
		}
		u.returned()
		u.set(true, now)
		if !u.lookAt.IsZero() {
			t.Fatal("it stays")
		}
	}
}

// answering is a replica that has ZooKeeper.
type answering struct{ v1.UnimplementedRegistryServer }

func (answering) Get(context.Context, *v1.GetRequest) (*v1.GetResponse, error) {
	return &v1.GetResponse{}, nil
}

func TestAReplicaThatIsAboutToStopIsNoBetter(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	v1.RegisterRegistryServer(server, answering{})
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	dial := func(name string) (*grpc.ClientConn, error) {
		return grpc.NewClient(name, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	r := newReplicas([]string{"127.0.0.1:1", listener.Addr().String()}, dial)
	defer r.close()
	r.mu.Lock()
	at, err := r.connect(chosen{index: 1})
	r.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	at.drains()
	at.release()
	if r.foundBetter(t.Context(), 0) {
		t.Fatal("it is about to stop")
	}
	r.stopsUntil[1], r.rounds[0] = time.Time{}, rounds{}
	if !r.foundBetter(t.Context(), 0) {
		t.Fatal("it has ZooKeeper")
	}
}

func TestARoundServesAllForAWhileAndLongerWhenItWasInVain(t *testing.T) {
	var r rounds
	now, last := time.Now(), time.Duration(0)
	if _, ok := r.last(now); ok {
		t.Fatal("there was none")
	}
	for range 8 {
		r.put(false, now)
		begun := now
		for _, ok := r.last(now); ok; _, ok = r.last(now) {
			now = now.Add(firstLook / 10)
		}
		if kept := now.Sub(begun); kept < last || kept > lastLook {
			t.Fatalf("%v after %v", kept, last)
		}
		last = now.Sub(begun)
	}
	r.put(true, now)
	if found, ok := r.last(now); !found || !ok {
		t.Fatal("it was found")
	}
	r.put(false, now.Add(firstLook))
	if _, ok := r.last(now.Add(2 * firstLook)); ok {
		t.Fatal("the next trouble begins anew")
	}
}

func TestAReplicaThatIsKnownToServeIsUsedNextThoughItHasFailed(t *testing.T) {
	c, now := seeded(3, 1), time.Now()
	first := mustChoose(t, c, now)
	other := (first.index + 1) % 3
	c.failed(chosen{index: other}, longestAsked, now)
	c.prefer(other)
	if use, _, ok := c.choose(now, first.index, anyPause); !ok || use.index != other {
		t.Fatal(use, ok)
	}
}

func TestWhatWaitsForZooKeeperIsKnownUntilItIsAnsweredOrSaidElsewhere(t *testing.T) {
	s := newScene(t)
	s.adds("/a", 1)
	s.says("set /a 1")
	pending := &v1.Pending{Path: "/a", Reason: string(BackendUnavailable)}
	waits := func() { s.take(&v1.RegisterResponse{Response: &v1.RegisterResponse_Pending{Pending: pending}}) }
	waits()
	if !s.isWithoutZooKeeper() {
		t.Fatal("it waits")
	}
	s.begin()
	if s.isWithoutZooKeeper() {
		t.Fatal("the next replica has not said so")
	}
	s.says("set /a 1")
	waits()
	s.isRegistered("/a", 7)
	if s.isWithoutZooKeeper() {
		t.Fatal("it is answered")
	}
}

func TestWhatNoMessageCanCarryIsRefusedAndWhatJustFitsIsNot(t *testing.T) {
	text := func(length int) *v1.Value {
		return &v1.Value{Kind: &v1.Value_Text{Text: strings.Repeat("x", length)}}
	}
	if err := checkSent("/a", text(largestMessage-envelope-16)); err != nil {
		t.Fatal(err)
	}
	for path, value := range map[string]*v1.Value{"/a": text(largestMessage), strings.Repeat("x", largestMessage): nil} {
		if err := checkSent(path, value); !errors.Is(err, ValueTooLarge) || len(err.Error()) > 300 {
			t.Fatal(err)
		}
	}
	if err := checkSent("/\xff", nil); !errors.Is(err, InvalidPath) {
		t.Fatal(err)
	}
}
