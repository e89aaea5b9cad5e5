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
	// scheme is the scheme of the resolver's targets.
	scheme = "rollcall"
	// ServerVariable is the environment variable that names the replicas, HOST:PORT[,HOST:PORT…], for targets that are
	// dialled without [NewResolver]. Default: localhost:7700.
	ServerVariable = "ROLLCALL_SERVER"
	defaultServer  = "localhost:7700"
	// refusedPause is the time for which a refused watch is left alone, unless gRPC asks to resolve again.
	refusedPause = 10 * time.Second
	// balancing spreads calls evenly.
	balancing = `{"loadBalancingConfig":[{"round_robin":{}}]}`
)

// NewResolver lets gRPC dial services by their registrations:
//
//	conn, err := grpc.NewClient("rollcall:///services/web", grpc.WithResolvers(rollcall.NewResolver(client)), …)
//
// Calls are spread evenly (round_robin) over the HOST:PORTs that are registered under the path, as they come and go.
// Names that are not HOST:PORT are left out.
//
//   - Until the first registration appears, calls wait; give them a deadline.
//   - An empty list is more often a fault than intended: when the last registration goes, or no replica can be reached,
//     calls still go to the last known addresses.
//   - With TLS, a server must present a certificate for the host that it is registered under.
//
// A connection without this option finds the replicas in the environment, [ServerVariable], and shares one client with
// all other such connections. Importing this package is enough for that.
func NewResolver(client *Client) resolver.Builder {
	return builder{func() (*Client, func(), error) { return client, func() {}, nil }}
}

// gRPC allows a scheme to be registered only before the first dial.
func init() { resolver.Register(builder{fromEnvironment.use}) }

// builder makes resolvers. use returns a client for a resolver, and a function to call when the client is no longer
// needed.
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

// plain strips the status off an error: calls fail as UNAVAILABLE, whatever the error of their resolver is.
func plain(err error) error { return errors.New(err.Error()) }

// following is a resolver that follows one path for one connection.
type following struct {
	client *Client
	conn   resolver.ClientConn
	path   string
	cancel context.CancelFunc
	task   sync.WaitGroup
	// again is filled when gRPC asks for another attempt.
	again chan struct{}
}

// ResolveNow retries a watch that was refused; an open watch needs no help.
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
			// Not at once: gRPC asks again for every call that fails, and the replica would get each of these attempts.
			_ = sleep(ctx, time.Second)
		case <-time.After(refusedPause):
		}
	}
}

func (r *following) tell(names []string) {
	state := resolver.State{ServiceConfig: r.conn.ParseServiceConfig(balancing)}
	for _, name := range names {
		// The server's name is the name for its certificate, and the authority of the calls.
		state.Addresses = append(state.Addresses, resolver.Address{Addr: name, ServerName: name})
	}
	// If gRPC can't use the addresses, the calls show it.
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

// fromEnvironment is the client of all connections without a client of their own.
var fromEnvironment sharedClient

// sharedClient exists while it has users.
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
