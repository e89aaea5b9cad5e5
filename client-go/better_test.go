package rollcall_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rollcall "github.com/rollcall/rollcall/client-go"
	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// full is a replica that has ZooKeeper but no room for a registration.
type full struct {
	v1.UnimplementedRegistryServer
	said     chan string
	released chan string
	gets     atomic.Int32
}

func newFull() *full { return &full{said: make(chan string, 64), released: make(chan string, 64)} }

func (f *full) Get(context.Context, *v1.GetRequest) (*v1.GetResponse, error) {
	f.gets.Add(1)
	return &v1.GetResponse{Node: &v1.Node{}}, nil
}

func (f *full) Register(stream grpc.BidiStreamingServer[v1.RegisterRequest, v1.RegisterResponse]) error {
	if err := (registering{stream}).opens(0); err != nil {
		return err
	}
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if set := request.GetSet(); set != nil {
			code := int32(codes.ResourceExhausted)
			rejected := &v1.Rejected{Path: set.GetPath(), Code: code, Reason: "TOO_MANY_BYTES"}
			if err := stream.Send(&v1.RegisterResponse{Response: &v1.RegisterResponse_Rejected{Rejected: rejected}}); err != nil {
				return err
			}
			f.said <- "full"
		}
	}
}

func (f *full) AcquireLock(_ *v1.AcquireLockRequest, stream grpc.ServerStreamingServer[v1.AcquireLockResponse]) error {
	return grants(stream, "ours")
}

func (f *full) ReleaseLock(_ context.Context, request *v1.ReleaseLockRequest) (*v1.ReleaseLockResponse, error) {
	f.released <- request.GetLockId()
	return &v1.ReleaseLockResponse{}, nil
}

// grants grants a lock at once.
func grants(stream grpc.ServerStreamingServer[v1.AcquireLockResponse], id string) error {
	queued := &v1.AcquireLockResponse_Queued{Queued: &v1.Queued{LockId: id}}
	held := &v1.AcquireLockResponse_Held{Held: &v1.Held{LockId: id, FencingToken: 1}}
	if err := stream.Send(&v1.AcquireLockResponse{Event: queued}); err != nil {
		return err
	}
	if err := stream.Send(&v1.AcquireLockResponse{Event: held}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// returning is a replica that has lost ZooKeeper, and gets it back a moment after it has said so.
type returning struct {
	without
	asked chan struct{}
}

func (r *returning) Get(context.Context, *v1.GetRequest) (*v1.GetResponse, error) {
	return nil, status.Error(codes.Unavailable, "no zookeeper")
}

func (r *returning) AcquireLock(_ *v1.AcquireLockRequest, stream grpc.ServerStreamingServer[v1.AcquireLockResponse]) error {
	r.asked <- struct{}{}
	heartbeat := &v1.AcquireLockResponse_Heartbeat{Heartbeat: &v1.Heartbeat{}}
	if err := stream.Send(&v1.AcquireLockResponse{Event: heartbeat}); err != nil {
		return err
	}
	return grants(stream, "ghost")
}

// listens serves a replica at an address.
func listens(t *testing.T, address string, replica v1.RegistryServer) string {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	must(t, err)
	server := grpc.NewServer()
	v1.RegisterRegistryServer(server, replica)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-ended
	})
	return listener.Addr().String()
}

// next returns the next item of a channel, if it comes in time.
func next[T any](t *testing.T, ctx context.Context, from <-chan T) T {
	t.Helper()
	select {
	case found := <-from:
		return found
	case <-ctx.Done():
		t.Fatal("it does not come")
		panic("unreachable")
	}
}

func TestWhatAnotherReplicaHasNoRoomForGoesBackAndWaitsWhereItWas(t *testing.T) {
	ctx := begin(t)
	w, client, address := beside(t)
	registration, err := client.Register(ctx, "/services/a:1", nil, rollcall.InBackground())
	must(t, err)
	next(t, ctx, w.said)
	other := newFull()
	listens(t, address, other)
	next(t, ctx, other.said)
	next(t, ctx, w.said)
	if state := registration.State(); state.Kind != rollcall.Pending {
		t.Fatalf("%+v", state)
	}
}

func TestALockThatIsGrantedWhereNobodyWaitsAnyMoreIsGivenBack(t *testing.T) {
	ctx := begin(t)
	w, other := &returning{asked: make(chan struct{}, 64)}, newFull()
	servers := listens(t, "127.0.0.1:0", w) + "," + listens(t, "127.0.0.1:0", other)
	// Until a client begins at the first replica.
	for len(w.asked) == 0 {
		client, err := rollcall.New(servers)
		must(t, err)
		t.Cleanup(func() { _ = client.Close() })
		_, err = client.Lock(ctx, "/jobs/a", rollcall.TTL(time.Minute))
		must(t, err)
	}
	if id := next(t, ctx, other.released); id != "ghost" {
		t.Fatal(id)
	}
}

// wentBack is a replica of a ZooKeeper that has lost transactions that were known before.
type wentBack struct{ v1.UnimplementedRegistryServer }

func (wentBack) Get(context.Context, *v1.GetRequest) (*v1.GetResponse, error) {
	return &v1.GetResponse{Node: &v1.Node{}, Stale: true, Reset_: true}, nil
}

func TestWhereZooKeeperWentBackNoOtherReplicaIsAsked(t *testing.T) {
	ctx := begin(t)
	other := newFull()
	servers := listens(t, "127.0.0.1:0", wentBack{}) + "," + listens(t, "127.0.0.1:0", other)
	// Until a client begins at the first replica.
	for isStale := false; !isStale; {
		client, err := rollcall.New(servers)
		must(t, err)
		t.Cleanup(func() { _ = client.Close() })
		before := other.gets.Load()
		view, err := client.Get(ctx, "/a")
		must(t, err)
		isStale = view.Stale
		if asked := other.gets.Load() - before; asked > 1 || (isStale && asked > 0) {
			t.Fatalf("asked %d times", asked)
		}
	}
}
