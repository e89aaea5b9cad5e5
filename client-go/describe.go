package rollcall

import (
	"context"
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// LockDescription is who holds a lock and who waits for it.
type LockDescription struct {
	// Path is the path that was asked for.
	Path string
	// Simultaneous is how many may hold the lock at once; 0 when nobody has ever taken it.
	Simultaneous int
	// Holders are those who hold it, the earliest grant first.
	Holders []LockParty
	// Waiters are those who wait, in the order in which they will be served; the first of them, where all would be more
	// than fit in a message.
	Waiters []LockParty
}

// LockParty is one who holds a lock or waits for it.
type LockParty struct {
	// Name is what it calls itself.
	Name string
	// FencingToken is that of its grant; 0 for one who waits.
	FencingToken int64
	// Since is since when it has held the lock or waited, by ZooKeeper's clock.
	Since time.Time
	// Foreign tells that it did not come through Rollcall but, for one, through kazoo.
	Foreign bool
	// TTL is how long the lock outlives it; 0: not at all, or not known.
	TTL time.Duration
	// Replica is the name of the replica that keeps its lease or its place; empty where it is not known.
	Replica string
}

// DescribeLock tells who holds a lock and who waits for it, in order. It is a view of a moment: by the time you read
// it, others may hold the lock.
//
// Errors are of the reasons [NotALock] and those of every call.
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
