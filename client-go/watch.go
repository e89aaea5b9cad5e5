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
	// watchHeartbeat is the interval of heartbeats that the client asks for on a quiet watch. watchSilence is the time
	// without a word after which the replica is given up.
	watchHeartbeat = 10 * time.Second
	watchSilence   = 25 * time.Second
)

// Watch yields a path and its children, and again with every change. The path need not exist.
//
//	for update, err := range client.Watch(ctx, "/services/ssh") {
//		if err != nil { … }
//		fmt.Println(slices.Collect(maps.Keys(update.Children)))
//	}
//
// Watch begins with a state that is not older than the answers that this client got before: anything that it has just
// registered is there. It goes on until the loop is left or the context ends. When a replica stops or dies, it goes on
// at another from the last revision, so that no change is missed or repeated. The state never goes back, and is never
// half a list. While ZooKeeper, or every replica, can't be reached, the state is Stale. A slow loop gets fewer updates
// with more changes in each.
//
// An error is the last item: the context's own, or an error that going on can't mend, such as a path that is not valid
// or may not be read.
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
	// but is the replica that the client is leaving.
	but int
	// silent are the replicas that have opened no stream since any replica last sent a message.
	silent map[int]struct{}
	// unease decides whether to look for another replica, because the present one has lost ZooKeeper.
	unease unease
	// left reports that the caller has left the loop. refused is the error of a replica that does not let the watch go on.
	left    bool
	refused error
}

// goOn follows one stream to its end, and reports whether there should be another.
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
		// Another replica may still serve.
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
	// A replica sends headers at once; without them the stream is not open.
	header, err := stream.Header()
	if err == nil && header == nil {
		_, err = stream.Recv()
	}
	return stream, err
}

// follow reads a stream until it fails, drains, is left, or another replica has ZooKeeper while this one has not. Only
// a failure is an error.
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

// tell yields an update, and reports whether the caller still reads the watch.
func (w *watching) tell(update *Update) bool {
	if update != nil && !w.yield(update, nil) {
		w.left = true
	}
	return !w.left
}
