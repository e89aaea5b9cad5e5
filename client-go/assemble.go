package rollcall

import (
	"maps"
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// Update is an update of a watch: the present state, and how it has come about.
type Update struct {
	// View is the whole state. It is a separate value, which later updates do not alter.
	View
	// Changes are the changes since the update before, in order. It is empty when the state came as a whole, which happens
	// first and when no replica knows the changes any more; and when only Stale has changed.
	Changes []Change
	// Reset reports that ZooKeeper itself went back in time, as after a restored backup.
	Reset bool
}

// assembler turns the messages of one watch, over any number of streams, into updates. It joins parts, and the state
// never goes back. Pure.
type assembler struct {
	// view is the last whole state; the next stream goes on from its revision.
	view  View
	known bool
	// The beginning of a state, or of changes, while more parts are to come.
	node    *Node
	reset   bool
	changes []Change
}

// take reads a message. It returns nil when there is no update; now is the time.
func (a *assembler) take(message *v1.WatchResponse, now time.Time) *Update {
	var update *Update
	var asOf time.Time
	switch event := message.GetEvent().(type) {
	case *v1.WatchResponse_Snapshot:
		update = a.snapshot(event.Snapshot, message.GetRevision())
	case *v1.WatchResponse_Delta:
		update = a.delta(event.Delta, message.GetRevision())
	case *v1.WatchResponse_Current:
		a.view.Revision = max(a.view.Revision, message.GetRevision())
	case *v1.WatchResponse_Backend:
		if event.Backend.GetAsOf() != nil {
			asOf = event.Backend.GetAsOf().AsTime()
		}
	}
	if a.node == nil && a.changes == nil && a.turn(message.GetStale(), asOf, now) && update == nil {
		update = &Update{}
	}
	return a.tell(update)
}

// broken records that the stream ended. An update that was begun is sent again as a whole.
func (a *assembler) broken() { a.node, a.reset, a.changes = nil, false, nil }

// unreachable records that no replica can be reached. It returns an update, if that is news.
func (a *assembler) unreachable(now time.Time) *Update {
	if !a.turn(true, time.Time{}, now) {
		return nil
	}
	return a.tell(&Update{})
}

// turn sets whether the state is stale, and reports whether that is news.
func (a *assembler) turn(stale bool, asOf, now time.Time) bool {
	if stale == a.view.Stale {
		return false
	}
	a.view.Stale, a.view.AsOf = stale, time.Time{}
	if stale {
		a.view.AsOf = asOf
		if asOf.IsZero() {
			a.view.AsOf = now
		}
	}
	return true
}

func (a *assembler) tell(update *Update) *Update {
	if update == nil || !a.known {
		return nil
	}
	update.View = a.view
	return update
}

func (a *assembler) snapshot(part *v1.Snapshot, revision int64) *Update {
	node := nodeFromProto(part.GetNode())
	if a.node != nil {
		maps.Copy(a.node.Children, node.Children)
	} else {
		a.node = &node
	}
	a.reset = a.reset || part.GetReset_()
	if part.GetMore() {
		return nil
	}
	whole, reset := *a.node, a.reset
	a.broken()
	if a.known && revision < a.view.Revision && !reset {
		return nil
	}
	a.view.Node, a.view.Revision, a.known = whole, revision, true
	return &Update{Reset: reset}
}

func (a *assembler) delta(part *v1.Delta, revision int64) *Update {
	a.changes = append(a.changes, changesFromProto(part.GetChanges())...)
	if part.GetMore() {
		if a.changes == nil {
			a.changes = []Change{}
		}
		return nil
	}
	changes := a.changes
	a.broken()
	if revision <= a.view.Revision {
		return nil
	}
	// A reader that holds the state before keeps it as it is.
	a.view.Children = maps.Clone(a.view.Children)
	if a.view.Children == nil {
		a.view.Children = make(map[string]Child)
	}
	for _, change := range changes {
		a.view.apply(change)
	}
	a.view.Revision = revision
	return &Update{Changes: changes}
}
