package rollcall_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rollcall "github.com/rollcall/rollcall/client-go"
	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

const (
	// doubtTTL is short, so that the tests wait little.
	doubtTTL = time.Second
	// often keeps a stream alive; forever lets it be silent for the whole of a test.
	often, forever = doubtTTL / 10, time.Hour
)

var errBroken = status.Error(codes.Unavailable, "broken")

// servesUntil is a stream on which everything goes well, until told returns an error.
func servesUntil(interval time.Duration, told func(registering) error) func(registering) error {
	return func(r registering) error {
		if err := r.opens(interval); err != nil {
			return err
		}
		return r.serves(func() error { return told(r) })
	}
}

// isSilentUntil is a stream on which nothing is ever answered.
func isSilentUntil(broken <-chan struct{}) func(registering) error {
	return func(r registering) error {
		if err := r.opens(forever); err != nil {
			return err
		}
		select {
		case <-broken:
			return errBroken
		case <-r.Context().Done():
			return r.Context().Err()
		}
	}
}

func breaksAtOnce(registering) error { return errBroken }

func goesOn(registering) error { return nil }

// registered returns a path that is registered on the first stream of a fake.
func registered(t *testing.T, ctx context.Context, first func(registering) error) (*fake, *rollcall.Registration) {
	t.Helper()
	replica, address := pretend(t)
	replica.streams <- first
	client, err := rollcall.New(address)
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	registration, err := client.Register(ctx, "/a", nil, rollcall.TTL(doubtTTL))
	must(t, err)
	reaches(t, ctx, registration, rollcall.Registered)
	return replica, registration
}

// comesIntoDoubt checks that the registration comes into doubt, but not before its time. Once a replica serves it, it
// is registered again.
func comesIntoDoubt(
	t *testing.T, ctx context.Context, begun time.Time, replica *fake, registration *rollcall.Registration,
	broken chan<- struct{},
) {
	t.Helper()
	short, cancel := context.WithTimeout(ctx, soon/3)
	defer cancel()
	reaches(t, short, registration, rollcall.Pending)
	if after := time.Since(begun); after < doubtTTL {
		t.Fatalf("it was certain for %v, and not for %v", after, doubtTTL)
	}
	replica.streams <- servesUntil(often, goesOn)
	close(broken)
	reaches(t, ctx, registration, rollcall.Registered)
}

func TestWhatTheNextReplicaHasNotTakenOverIsInDoubtWhenTheTTLIsOver(t *testing.T) {
	ctx, begun, broken := begin(t), time.Now(), make(chan struct{})
	replica, registration := registered(t, ctx, servesUntil(often, breaksAtOnce))
	replica.streams <- isSilentUntil(broken)
	comesIntoDoubt(t, ctx, begun, replica, registration, broken)
}

func TestReplicasThatOpenStreamsAndTakeNothingOverDoNotMakeItCertain(t *testing.T) {
	ctx, begun, broken := begin(t), time.Now(), make(chan struct{})
	replica, registration := registered(t, ctx, servesUntil(often, breaksAtOnce))
	// The streams follow one another, each for less than the ttl.
	var next func(registering) error
	next = func(r registering) error {
		if err := r.opens(forever); err != nil {
			return err
		}
		select {
		case <-broken:
		case <-time.After(doubtTTL / 4):
			replica.streams <- next
		}
		return errBroken
	}
	replica.streams <- next
	comesIntoDoubt(t, ctx, begun, replica, registration, broken)
}

func TestWhatAReplicaThatStopsStillKeepsIsCertainUntilItsStreamEnds(t *testing.T) {
	ctx, begun, broken := begin(t), time.Now(), make(chan struct{})
	lasted, ended := make(chan struct{}), make(chan struct{})
	kept := 0
	// The replica drains at once, and goes on for longer than the ttl.
	replica, registration := registered(t, ctx, servesUntil(doubtTTL, func(r registering) error {
		switch kept++; kept {
		case 1:
			draining := &v1.RegisterResponse_Draining{Draining: &v1.Draining{}}
			return r.Send(&v1.RegisterResponse{Response: draining})
		case 4:
			close(lasted)
			<-ended
			return errBroken
		}
		return nil
	}))
	replica.streams <- isSilentUntil(broken)
	<-lasted
	if state := registration.State(); state.Kind != rollcall.Registered {
		t.Fatalf("%+v", state)
	}
	close(ended)
	comesIntoDoubt(t, ctx, begun, replica, registration, broken)
}
