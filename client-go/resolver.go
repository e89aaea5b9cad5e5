package rollcall

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/resolver"
)

const (
	// scheme is what the targets of the resolver begin with.
	scheme = "rollcall"
	// ServerVariable is the environment variable that names the replicas, HOST:PORT[,HOST:PORT…], for targets that are
	// dialled without [NewResolver]. Default: localhost:7700.
	ServerVariable = "ROLLCALL_SERVER"
	defaultServer  = "localhost:7700"
	// refusedPause is how long a refused watch is left alone, unless gRPC asks to resolve again.
	refusedPause = 10 * time.Second
	// balancing spreads calls evenly.
	balancing = `{"loadBalancingConfig":[{"round_robin":{}}]}`
)

// NewResolver lets gRPC dial services by their registrations:
//
//	conn, err := grpc.NewClient("rollcall:///services/web", grpc.WithResolvers(rollcall.NewResolver(client)), …)
//
// Calls are spread evenly (round_robin) over the HOST:PORTs that are registered under the path, as they come and go.
// Names that are no HOST:PORT are left out.
//
//   - While nobody has ever been registered, calls wait; give them a deadline.
//   - An empty list is more often a fault than a wish: when the last one goes, or no replica can be reached, calls
//     still go to those that were last known.
//   - With TLS, a server has to show a certificate for the host that it is registered under.
//
// A connection without this option finds the replicas in the environment, [ServerVariable], and shares one client with
// all others of its kind; importing this package is enough for that.
func NewResolver(client *Client) resolver.Builder {
	return builder{func() (*Client, func(), error) { return client, func() {}, nil }}
}

// gRPC wants it so: a scheme is registered before the first dial, and at no other time.
func init() { resolver.Register(builder{fromEnvironment.use}) }

// builder makes resolvers; use gives it a client, and what to call when it is not needed any more.
type builder struct {
	use func() (*Client, func(), error)
}

func (builder) Scheme() string { return scheme }

func (b builder) Build(target resolver.Target, conn resolver.ClientConn, _ resolver.BuildOptions) (
	resolver.Resolver, error,
) {
	if host := target.URL.Host; host != "" {
		return nil, plain(invalid("target %s: write rollcall:///PATH; %s names the replicas", &target.URL, ServerVariable))
	}
	client, done, err := b.use()
	if err != nil {
		return nil, plain(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &following{client: client, conn: conn, path: target.URL.Path, cancel: cancel, again: make(chan struct{}, 1)}
	r.task.Go(func() {
		defer done()
		r.run(ctx)
	})
	return r, nil
}

// plain takes the status off an error: calls fail as UNAVAILABLE, whatever their resolver does.
func plain(err error) error { return errors.New(err.Error()) }

// following is a resolver: it follows one path for one connection.
type following struct {
	client *Client
	conn   resolver.ClientConn
	path   string
	cancel context.CancelFunc
	task   sync.WaitGroup
	// again is filled when gRPC wishes for another try.
	again chan struct{}
}

// ResolveNow tries a watch again that was refused; one that stands needs no help.
func (r *following) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// Close ends the watch.
func (r *following) Close() {
	r.cancel()
	r.task.Wait()
}

func (r *following) run(ctx context.Context) {
	var known []string
	for ctx.Err() == nil {
		for update, err := range r.client.Watch(ctx, r.path) {
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				r.conn.ReportError(plain(err))
				break
			}
			if names := addresses(update.Children); len(names) > 0 && !slices.Equal(names, known) {
				known = names
				r.tell(names)
			}
		}
		select {
		case <-ctx.Done():
		case <-r.again:
			// Not at once: whoever refuses is asked for every call that fails.
			_ = sleep(ctx, time.Second)
		case <-time.After(refusedPause):
		}
	}
}

func (r *following) tell(names []string) {
	state := resolver.State{ServiceConfig: r.conn.ParseServiceConfig(balancing)}
	for _, name := range names {
		// The name of the server is what its certificate is for, and the authority of the calls.
		state.Addresses = append(state.Addresses, resolver.Address{Addr: name, ServerName: name})
	}
	// That gRPC can't use the addresses shows in the calls.
	_ = r.conn.UpdateState(state)
}

// addresses are the names of children that are HOST:PORT, in order.
func addresses(children map[string]Child) []string {
	var names []string
	for name := range children {
		if isAddress(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// fromEnvironment is the client of all connections that name none.
var fromEnvironment sharedClient

// sharedClient is there while somebody uses it.
type sharedClient struct {
	mu     sync.Mutex
	client *Client
	users  int
}

func (s *sharedClient) use() (*Client, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		client, err := New(cmp.Or(os.Getenv(ServerVariable), defaultServer))
		if err != nil {
			return nil, nil, err
		}
		s.client = client
	}
	s.users++
	return s.client, s.done, nil
}

func (s *sharedClient) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		_ = s.client.Close()
		s.client = nil
	}
}
