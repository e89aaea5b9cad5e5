package rollcall

import (
	"sync/atomic"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// seen is the latest transaction that any answer has shown. Later reads, on any replica, are not older. Revisions,
// generations and fencing tokens are all ZooKeeper transactions.
type seen struct{ latest atomic.Int64 }

func (s *seen) note(transaction int64) {
	for {
		latest := s.latest.Load()
		if transaction <= latest || s.latest.CompareAndSwap(latest, transaction) {
			return
		}
	}
}

func (s *seen) noteStat(stat *v1.Stat) { s.note(max(stat.GetCzxid(), stat.GetMzxid())) }

// noteRegistration takes in a message of a Register stream.
func (s *seen) noteRegistration(message *v1.RegisterResponse) {
	s.note(message.GetRegistered().GetGeneration())
	s.noteStat(message.GetRegistered().GetStat())
	s.noteStat(message.GetOverwritten().GetStat())
}

// noteWatch takes in a message of a watch.
func (s *seen) noteWatch(message *v1.WatchResponse) {
	if message.GetSnapshot().GetReset_() && message.GetRevision() > 0 {
		// ZooKeeper went back: the transactions known before mean nothing now.
		s.latest.Store(message.GetRevision())
		return
	}
	s.note(message.GetRevision())
}

// ask has a Get ask for the latest known transaction, and returns that. A latest lookup needs no such request.
func (s *seen) ask(request *v1.GetRequest) int64 {
	known := s.latest.Load()
	if request.GetConsistency() != v1.Consistency_CONSISTENCY_LATEST {
		request.MinRevision = known
	}
	return known
}

// noteAnswer takes in the answer to a Get; known is the result of ask for it.
func (s *seen) noteAnswer(known int64, answer *v1.GetResponse) {
	if answer.GetReset_() {
		// ZooKeeper has lost that transaction. If the value has changed meanwhile, there is a newer one.
		s.latest.CompareAndSwap(known, 0)
	}
	s.note(answer.GetRevision())
}
