package rollcall_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	rollcall "github.com/rollcall/rollcall/client-go"
	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// horizon is well below the fixed times that clients without a horizon wait for.
const horizon = time.Second

// AcquireLock grants the lock, and sends as many heartbeats as the test asks for.
func (f *fake) AcquireLock(
	request *v1.AcquireLockRequest, stream grpc.ServerStreamingServer[v1.AcquireLockResponse],
) error {
	held := &v1.Held{LockId: "id", FencingToken: 7, Horizon: durationpb.New(horizon)}
	for _, response := range []*v1.AcquireLockResponse{
		{Event: &v1.AcquireLockResponse_Queued{Queued: &v1.Queued{LockId: "id", Position: 1}}},
		{Event: &v1.AcquireLockResponse_Held{Held: held}},
	} {
		if err := stream.Send(response); err != nil {
			return err
		}
	}
	for range f.heartbeats {
		heartbeat := &v1.AcquireLockResponse_Heartbeat{Heartbeat: &v1.Heartbeat{}}
		if err := stream.Send(&v1.AcquireLockResponse{Event: heartbeat}); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

func TestALockWithoutATTLIsLostWhenItsReplicaIsSilentForTheHorizon(t *testing.T) {
	ctx := begin(t)
	replica, address := pretend(t)
	client, err := rollcall.New(address)
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	lock, err := client.Lock(ctx, "/lock", rollcall.TTL(0))
	must(t, err)
	// The lock is held for as long as the client hears from the replica.
	for begun := time.Now(); time.Since(begun) < 2*horizon; time.Sleep(horizon / 5) {
		replica.heartbeats <- struct{}{}
	}
	if state := lock.State(); state.Kind != rollcall.LockHeld {
		t.Fatalf("%+v", state)
	}
	close(replica.heartbeats)
	short, cancel := context.WithTimeout(ctx, 5*horizon)
	defer cancel()
	select {
	case <-lock.Context().Done():
	case <-short.Done():
		t.Fatal("it is still taken for held")
	}
	var lost *rollcall.LostError
	if cause := context.Cause(lock.Context()); !errors.As(cause, &lost) {
		t.Fatalf("%v", cause)
	}
}

func TestARegistrationWithoutATTLIsInDoubtWhenItsReplicaIsSilentForTheHorizon(t *testing.T) {
	ctx := begin(t)
	replica, address := pretend(t)
	answered := make(chan struct{}, 64)
	// The replica answers some keep-alives, which a client without a ttl sends because of the horizon, and then nothing.
	replica.streams <- func(r registering) error {
		if _, err := r.Recv(); err != nil {
			return err
		}
		opened := &v1.RegisterResponse_Opened{Opened: &v1.Opened{Horizon: durationpb.New(horizon)}}
		if err := r.Send(&v1.RegisterResponse{Response: opened}); err != nil {
			return err
		}
		count := 0
		return r.serves(func() error {
			answered <- struct{}{}
			if count++; count == 4 {
				<-r.Context().Done()
				return r.Context().Err()
			}
			return nil
		})
	}
	client, err := rollcall.New(address)
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	registration, err := client.Register(ctx, "/a", nil, rollcall.TTL(0))
	must(t, err)
	reaches(t, ctx, registration, rollcall.Registered)
	short, cancel := context.WithTimeout(ctx, 8*horizon)
	defer cancel()
	reaches(t, short, registration, rollcall.Pending)
	if len(answered) != 4 {
		t.Fatalf("%d keep-alives", len(answered))
	}
}
