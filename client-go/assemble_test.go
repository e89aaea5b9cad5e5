package rollcall

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

func snapshot(names string, more bool) *v1.Snapshot {
	children := make(map[string]*v1.Child)
	for name := range strings.SplitSeq(names, "") {
		children[name] = &v1.Child{}
	}
	return &v1.Snapshot{Node: &v1.Node{Path: "/a", Exists: true, Children: children}, More: more}
}

func ofSnapshot(revision int64, snapshot *v1.Snapshot) *v1.WatchResponse {
	return &v1.WatchResponse{Revision: revision, Event: &v1.WatchResponse_Snapshot{Snapshot: snapshot}}
}

func ofAdded(revision int64, name string, more bool) *v1.WatchResponse {
	change := &v1.Change{Kind: v1.ChangeKind_CHANGE_KIND_ADDED, Name: name}
	delta := &v1.Delta{Changes: []*v1.Change{change}, More: more}
	return &v1.WatchResponse{Revision: revision, Event: &v1.WatchResponse_Delta{Delta: delta}}
}

func ofCurrent(revision int64) *v1.WatchResponse {
	return &v1.WatchResponse{Revision: revision, Event: &v1.WatchResponse_Current{Current: &v1.Current{}}}
}

// takes feeds messages. If names are given, the last message yields an update with these names. No other message yields
// one.
func takes(t *testing.T, a *assembler, names string, messages ...*v1.WatchResponse) *Update {
	t.Helper()
	for index, message := range messages {
		update := a.take(message, time.Unix(1, 0))
		if isLast := index == len(messages)-1; !isLast || names == "" {
			if update != nil {
				t.Fatalf("too early: %+v", update)
			}
			continue
		}
		if update == nil {
			t.Fatal("nothing was told")
		}
		if got := strings.Join(slices.Sorted(maps.Keys(update.Children)), ""); got != names {
			t.Fatalf("%q instead of %q", got, names)
		}
		return update
	}
	return nil
}

func TestPartsArePutTogether(t *testing.T) {
	a := new(assembler)
	takes(t, a, "xy", ofSnapshot(0, snapshot("x", true)), ofSnapshot(7, snapshot("y", false)))
	update := takes(t, a, "pqxy", ofAdded(0, "p", true), ofAdded(8, "q", false))
	if len(update.Changes) != 2 || update.Revision != 8 {
		t.Fatalf("%+v", update)
	}
}

func TestWhatWasBegunOnAStreamThatBrokeIsForgotten(t *testing.T) {
	a := new(assembler)
	takes(t, a, "", ofSnapshot(0, snapshot("x", true)))
	a.broken()
	takes(t, a, "y", ofSnapshot(9, snapshot("y", false)))
	takes(t, a, "", ofAdded(0, "p", true))
	a.broken()
	if update := takes(t, a, "qy", ofAdded(10, "q", false)); len(update.Changes) != 1 {
		t.Fatalf("%+v", update)
	}
}

func TestNothingGoesBackButByAReset(t *testing.T) {
	a := new(assembler)
	takes(t, a, "x", ofSnapshot(10, snapshot("x", false)))
	takes(t, a, "", ofAdded(10, "y", false), ofSnapshot(9, snapshot("z", false)), ofCurrent(9))
	reset := snapshot("r", false)
	reset.Reset_ = true
	if update := takes(t, a, "r", ofSnapshot(3, reset)); !update.Reset || update.Revision != 3 {
		t.Fatalf("%+v", update)
	}
	takes(t, a, "", ofCurrent(4))
	if a.view.Revision != 4 {
		t.Fatalf("the last revision is where the next stream goes on: %d", a.view.Revision)
	}
}

func TestStalenessIsToldOnceEachWay(t *testing.T) {
	a, now := new(assembler), time.Unix(5, 0)
	if a.unreachable(now) != nil {
		t.Fatal("there is nothing to be stale")
	}
	stale := ofSnapshot(7, snapshot("x", false))
	stale.Stale = true
	if update := takes(t, a, "x", stale); !update.Stale || update.AsOf.IsZero() {
		t.Fatalf("%+v", update)
	}
	if a.unreachable(now) != nil {
		t.Fatal("that is no news")
	}
	if update := takes(t, a, "xy", ofAdded(8, "y", false)); update.Stale || !update.AsOf.IsZero() {
		t.Fatalf("%+v", update)
	}
	update := a.unreachable(now)
	if update == nil || !update.Stale || !update.AsOf.Equal(now) || update.Changes != nil {
		t.Fatalf("%+v", update)
	}
	takes(t, a, "xy", ofCurrent(8))
}

func TestWhatWasToldIsLeftAlone(t *testing.T) {
	a := new(assembler)
	first := takes(t, a, "x", ofSnapshot(1, snapshot("x", false)))
	takes(t, a, "xy", ofAdded(2, "y", false))
	if len(first.Children) != 1 {
		t.Fatalf("%+v", first)
	}
}
