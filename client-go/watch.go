package rollcall

import (
	"context"
	"errors"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

const (
	// watchHeartbeat is how long a watch may be quiet before the replica says something, watchSilence after what time
	// without a word the replica is given up.
	watchHeartbeat = 10 * time.Second
	watchSilence   = 25 * time.Second
)

// Watch gives a path and its children as they are, and again with every change. The path need not exist.
//
//	for update, err := range client.Watch(ctx, "/services/ssh") {
//		if err != nil { … }
//		fmt.Println(slices.Collect(maps.Keys(update.Children)))
//	}
//
// It begins with a state that is not older than what this client was told before: what it has just registered is there.
// It goes on until the loop is left or the context ends: when a replica stops or dies it goes on at another, from the
// last revision, so that nothing is missed or told twice. The state never goes back, and is never half a list. While
// ZooKeeper, or every replica, can't be reached, it is told to be Stale. A loop that is slow gets fewer updates with
// more in each.
//
// An error is the last that it gives: the context's own, or what can't be mended by going on, such as a path that is
// none or may not be read.
func (c *Client) Watch(ctx context.Context, path string, opts ...WatchOption) iter.Seq2[*Update, error] {
	var settings watchSettings
	for _, option := range opts {
		option.applyWatch(&settings)
	}
	return func(yield func(*Update, error) bool) {
		joined, cancel := c.join(ctx)
		defer cancel()
		w := watching{client: c, path: path, recursive: settings.recursive, yield: yield, but: none, silent: map[int]struct{}{}}
		w.unease = c.replicas.newUnease()
		if settings.after != nil {
			w.assembler = assembler{view: *settings.after, known: true}
		}
		for w.goOn(joined) {
		}
		switch {
		case w.left:
		case w.refused != nil:
			yield(nil, w.refused)
		case ctx.Err() != nil:
			yield(nil, ctx.Err())
		default:
			yield(nil, closed("the client"))
		}
	}
}

// watching is one watch, over any number of streams.
type watching struct {
	client    *Client
	path      string
	recursive bool
	assembler assembler
	yield     func(*Update, error) bool
	// but is the replica that the last stream was left for.
	but int
	// silent are the replicas that have opened no stream since one has said something last.
	silent map[int]struct{}
	// unease is whether to look for another replica, since the present one has lost ZooKeeper.
	unease unease
	// left: whoever watched does not any more. refused: a replica does not let it go on.
	left    bool
	refused error
}

// goOn follows one stream to its end, and tells whether there is to be another.
func (w *watching) goOn(ctx context.Context) bool {
	at, err := w.client.replicas.pick(ctx, w.but, anyPause)
	if err != nil {
		if errors.Is(err, Invalid) {
			w.refused = err
		}
		return false
	}
	defer at.release()
	w.but = none
	v := keepVigil(ctx)
	defer v.end()
	defer w.assembler.broken()
	stream, err := w.open(v, at)
	if err != nil {
		v.rest()
		w.silent[at.index] = struct{}{}
		// Another one may still serve.
		if ctx.Err() == nil && len(w.silent) == len(w.client.replicas.names) {
			w.tell(w.assembler.unreachable(time.Now()))
		}
	} else {
		err = w.follow(v, at, stream)
	}
	switch {
	case w.left || ctx.Err() != nil:
		return false
	case err == nil:
		return true
	}
	why := v.why(err)
	if why.kind == refused && !why.err.Retryable() {
		at.succeeded()
		w.refused = why.err
		return false
	}
	at.failed(why)
	return true
}

type watchStream interface {
	Recv() (*v1.WatchResponse, error)
}

func (w *watching) open(v *vigil, at *replica) (watchStream, error) {
	stream, err := at.stub.Watch(v.ctx, &v1.WatchRequest{
		Path:          w.path,
		Recursive:     w.recursive,
		SinceRevision: w.assembler.view.Revision,
		MinRevision:   w.client.seen.latest.Load(),
		Heartbeat:     durationpb.New(watchHeartbeat),
	})
	if err != nil {
		return nil, err
	}
	// A replica sends them at once; without them the stream does not stand.
	header, err := stream.Header()
	if err == nil && header == nil {
		_, err = stream.Recv()
	}
	return stream, err
}

// follow reads a stream until it fails, drains, is left, or another replica has ZooKeeper and this one has not; only the
// first is an error.
func (w *watching) follow(v *vigil, at *replica, stream watchStream) error {
	var looking *lookout
	defer func() { looking.stop() }()
	for {
		v.expect(watchSilence)
		message, err := stream.Recv()
		if err != nil {
			if looking.stop() {
				w.but, w.unease = at.index, looking.unease
				w.unease.moved()
				return nil
			}
			return err
		}
		v.rest()
		at.succeeded()
		clear(w.silent)
		w.client.seen.noteWatch(message)
		switch {
		case message.GetDraining() != nil:
			at.drains()
			w.but = at.index
			return nil
		case !message.GetStale():
			looking.stop()
			looking, w.unease = nil, w.client.replicas.newUnease()
		case looking == nil:
			looking = w.client.replicas.lookOut(v.ctx, at.index, w.unease, v.end)
		}
		if !w.tell(w.assembler.take(message, time.Now())) {
			return nil
		}
	}
}

// tell says whether somebody still wants to know.
func (w *watching) tell(update *Update) bool {
	if update != nil && !w.yield(update, nil) {
		w.left = true
	}
	return !w.left
}
