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

// noteAnswer takes the answer to a Get that asked for minRevision.
func (s *seen) noteAnswer(minRevision int64, answer *v1.GetResponse) {
	if answer.GetReset_() {
		// ZooKeeper has lost it. When it has changed meanwhile, there is something newer.
		s.latest.CompareAndSwap(minRevision, 0)
	}
	s.note(answer.GetRevision())
}
