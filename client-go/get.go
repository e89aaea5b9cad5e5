package rollcall

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// View is a path, as a replica showed it. It is a separate value, which later changes do not alter.
type View struct {
	// Node is the node with all its children.
	Node
	// Revision is the revision of this state.
	Revision int64
	// Stale reports that the state may be out of date: ZooKeeper, or every replica, could not be reached.
	Stale bool
	// AsOf is when the state was last known to be current; set when Stale is.
	AsOf time.Time
}

// Get reads a node and its children with their data. A path that does not exist is an answer too: Exists is false. Long
// lists are read page by page, and show one revision.
//
// The answer comes from the replica's memory, which is at most a moment behind ZooKeeper while that can be reached. It
// is never older than the answers that this client got before, of any call and any replica: anything that it has just
// written or registered is there. Anything that it has just deleted, released or taken down is gone, on the replica
// that did it. A replica that does not get there within about 2 seconds answers with Stale. A replica of an earlier
// version, during an upgrade, knows only its own answers. Ask for [Latest] to see the acknowledged writes of others.
// When a replica does not answer, another is asked, for as long as the context allows. Without ZooKeeper a replica
// answers from memory, and the view is Stale; another replica is asked first, in case it has ZooKeeper.
//
// Errors have the reason [Unreachable], [InvalidPath], [NoAuth], [Rule], or [BackendUnavailable]: ZooKeeper is away and
// no replica remembers the path.
func (c *Client) Get(ctx context.Context, path string, opts ...GetOption) (*View, error) {
	var settings getSettings
	for _, option := range opts {
		option.applyGet(&settings)
	}
	request := &v1.GetRequest{Path: path, Recursive: settings.recursive}
	if settings.latest {
		request.Consistency = v1.Consistency_CONSISTENCY_LATEST
	}
	hold := settings.wait
	if deadline, ok := ctx.Deadline(); ok && hold > 0 {
		// The answer has to come before the caller's deadline.
		hold = min(hold, max(time.Until(deadline)*3/4, 0))
	}
	until := time.Now().Add(hold)
	look := func(ctx context.Context, at *replica) (found, error) {
		return c.gather(ctx, at, request, time.Until(until))
	}
	first, err := call(ctx, c, path, reads, hold, look)
	// If ZooKeeper itself went back, no replica knows more.
	if err != nil || !first.view.Stale || first.isReset || !c.replicas.foundBetter(ctx, first.at) {
		return first.view, err
	}
	// The time counts from the first question, also when another replica is asked once more.
	if current, err := call(ctx, c, path, reads, max(time.Until(until), 0), look); err == nil {
		return current.view, nil
	}
	return first.view, nil
}

// found is a view, and its origin.
type found struct {
	view *View
	// at is the index of the replica that answered.
	at int
	// isReset reports that ZooKeeper has lost transactions that were known before.
	isReset bool
}

// gather reads all pages from one replica, since they belong to one of its states.
func (c *Client) gather(ctx context.Context, at *replica, first *v1.GetRequest, hold time.Duration) (found, error) {
	request := &v1.GetRequest{Path: first.Path, Recursive: first.Recursive, Consistency: first.Consistency}
	known := c.seen.ask(request)
	if hold > 0 {
		request.Wait = durationpb.New(hold)
	}
	var view *View
	isReset := false
	for {
		answer, err := at.stub.Get(ctx, request)
		if err != nil {
			return found{}, err
		}
		isReset = isReset || answer.GetReset_()
		c.seen.noteAnswer(known, answer)
		if view == nil {
			view = &View{Node: nodeFromProto(answer.GetNode()), Revision: answer.GetRevision()}
		} else {
			for name, child := range answer.GetNode().GetChildren() {
				view.Children[name] = childFromProto(child)
			}
		}
		if answer.GetStale() {
			view.Stale, view.AsOf = true, answer.GetAsOf().AsTime()
		}
		if answer.GetNextPageToken() == "" {
			return found{view: view, at: at.index, isReset: isReset}, nil
		}
		request.PageToken, request.Wait = answer.GetNextPageToken(), nil
	}
}
