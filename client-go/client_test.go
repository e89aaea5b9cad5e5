package rollcall_test

import (
	"context"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rollcall "github.com/rollcall/rollcall/client-go"
)

func TestARegistrationIsSeenAndGoesWhenItIsClosed(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	registration, err := client.Register(ctx, "/services/ssh/server1:22", map[string]any{"foo": "bar", "port": 10733})
	must(t, err)
	if state := registration.State(); state.Kind != rollcall.Registered || state.Generation == 0 {
		t.Fatalf("%+v", state)
	}
	view, err := client.Get(ctx, "/services/ssh", rollcall.Latest())
	must(t, err)
	child := view.Children["server1:22"]
	var data struct {
		Foo, Created string
		Port, Pid    int
	}
	must(t, rollcall.Decode(child.Value, &data))
	if data.Foo != "bar" || data.Port != 10733 || data.Pid != os.Getpid() {
		t.Fatalf("%+v", data)
	}
	if _, err := time.Parse(time.DateTime, data.Created); err != nil {
		t.Fatal(err)
	}
	if child.Stat.Czxid != registration.State().Generation || child.Stat.EphemeralOwner == 0 {
		t.Fatalf("the generation is the czxid: %+v %+v", child.Stat, registration.State())
	}
	must(t, registration.Update(ctx, rollcall.Text("drained")))
	view, err = client.Get(ctx, "/services/ssh", rollcall.Latest())
	must(t, err)
	if view.Children["server1:22"].Value != rollcall.Text("drained") {
		t.Fatalf("%+v", view)
	}
	must(t, registration.Close(ctx))
	must(t, registration.Close(ctx))
	reaches(t, ctx, registration, rollcall.Unregistered)
	if _, ok := <-registration.States(); ok {
		t.Fatal("nothing comes after the last state")
	}
	if err := registration.Update(ctx, nil); !errors.Is(err, rollcall.Closed) {
		t.Fatal(err)
	}
	view, err = client.Get(ctx, "/services/ssh", rollcall.Latest())
	must(t, err)
	if !view.Exists || len(view.Children) != 0 {
		t.Fatalf("%+v", view)
	}
}

func TestTheEndOfTheClientTakesEverythingDown(t *testing.T) {
	ctx := begin(t)
	server := embedded(t)
	client, other := connect(t, nil, server), connect(t, nil, server)
	for _, ttl := range []time.Duration{0, 10 * time.Minute} {
		_, err := client.Register(ctx, "/a/"+ttl.String(), nil, rollcall.TTL(ttl))
		must(t, err)
	}
	lock, err := client.Lock(ctx, "/lock", rollcall.TTL(10*time.Minute))
	must(t, err)
	must(t, client.Close())
	view, err := other.Get(ctx, "/a", rollcall.Latest())
	must(t, err)
	if len(view.Children) != 0 || lock.Context().Err() == nil {
		t.Fatalf("%+v %+v", view, lock.State())
	}
	again, err := other.Lock(ctx, "/lock", rollcall.Wait(0))
	must(t, err)
	must(t, again.Unlock(ctx))
	_, err = client.Get(ctx, "/a")
	_, err2 := client.Register(ctx, "/a/b", nil)
	_, err3 := client.Lock(ctx, "/lock")
	for _, err := range []error{err, err2, err3} {
		if !errors.Is(err, rollcall.Closed) {
			t.Fatal(err)
		}
	}
}

func TestALaterRegistrationTakesAPathOverAndAnExclusiveOneDoesNot(t *testing.T) {
	ctx := begin(t)
	server := embedded(t)
	client, other := connect(t, nil, server), connect(t, nil, server)
	first, err := client.Register(ctx, "/a", nil)
	must(t, err)
	for _, client := range []*rollcall.Client{client, other} {
		_, err = client.Register(ctx, "/a", nil, rollcall.Exclusive())
		if !errors.Is(err, rollcall.NameTaken) || status.Code(err) != codes.AlreadyExists || rollcall.Retryable(err) {
			t.Fatal(err)
		}
	}
	second, err := other.Register(ctx, "/a", nil)
	must(t, err)
	lost := reaches(t, ctx, first, rollcall.Lost)
	var why *rollcall.LostError
	if !errors.As(lost.Err, &why) || why.Reason != rollcall.LostTakenOver {
		t.Fatalf("%+v", lost)
	}
	if err := first.Update(ctx, nil); !errors.As(err, &why) {
		t.Fatal(err)
	}
	must(t, first.Close(ctx))
	if state := second.State(); state.Kind != rollcall.Registered {
		t.Fatalf("%+v", state)
	}
}

func TestWhatOthersWriteIntoARegistrationIsToldAndStaysUntilTheNextUpdate(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	_, err := client.Put(ctx, "/durable", nil)
	must(t, err)
	_, err = client.Register(ctx, "/durable", nil)
	if !errors.Is(err, rollcall.NotEphemeral) {
		t.Fatal(err)
	}
	_, err = client.Register(ctx, "no path", nil)
	if !errors.Is(err, rollcall.InvalidPath) {
		t.Fatal(err)
	}
	for _, bad := range []any{[]int{1}, 7, map[string]any{"id": int64(9007199254740993)}, func() {}, "\xff"} {
		if _, err = client.Register(ctx, "/a", bad); !errors.Is(err, rollcall.Invalid) {
			t.Fatalf("%v: %v", bad, err)
		}
	}
	if _, err = client.Register(ctx, "/a", nil, rollcall.TTL(time.Millisecond)); !errors.Is(err, rollcall.Invalid) {
		t.Fatal(err)
	}
}

