package rollcall_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	rollcall "github.com/rollcall/rollcall/client-go"
)

// backend is a gRPC service; it ends with the test, or by its stop.
type backend struct {
	address string
	stop    func()
}

func backends(t *testing.T, count int) []backend {
	t.Helper()
	var all []backend
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		server := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(server, health.NewServer())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = server.Serve(listener)
		}()
		stop := func() {
			server.Stop()
			<-ended
		}
		t.Cleanup(stop)
		all = append(all, backend{listener.Addr().String(), stop})
	}
	return all
}

func dial(t *testing.T, target string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask makes a call, and returns the name of the backend that answered it.
func ask(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var who peer.Peer
	_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&who))
	if err != nil {
		return "", err
	}
	return who.Addr.String(), nil
}

// served waits until these backends answer, and no others.
func served(t *testing.T, ctx context.Context, conn *grpc.ClientConn, by ...backend) {
	t.Helper()
	eventually(t, ctx, "calls are spread over who is registered", func() error {
		seen := make(map[string]int)
		for range 4 * len(by) {
			who, err := ask(ctx, conn)
			if err != nil {
				return err
			}
			seen[who]++
		}
		for _, one := range by {
			if seen[one.address] != 4 {
				return errors.New("not even")
			}
		}
		return wrongUnless(len(seen) == len(by), "%v", seen)
	})
}

func TestAServiceIsDialledByItsRegistrations(t *testing.T) {
	ctx := begin(t)
	server := embedded(t)
	t.Setenv(rollcall.ServerVariable, server.address)
	client := connect(t, nil, server)
	all := backends(t, 3)
	conns := []*grpc.ClientConn{
		dial(t, "rollcall:///services/web", grpc.WithResolvers(rollcall.NewResolver(client))),
		dial(t, "rollcall:///services/web"),
	}
	for _, conn := range conns {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		if _, err := ask(short, conn); status.Code(err) != codes.DeadlineExceeded {
			t.Fatalf("before anybody is registered calls wait: %v", err)
		}
		cancel()
	}
	var registrations []*rollcall.Registration
	for _, one := range all {
		registration, err := client.Register(ctx, "/services/web/"+one.address, nil)
		must(t, err)
		registrations = append(registrations, registration)
	}
	_, err := client.Register(ctx, "/services/web/no-address", nil)
	must(t, err)
	for _, conn := range conns {
		served(t, ctx, conn, all...)
	}
	must(t, registrations[0].Close(ctx))
	for _, conn := range conns {
		served(t, ctx, conn, all[1], all[2])
	}
	// Without a replica and without registrations, the last known backends are still called.
	must(t, registrations[1].Close(ctx))
	for _, conn := range conns {
		served(t, ctx, conn, all[2])
	}
	must(t, registrations[2].Close(ctx))
	view, err := client.Get(ctx, "/services/web", rollcall.Latest())
	must(t, err)
	if len(view.Children) != 1 {
		t.Fatalf("%+v", view)
	}
	server.kill()
	for _, conn := range conns {
		served(t, ctx, conn, all[2])
	}
}

func TestAPathThatCanNotBeWatchedFailsTheCalls(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	conn := dial(t, "rollcall:///.rollcall", grpc.WithResolvers(rollcall.NewResolver(client)))
	if _, err := ask(ctx, conn); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	conn = dial(t, "rollcall://elsewhere/services/web", grpc.WithResolvers(rollcall.NewResolver(client)))
	if _, err := ask(ctx, conn); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	t.Setenv(rollcall.ServerVariable, "nowhere")
	conn = dial(t, "rollcall:///services/web")
	if _, err := ask(ctx, conn); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
}
