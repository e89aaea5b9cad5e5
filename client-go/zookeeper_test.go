package rollcall_test

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	rollcall "github.com/rollcall/rollcall/client-go"
	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// without is a replica that has lost ZooKeeper. It records when it has said so.
type without struct {
	v1.UnimplementedRegistryServer
	said chan string
}

func (w *without) Register(stream grpc.BidiStreamingServer[v1.RegisterRequest, v1.RegisterResponse]) error {
	if err := (registering{stream}).opens(0); err != nil {
		return err
	}
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if set := request.GetSet(); set != nil {
			pending := &v1.Pending{Path: set.GetPath(), Reason: string(rollcall.BackendUnavailable)}
			if err := stream.Send(&v1.RegisterResponse{Response: &v1.RegisterResponse_Pending{Pending: pending}}); err != nil {
				return err
			}
			w.said <- "pending"
		}
	}
}

func (w *without) Watch(_ *v1.WatchRequest, stream grpc.ServerStreamingServer[v1.WatchResponse]) error {
	backend := &v1.WatchResponse_Backend{Backend: &v1.Backend{State: v1.BackendState_BACKEND_STATE_SUSPENDED}}
	if err := stream.Send(&v1.WatchResponse{Stale: true, Event: backend}); err != nil {
		return err
	}
	w.said <- "stale"
	<-stream.Context().Done()
	return stream.Context().Err()
}

func (w *without) AcquireLock(_ *v1.AcquireLockRequest, stream grpc.ServerStreamingServer[v1.AcquireLockResponse]) error {
	heartbeats := time.NewTicker(100 * time.Millisecond)
	defer heartbeats.Stop()
	for {
		heartbeat := &v1.AcquireLockResponse_Heartbeat{Heartbeat: &v1.Heartbeat{}}
		if err := stream.Send(&v1.AcquireLockResponse{Event: heartbeat}); err != nil {
			return err
		}
		select {
		case w.said <- "no place":
		default:
		}
		select {
		case <-heartbeats.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// beside starts such a replica, and returns it with a client of it and of an address where another replica will be.
func beside(t *testing.T) (w *without, client *rollcall.Client, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	w, address = &without{said: make(chan string, 64)}, freeAddress(t)
	server := grpc.NewServer()
	v1.RegisterRegistryServer(server, w)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-ended
	})
	client, err = rollcall.New(listener.Addr().String() + "," + address)
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return w, client, address
}

func TestARegistrationGoesToAReplicaThatHasZooKeeper(t *testing.T) {
	ctx := begin(t)
	w, client, address := beside(t)
	registration, err := client.Register(ctx, "/services/a:1", nil, rollcall.InBackground())
	must(t, err)
	<-w.said
	serve(t, "--embedded", "--listen", address)
	reaches(t, ctx, registration, rollcall.Registered)
}

func TestAWatchGoesToAReplicaThatHasZooKeeper(t *testing.T) {
	ctx := begin(t)
	w, client, address := beside(t)
	current := make(chan error, 1)
	go func() {
		for update, err := range client.Watch(ctx, "/services") {
			if err != nil || !update.Stale {
				current <- err
				return
			}
		}
	}()
	<-w.said
	serve(t, "--embedded", "--listen", address)
	must(t, <-current)
}

func TestALockIsWaitedForAtAReplicaThatHasZooKeeper(t *testing.T) {
	ctx := begin(t)
	w, client, address := beside(t)
	locked := make(chan error, 1)
	go func() {
		lock, err := client.Lock(ctx, "/jobs/a")
		if err == nil {
			err = lock.Unlock(ctx)
		}
		locked <- err
	}()
	<-w.said
	serve(t, "--embedded", "--listen", address)
	must(t, <-locked)
}

func TestAValueThatNoMessageCanCarryIsRefusedAtOnceAndHoldsUpNoOther(t *testing.T) {
	ctx := begin(t)
	client := connect(t, nil, embedded(t))
	kept, err := client.Register(ctx, "/services/kept:1", "x")
	must(t, err)
	large := strings.Repeat("x", 3<<20)
	_, err = client.Register(ctx, "/services/large:1", large)
	_, put := client.Put(ctx, "/large", large)
	for _, err := range []error{err, kept.Update(ctx, large), put} {
		if !errors.Is(err, rollcall.ValueTooLarge) {
			t.Fatal(err)
		}
	}
	if _, err := client.Register(ctx, "/services/over:1", strings.Repeat("x", 300<<10)); !errors.Is(err, rollcall.ValueTooLarge) {
		t.Fatal("over --max-value-bytes:", err)
	}
	_, err = client.Register(ctx, "/services/other:1", "x")
	must(t, err)
	if state := kept.State(); state.Kind != rollcall.Registered {
		t.Fatal(state)
	}
}
