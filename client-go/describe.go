package rollcall

import (
	"context"
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// LockDescription describes the holders and waiters of a lock.
type LockDescription struct {
	// Path is the path that was asked for.
	Path string
	// Simultaneous is the maximum number of holders at once; 0 when the lock was never taken.
	Simultaneous int
	// Holders are the holders, the earliest grant first.
	Holders []LockParty
	// Waiters are the waiters, in the order in which they will be served; only the first of them when all would not fit in
	// a message.
	Waiters []LockParty
}

// LockParty is a holder of a lock, or a waiter for it.
type LockParty struct {
	// Name is the name that it gave.
	Name string
	// FencingToken is the token of its grant; 0 for a waiter.
	FencingToken int64
	// Since is the time since which it has held the lock or waited, by ZooKeeper's clock.
	Since time.Time
	// Foreign reports that it did not come through Rollcall but, for example, through kazoo.
	Foreign bool
	// TTL is the time for which the lock outlives it; 0: the lock does not, or the ttl is not known.
	TTL time.Duration
	// Replica is the name of the replica that keeps its lease or its place; empty when not known.
	Replica string
}

// DescribeLock describes the holders and waiters of a lock, in order. It is a view of a moment: by the time you read
// it, others may hold the lock.
//
// Errors have the reason [NotALock] or those of every call.
func (c *Client) DescribeLock(ctx context.Context, path string) (*LockDescription, error) {
	request := &v1.DescribeLockRequest{Path: path}
	describe := func(ctx context.Context, at *replica) (*v1.DescribeLockResponse, error) {
		return at.stub.DescribeLock(ctx, request)
	}
	answer, err := call(ctx, c, path, reads, 0, describe)
	if err != nil {
		return nil, err
	}
	return &LockDescription{
		Path:         answer.GetPath(),
		Simultaneous: int(answer.GetSimultaneous()),
		Holders:      partiesFromProto(answer.GetHolders()),
		Waiters:      partiesFromProto(answer.GetWaiters()),
	}, nil
}

func partiesFromProto(parties []*v1.LockParty) []LockParty {
	list := make([]LockParty, len(parties))
	for index, party := range parties {
		list[index] = LockParty{
			Name:         party.GetName(),
			FencingToken: party.GetFencingToken(),
			Since:        party.GetSinceTime().AsTime(),
			Foreign:      party.GetForeign(),
			TTL:          party.GetTtl().AsDuration(),
			Replica:      party.GetReplica(),
		}
	}
	return list
}
