package rollcall

import (
	"sync/atomic"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// seen is the latest transaction that any answer has told of: what is read after that, on whichever replica, is not
// older. Revisions, generations and fencing tokens are all ZooKeeper's transactions.
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

// noteRegistration takes what a Register stream said.
func (s *seen) noteRegistration(message *v1.RegisterResponse) {
	s.note(message.GetRegistered().GetGeneration())
	s.noteStat(message.GetRegistered().GetStat())
	s.noteStat(message.GetOverwritten().GetStat())
}

// noteWatch takes a message of a watch.
func (s *seen) noteWatch(message *v1.WatchResponse) {
	if message.GetSnapshot().GetReset_() && message.GetRevision() > 0 {
		// What was known before means nothing now.
		s.latest.Store(message.GetRevision())
		return
	}
	s.note(message.GetRevision())
}

// ask has a Get ask for what is known, and returns that. The latest is what it is without that.
func (s *seen) ask(request *v1.GetRequest) int64 {
	known := s.latest.Load()
	if request.GetConsistency() != v1.Consistency_CONSISTENCY_LATEST {
		request.MinRevision = known
	}
	return known
}

// noteAnswer takes the answer to a Get; known is what ask returned for it.
func (s *seen) noteAnswer(known int64, answer *v1.GetResponse) {
	if answer.GetReset_() {
		// ZooKeeper has lost it. When it has changed meanwhile, there is something newer.
		s.latest.CompareAndSwap(known, 0)
	}
	s.note(answer.GetRevision())
}