func TestDurableNodesAreWrittenAndDeletedUnderConditions(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	stat, err := client.Put(ctx, "/config/limits", "10", rollcall.CreateOnly())
	must(t, err)
	_, err = client.Put(ctx, "/config/limits", "11", rollcall.CreateOnly())
	if !errors.Is(err, rollcall.NodeExists) {
		t.Fatal(err)
	}
	stat, err = client.Put(ctx, "/config/limits", []byte{0xff}, rollcall.IfVersion(stat.Version))
	must(t, err)
	_, err = client.Put(ctx, "/config/limits", "12", rollcall.IfVersion(stat.Version+1))
	var refusal *rollcall.Error
	if !errors.As(err, &refusal) || refusal.Reason != rollcall.VersionMismatch ||
		refusal.Metadata["path"] != "/config/limits" {
		t.Fatalf("%+v", err)
	}
	view, err := client.Get(ctx, "/config/limits", rollcall.Latest())
	must(t, err)
	if !reflect.DeepEqual(view.Value, rollcall.Raw{0xff}) || view.Stat.Version != 1 {
		t.Fatalf("%+v", view)
	}
	view, err = client.Get(ctx, "/", rollcall.Recursive(), rollcall.Latest())
	must(t, err)
	if _, ok := view.Children["config/limits"]; !ok {
		t.Fatalf("%+v", view)
	}
	if err := client.Delete(ctx, "/config"); !errors.Is(err, rollcall.NotEmpty) {
		t.Fatal(err)
	}
	must(t, client.Delete(ctx, "/config", rollcall.Recursive()))
	if err := client.Delete(ctx, "/config", rollcall.IfVersion(1)); !errors.Is(err, rollcall.NoNode) {
		t.Fatal(err)
	}
	view, err = client.Get(ctx, "/config")
	must(t, err)
	if view.Exists {
		t.Fatalf("%+v", view)
	}
}

func TestALongListIsGatheredFromItsPages(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	text := strings.Repeat("x", 100_000)
	for _, name := range strings.Split("abcdefghijklmnopqrstuvwxyz", "") {
		_, err := client.Put(ctx, "/long/"+name, text)
		must(t, err)
	}
	view, err := client.Get(ctx, "/long", rollcall.Latest())
	must(t, err)
	if len(view.Children) != 26 || view.Children["z"].Value != rollcall.Text(text) {
		t.Fatalf("%d children", len(view.Children))
	}
	for update, err := range client.Watch(ctx, "/long") {
		must(t, err)
		if len(update.Children) != 26 || update.Revision != view.Revision {
			t.Fatalf("a list that is not whole: %d children", len(update.Children))
		}
		break
	}
}

func TestALookupWaitsForAChild(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	view, err := client.Get(ctx, "/late", rollcall.Wait(time.Millisecond))
	must(t, err)
	if view.Exists {
		t.Fatalf("%+v", view)
	}
	found := make(chan *rollcall.View, 1)
	go func() {
		view, _ := client.Get(ctx, "/late", rollcall.Wait(soon))
		found <- view
	}()
	_, err = client.Register(ctx, "/late/child", nil)
	must(t, err)
	if view := <-found; view == nil || len(view.Children) != 1 {
		t.Fatalf("%+v", view)
	}
}

func TestNothingRunsOnForWhatIsOver(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	_, err := client.Get(ctx, "/")
	must(t, err)
	// The connection is open. Everything that starts from here on has to go while it stays open.
	before := goleak.IgnoreCurrent()
	for _, ttl := range []rollcall.TTLOption{rollcall.TTL(0), rollcall.TTL(time.Minute)} {
		registration, err := client.Register(ctx, "/a/b", nil, ttl)
		must(t, err)
		for _, err := range client.Watch(ctx, "/a") {
			must(t, err)
			break
		}
		lock, err := client.Lock(ctx, "/lock", ttl)
		must(t, err)
		if _, err := client.Lock(ctx, "/lock", rollcall.Wait(0)); !errors.Is(err, rollcall.LockBusy) {
			t.Fatal(err)
		}
		must(t, lock.Unlock(ctx))
		left, err := client.Lock(ctx, "/lock", ttl)
		must(t, err)
		_ = client.ReleaseLock(ctx, left.Leave())
		must(t, registration.Close(ctx))
	}
	eventually(t, ctx, "no goroutine is left", func() error { return goleak.Find(before) })
}

func TestWithoutAReplicaCallsEndInTimeAndSayWhy(t *testing.T) {
	ctx := begin(t)
	address := freeAddress(t)
	client, err := rollcall.New(address, rollcall.WithTimeout(200*time.Millisecond))
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	// Without a deadline of their own, the calls have the client's.
	unbounded := context.WithoutCancel(ctx)
	_, err = client.Get(unbounded, "/a")
	_, err2 := client.Put(unbounded, "/a", nil)
	_, err3 := client.Register(unbounded, "/a", nil)
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err4 := client.Get(short, "/a")
	_, err5 := client.Lock(unbounded, "/a")
	for _, err := range []error{err, err2, err3, err4, err5} {
		if !errors.Is(err, rollcall.Unreachable) || !rollcall.Retryable(err) ||
			!strings.Contains(err.Error(), address) {
			t.Fatal(err)
		}
	}
	if !errors.Is(err4, context.DeadlineExceeded) {
		t.Fatal(err4)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := client.Get(canceled, "/a"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	registration, err := client.Register(ctx, "/a", nil, rollcall.InBackground())
	must(t, err)
	for _, err := range client.Watch(short, "/a") {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	serve(t, "--embedded", "--listen", address)
	reaches(t, ctx, registration, rollcall.Registered)
}
