package rollcall_test

import (
	"errors"
	"iter"
	"maps"
	"slices"
	"testing"

	rollcall "github.com/rollcall/rollcall/client-go"
)

// follow returns a function that returns a watch's updates one by one.
func follow(t *testing.T, updates iter.Seq2[*rollcall.Update, error]) func() *rollcall.Update {
	t.Helper()
	next, stop := iter.Pull2(updates)
	t.Cleanup(stop)
	return func() *rollcall.Update {
		t.Helper()
		update, err, ok := next()
		must(t, err)
		if !ok {
			t.Fatal("the watch ended")
		}
		return update
	}
}

func names(update *rollcall.Update) []string { return slices.Sorted(maps.Keys(update.Children)) }

// The program of the README: a new registration is in the first state of a watch, and in the answer to a Get.
func TestWhatWasRegisteredIsInTheNextAnswer(t *testing.T) {
	t.Run("embedded", func(t *testing.T) { whatWasRegisteredIsInTheNextAnswer(t, embedded(t)) })
	t.Run("zookeeper", func(t *testing.T) { whatWasRegisteredIsInTheNextAnswer(t, replica(t, "")) })
}

func whatWasRegisteredIsInTheNextAnswer(t *testing.T, server *server) {
	ctx := begin(t)
	client := connect(t, nil, server)
	for round := range 300 {
		registration, err := client.Register(ctx, "/own/one", map[string]any{"round": round})
		must(t, err)
		for update, err := range client.Watch(ctx, "/own") {
			must(t, err)
			if one, ok := update.Children["one"]; !ok || one.Value.(rollcall.Data)["round"] != float64(round) {
				t.Fatalf("round %d: the watch begins with %+v", round, update.Children)
			}
			break
		}
		must(t, registration.Update(ctx, map[string]any{"round": -round}))
		view, err := client.Get(ctx, "/own")
		must(t, err)
		if one, ok := view.Children["one"]; !ok || one.Value.(rollcall.Data)["round"] != float64(-round) {
			t.Fatalf("round %d: Get answers %+v", round, view.Children)
		}
		must(t, registration.Close(ctx))
		view, err = client.Get(ctx, "/own")
		must(t, err)
		if len(view.Children) != 0 {
			t.Fatalf("round %d: Get still answers %+v", round, view.Children)
		}
	}
}

func TestAWatchTellsWhatThereIsAndThenEveryChange(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	next := follow(t, client.Watch(ctx, "/services/ssh"))
	first := next()
	if first.Exists || len(first.Children) != 0 || first.Changes != nil {
		t.Fatalf("the state of an absent path comes first: %+v", first)
	}
	a, err := client.Register(ctx, "/services/ssh/a:22", map[string]any{"n": 1})
	must(t, err)
	var updates []*rollcall.Update
	for len(updates) == 0 || len(updates[len(updates)-1].Children) == 0 {
		updates = append(updates, next())
	}
	added := updates[len(updates)-1]
	must(t, a.Update(ctx, map[string]any{"n": 2}))
	updated := next()
	must(t, a.Close(ctx))
	removed := next()
	must(t, client.Delete(ctx, "/services", rollcall.Recursive()))
	deleted := next()
	kinds := func(update *rollcall.Update) rollcall.ChangeKind { return update.Changes[len(update.Changes)-1].Kind }
	if kinds(added) != rollcall.Added || kinds(updated) != rollcall.Updated || kinds(removed) != rollcall.Removed ||
		kinds(deleted) != rollcall.Deleted || deleted.Exists {
		t.Fatalf("%+v %+v %+v %+v", added, updated, removed, deleted)
	}
	// Earlier updates are left as they were.
	n := func(update *rollcall.Update) any { return update.Children["a:22"].Value.(rollcall.Data)["n"] }
	if n(added) != 1.0 || n(updated) != 2.0 || len(removed.Children) != 0 || len(first.Children) != 0 {
		t.Fatalf("%+v %+v %+v", added, updated, removed)
	}
	inOrder := [][2]*rollcall.Update{{first, added}, {added, updated}, {updated, removed}, {removed, deleted}}
	for _, pair := range inOrder {
		if pair[0].Revision >= pair[1].Revision {
			t.Fatalf("revisions rise: %d %d", pair[0].Revision, pair[1].Revision)
		}
	}
}

func TestAWatchGoesOnFromWhatIsKnown(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	_, err := client.Register(ctx, "/a/x", nil)
	must(t, err)
	view, err := client.Get(ctx, "/a", rollcall.Latest())
	must(t, err)
	_, err = client.Register(ctx, "/a/y", nil)
	must(t, err)
	update := follow(t, client.Watch(ctx, "/a", rollcall.After(view)))()
	if got := names(update); !slices.Equal(got, []string{"x", "y"}) || len(update.Changes) != 1 {
		t.Fatalf("%v %+v", got, update.Changes)
	}
	if len(view.Children) != 1 {
		t.Fatalf("%+v", view)
	}
}

func TestAWatchThatCanNotGoOnSaysWhy(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	count := 0
	for _, err := range client.Watch(ctx, "no path") {
		if count++; !errors.Is(err, rollcall.InvalidPath) || count > 1 {
			t.Fatalf("%d: %v", count, err)
		}
	}
	if count != 1 {
		t.Fatal("it said nothing")
	}
}

func TestAWatchEndsWithTheClient(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	var last error
	for _, err := range client.Watch(ctx, "/a") {
		if last = err; err == nil {
			go func() { _ = client.Close() }()
		}
	}
	if !errors.Is(last, rollcall.Closed) {
		t.Fatal(last)
	}
}

func TestEverythingBelowIsWatched(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	_, err := client.Put(ctx, "/deep/a/b", "1")
	must(t, err)
	next := follow(t, client.Watch(ctx, "/deep", rollcall.Recursive()))
	if got := names(next()); !slices.Equal(got, []string{"a", "a/b"}) {
		t.Fatalf("%v", got)
	}
	_, err = client.Put(ctx, "/deep/a/b", "2")
	must(t, err)
	if change := next().Changes[0]; change.Name != "a/b" || change.Child.Value != rollcall.Text("2") {
		t.Fatalf("%+v", change)
	}
}

func TestAWatchIsNotStaleWhileAnotherReplicaServes(t *testing.T) {
	ctx := begin(t)
	replica, nobody := embedded(t), &server{address: "127.0.0.1:1"}
	writer := connect(t, nil, replica)
	_, err := writer.Put(ctx, "/a", "1")
	must(t, err)
	known, err := writer.Get(ctx, "/a")
	must(t, err)
	_, err = writer.Put(ctx, "/a", "2")
	must(t, err)
	// Half of the clients begin with the replica that does not exist.
	for range 20 {
		client := connect(t, nil, replica, nobody)
		next, stop := iter.Pull2(client.Watch(ctx, "/a", rollcall.After(known)))
		update, err, _ := next()
		stop()
		must(t, err)
		if update.Stale {
			t.Fatalf("%+v", update)
		}
	}
}
