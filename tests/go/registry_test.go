// Package rollcall_test makes all eight calls through plain generated stubs, like a program that knows nothing but our
// protos. ROLLCALL_ADDR is the server's HOST:PORT; `cargo test -p rollcall-tests polyglot` sets it.
package rollcall_test

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	rollcall "rollcall.test/gen/rollcall/v1"
)

// connect returns a client and a context that ends with the test, or after a minute.
func connect(t *testing.T) (context.Context, rollcall.RegistryClient) {
	t.Helper()
	address := os.Getenv("ROLLCALL_ADDR")
	if address == "" {
		t.Fatal("ROLLCALL_ADDR is not set")
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(func() {
		cancel()
		_ = connection.Close()
	})
	return ctx, rollcall.NewRegistryClient(connection)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func object(t *testing.T, fields map[string]any) *rollcall.Value {
	t.Helper()
	data, err := structpb.NewStruct(fields)
	must(t, err)
	return &rollcall.Value{Kind: &rollcall.Value_Data{Data: data}}
}

// refused checks an error's code and the reason in its ErrorInfo.
func refused(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	answer := status.Convert(err)
	if answer.Code() != code {
		t.Fatalf("%v instead of %v", err, code)
	}
	for _, detail := range answer.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			if info.Domain != "rollcall" || info.Reason != reason {
				t.Fatalf("%v instead of %v", info, reason)
			}
			return
		}
	}
	t.Fatalf("no ErrorInfo: %v", answer.Proto())
}

func TestRegisterAndGet(t *testing.T) {
	ctx, client := connect(t)
	stream, err := client.Register(ctx)
	must(t, err)
	send := func(request *rollcall.RegisterRequest) { t.Helper(); must(t, stream.Send(request)) }
	receive := func() *rollcall.RegisterResponse {
		t.Helper()
		answer, err := stream.Recv()
		must(t, err)
		return answer
	}

	send(&rollcall.RegisterRequest{Request: &rollcall.RegisterRequest_Open{Open: &rollcall.OpenSession{Pid: 4711}}})
	if receive().GetOpened().GetSessionId() == "" {
		t.Fatal("opened comes first, with an id")
	}
	set := &rollcall.SetRegistration{Path: "/go/register/host:22", Value: object(t, map[string]any{"port": 10733})}
	send(&rollcall.RegisterRequest{Request: &rollcall.RegisterRequest_Set{Set: set}})
	registered := receive().GetRegistered()
	if registered.GetPath() != set.Path || registered.GetGeneration() == 0 {
		t.Fatalf("not registered: %v", registered)
	}

	got, err := client.Get(ctx, &rollcall.GetRequest{
		Path: "/go/register", Consistency: rollcall.Consistency_CONSISTENCY_LATEST,
	})
	must(t, err)
	child := got.GetNode().GetChildren()["host:22"]
	data := child.GetValue().GetData().AsMap()
	if data["port"] != 10733.0 || data["pid"] != 4711.0 || data["created"] == nil {
		t.Fatalf("other data than was registered: %v", data)
	}
	if child.GetStat().GetCzxid() != registered.GetGeneration() {
		t.Fatalf("the generation is the czxid: %v %v", child, registered)
	}

	send(&rollcall.RegisterRequest{Request: &rollcall.RegisterRequest_Close{Close: &rollcall.CloseSession{}}})
	if receive().GetUnregistered().GetPath() != set.Path {
		t.Fatal("close answers unregistered")
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("close ends the stream with OK: %v", err)
	}
}

func TestWatchPutAndDelete(t *testing.T) {
	ctx, client := connect(t)
	watch, err := client.Watch(ctx, &rollcall.WatchRequest{Path: "/go/watch"})
	must(t, err)
	first, err := watch.Recv()
	must(t, err)
	if first.GetSnapshot() == nil || first.GetSnapshot().GetNode().GetExists() {
		t.Fatalf("the snapshot of an absent path comes first: %v", first)
	}
	next := func() *rollcall.Change {
		t.Helper()
		for {
			answer, err := watch.Recv()
			must(t, err)
			if changes := answer.GetDelta().GetChanges(); len(changes) == 1 {
				return changes[0]
			}
		}
	}

	put, err := client.Put(ctx, &rollcall.PutRequest{Path: "/go/watch", Value: object(t, map[string]any{"limit": 5})})
	must(t, err)
	if change := next(); change.GetKind() != rollcall.ChangeKind_CHANGE_KIND_CREATED {
		t.Fatalf("not created: %v", change)
	}
	version := put.GetStat().GetVersion() + 1
	_, err = client.Delete(ctx, &rollcall.DeleteRequest{Path: "/go/watch", ExpectedVersion: &version})
	refused(t, err, codes.Aborted, "VERSION_MISMATCH")
	_, err = client.Delete(ctx, &rollcall.DeleteRequest{Path: "/go/watch"})
	must(t, err)
	if change := next(); change.GetKind() != rollcall.ChangeKind_CHANGE_KIND_DELETED {
		t.Fatalf("not deleted: %v", change)
	}
}

func TestTheThreeLockCalls(t *testing.T) {
	ctx, client := connect(t)
	acquire := func(name string, wait *durationpb.Duration) func() (*rollcall.AcquireLockResponse, error) {
		t.Helper()
		stream, err := client.AcquireLock(ctx, &rollcall.AcquireLockRequest{Path: "/go/lock", Name: name, Wait: wait})
		must(t, err)
		return stream.Recv
	}
	held := func(receive func() (*rollcall.AcquireLockResponse, error)) *rollcall.Held {
		t.Helper()
		for {
			answer, err := receive()
			must(t, err)
			if held := answer.GetHeld(); held != nil {
				return held
			}
		}
	}

	first := acquire("first", nil)
	answer, err := first()
	must(t, err)
	if answer.GetQueued().GetLockId() == "" {
		t.Fatalf("queued comes before held: %v", answer)
	}
	one := held(first)
	second := acquire("second", nil)
	answer, err = second()
	must(t, err)
	if holders := answer.GetQueued().GetHolders(); len(holders) != 1 || holders[0] != "first" {
		t.Fatalf("queued names the holders: %v", answer)
	}
	described, err := client.DescribeLock(ctx, &rollcall.DescribeLockRequest{Path: "/go/lock"})
	must(t, err)
	if len(described.GetHolders()) != 1 || len(described.GetWaiters()) != 1 || described.GetSimultaneous() != 1 {
		t.Fatalf("one holds and one waits: %v", described)
	}
	try := acquire("third", durationpb.New(0))
	for err = nil; err == nil; {
		_, err = try()
	}
	refused(t, err, codes.Aborted, "LOCK_BUSY")

	released, err := client.ReleaseLock(ctx, &rollcall.ReleaseLockRequest{LockId: one.GetLockId()})
	must(t, err)
	if !released.GetReleased() {
		t.Fatal("not released")
	}
	if two := held(second); two.GetFencingToken() <= one.GetFencingToken() {
		t.Fatalf("the token rises with every grant: %v after %v", two, one)
	}
}
