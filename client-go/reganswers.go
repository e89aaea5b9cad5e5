package rollcall

import (
	"google.golang.org/grpc/codes"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// take takes in a message of the present stream about a path.
func (s *regState) take(message *v1.RegisterResponse) {
	switch response := message.GetResponse().(type) {
	case *v1.RegisterResponse_Registered:
		s.registered(response.Registered)
	case *v1.RegisterResponse_Unregistered:
		s.unregistered(response.Unregistered.GetPath())
	case *v1.RegisterResponse_Pending:
		s.pending(response.Pending)
	case *v1.RegisterResponse_Overwritten:
		s.overwritten(response.Overwritten)
	case *v1.RegisterResponse_Lost:
		s.lost(response.Lost)
	case *v1.RegisterResponse_Rejected:
		s.rejected(response.Rejected)
	}
}

func (s *regState) pending(told *v1.Pending) {
	entry := s.entries[told.GetPath()]
	if entry == nil {
		return
	}
	if entry.said.what != nothing && Reason(told.GetReason()) == BackendUnavailable {
		s.withoutZooKeeper[told.GetPath()] = struct{}{}
	}
	entry.of.tell(State{Kind: Pending})
}

func (s *regState) registered(told *v1.Registered) {
	entry := s.entries[told.GetPath()]
	if entry == nil {
		return
	}
	entry.generation = told.GetGeneration()
	isEarlier, isWished := false, false
	if !told.GetRestored() && entry.said.what == saidSet {
		version := s.heard(entry).version
		entry.answered, isEarlier, isWished = version, version == earlier, version == entry.version
	}
	if !entry.leaving && !isEarlier {
		entry.of.tell(State{Kind: Registered, Generation: told.GetGeneration()})
	}
	if isWished {
		entry.accepted = nil
		if !entry.leaving {
			entry.answer(nil)
		}
	}
	if entry.leaving || entry.answered != entry.version {
		s.enqueue(told.GetPath(), entry)
	}
}

func (s *regState) unregistered(path string) {
	entry := s.entries[path]
	if entry == nil {
		return
	}
	if was := s.heard(entry); was.what == saidUnset && entry.leaving {
		entry.of.tell(State{Kind: Unregistered})
		entry.answer(nil)
		delete(s.entries, path)
		return
	}
	// An earlier registration of the path is gone; the present one is still to be sent.
	entry.answered = unknown
	s.enqueue(path, entry)
}

func (s *regState) overwritten(told *v1.Overwritten) {
	entry := s.entries[told.GetPath()]
	if entry != nil && !entry.leaving && entry.generation != 0 {
		entry.of.tell(State{
			Kind:       Overwritten,
			Generation: entry.generation,
			Value:      valueFromProto(told.GetValue()),
		})
	}
}

func (s *regState) lost(told *v1.Lost) {
	path := told.GetPath()
	entry := s.entries[path]
	if entry == nil {
		return
	}
	reason := LostTakenOver
	switch told.GetReason() {
	case v1.LostReason_LOST_REASON_EXPIRED:
		// No other client has it, so it is registered again.
		s.sayAgain(path, entry)
		return
	case v1.LostReason_LOST_REASON_REMOVED:
		reason = LostRemoved
	case v1.LostReason_LOST_REASON_EVICTED:
		reason = LostEvicted
	case v1.LostReason_LOST_REASON_SESSION_LOST:
		reason = LostSession
	}
	if entry.generation != 0 && told.GetGeneration() < entry.generation {
		// It concerns an earlier registration of this path, or one that has been made again since.
		return
	}
	if reason == LostTakenOver && entry.late > 0 {
		// The path may have been taken over by ourselves. A replica that is asked once more answers by the node that exists
		// there.
		entry.late--
		s.sayAgain(path, entry)
		return
	}
	lost := &LostError{Path: path, Reason: reason}
	s.end(path, lost, lost)
}

func (s *regState) rejected(told *v1.Rejected) {
	path := told.GetPath()
	entry := s.entries[path]
	if entry == nil || entry.said.what != saidSet {
		return
	}
	version := s.heard(entry).version
	// The reason counts, whatever the code is.
	refusal := &Error{Reason: Reason(told.GetReason()), Code: codes.Code(told.GetCode()), Message: told.GetMessage()}
	switch isHeld := entry.generation != 0; {
	case version != entry.version:
		s.enqueue(path, entry)
	case entry.leaving:
		// There is no node of ours; the answer to an unset makes it certain.
		entry.generation, entry.answered = 0, unknown
		s.enqueue(path, entry)
	case isHeld && entry.accepted != nil:
		// The node keeps the value that was accepted earlier.
		entry.value, entry.accepted, entry.answered = entry.accepted, nil, unknown
		entry.answer(refusal)
		s.enqueue(path, entry)
	case isHeld && (refusal.Code == codes.ResourceExhausted || refusal.Code == codes.Unavailable):
		entry.of.tell(State{Kind: Pending})
		s.later = append(s.later, path)
	case refusal.Reason == Evicted:
		s.end(path, refusal, &LostError{Path: path, Reason: LostEvicted, cause: refusal})
	default:
		s.end(path, refusal, &LostError{Path: path, Reason: LostRefused, cause: refusal})
	}
}
