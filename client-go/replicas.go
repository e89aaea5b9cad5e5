package rollcall

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// drainPause is the time for which a draining replica is left alone.
const drainPause = 500 * time.Millisecond

// drainTime is the time for which a draining replica is not considered when another has lost ZooKeeper. It is longer
// than most drains take.
const drainTime = 15 * time.Second

// replicas are the connections of a client: one for each replica, made on first use and dropped when it fails.
type replicas struct {
	names []string
	dial  func(name string) (*grpc.ClientConn, error)

	mu     sync.Mutex
	choice *choice
	links  []*link
	closed bool
	// round is the round of questions for another replica that is under way. rounds are the results of such rounds, for
	// each replica that is to be left.
	round  *round
	rounds []rounds
	// stopsUntil is the time until which a draining replica counts as about to stop.
	stopsUntil []time.Time
	// spread is the spread of every unease.
	spread float64
}

// link is a connection and the number of calls that use it. A connection that was given up is closed with the last of
// them.
type link struct {
	conn    *grpc.ClientConn
	users   int
	retired bool
}

// replica is a replica to talk to, and a use of its connection until release.
type replica struct {
	chosen
	of   *replicas
	link *link
	stub v1.RegistryClient
}

func newReplicas(names []string, dial func(string) (*grpc.ClientConn, error)) *replicas {
	chance := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	return &replicas{
		names:  names,
		dial:   dial,
		choice: newChoice(len(names), chance),
		links:  make([]*link, len(names)),
		rounds: make([]rounds, len(names)),

		stopsUntil: make([]time.Time, len(names)),
		spread:     chance.Float64(),
	}
}

// String names the replicas, for a message.
func (r *replicas) String() string { return strings.Join(r.names, ", ") }

// pick returns the replica that answers, or the next to try. It returns but only while no other may be tried. It waits
// while all have failed lately; each may be tried again after longest. Errors are those of the context, and Closed.
func (r *replicas) pick(ctx context.Context, but int, longest time.Duration) (*replica, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r.mu.Lock()
		use, again, ok := r.choice.choose(time.Now(), but, longest)
		if ok {
			defer r.mu.Unlock()
			return r.connect(use)
		}
		r.mu.Unlock()
		if err := sleep(ctx, time.Until(again)); err != nil {
			return nil, err
		}
	}
}

func (r *replicas) connect(use chosen) (*replica, error) {
	if r.closed {
		return nil, closed("the client")
	}
	if r.links[use.index] == nil {
		conn, err := r.dial(r.names[use.index])
		if err != nil {
			return nil, invalid("%s: %v", r.names[use.index], err)
		}
		r.links[use.index] = &link{conn: conn}
	}
	link := r.links[use.index]
	link.users++
	return &replica{chosen: use, of: r, link: link, stub: v1.NewRegistryClient(link.conn)}, nil
}

// close gives up all connections; open calls keep theirs.
func (r *replicas) close() {
	r.mu.Lock()
	r.closed = true
	var unused []*link
	for index := range r.links {
		unused = append(unused, r.retire(index))
	}
	r.mu.Unlock()
	for _, link := range unused {
		link.close()
	}
}

// retire makes room for another connection. It returns the old one if that can be closed.
func (r *replicas) retire(index int) *link {
	link := r.links[index]
	r.links[index] = nil
	if link == nil {
		return nil
	}
	link.retired = true
	if link.users > 0 {
		return nil
	}
	return link
}

// again returns one more use of the connection.
func (p *replica) again() *replica {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.link.users++
	another := *p
	return &another
}

// succeeded records that the replica has answered.
func (p *replica) succeeded() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.of.choice.succeeded(p.chosen)
}

// failed records that the replica has not answered, or can't serve now.
func (p *replica) failed(why *failure) { p.leave(why.pause()) }

// drains records that the replica is about to stop. The next calls and streams go elsewhere or, behind a balancer, over
// a new connection.
func (p *replica) drains() {
	p.of.mu.Lock()
	p.of.stopsUntil[p.index] = time.Now().Add(drainTime)
	p.of.mu.Unlock()
	p.leave(drainPause)
}

func (p *replica) leave(pause time.Duration) {
	p.of.mu.Lock()
	var unused *link
	// A connection that hangs, or that the replica wants to end, is no use to new calls. Open streams keep it.
	if p.of.choice.failed(p.chosen, pause, time.Now()) && p.of.links[p.index] == p.link {
		unused = p.of.retire(p.index)
	}
	p.of.mu.Unlock()
	unused.close()
}

// release ends the use of the connection.
func (p *replica) release() {
	p.of.mu.Lock()
	p.link.users--
	unused := p.link.retired && p.link.users == 0
	p.of.mu.Unlock()
	if unused {
		p.link.close()
	}
}

func (l *link) close() {
	if l != nil {
		// The only possible error is that it was closed before.
		_ = l.conn.Close()
	}
}

// sleep waits, unless the context ends first.
func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// sent is set when a request is on its way to a replica: a call that failed before was certainly not carried out.
type sent struct{ atomic.Bool }

type sentKey struct{}

// markSent returns a context whose calls set the mark.
func markSent(ctx context.Context) (context.Context, *sent) {
	mark := new(sent)
	return context.WithValue(ctx, sentKey{}, mark), mark
}

// sentMarker sets the marks: a stats.Handler.
type sentMarker struct{}

func (sentMarker) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (sentMarker) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if _, ok := event.(*stats.OutHeader); ok {
		if mark, ok := ctx.Value(sentKey{}).(*sent); ok {
			mark.Store(true)
		}
	}
}

func (sentMarker) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (sentMarker) HandleConn(context.Context, stats.ConnStats) {}
