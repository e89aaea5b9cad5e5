package rollcall

import (
	"google.golang.org/grpc/codes"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// regState holds, for each path of a session, the registration that is wanted, the request that was sent, and the
// answer. Pure: its owner locks it.
type regState struct {
	entries map[string]*entry
	// queue are the paths for which a request may be due, each once.
	queue []string
	// later are the paths for which a replica had no room. They are sent again.
	later []string
	// unanswered is the number of paths with a request that is not answered yet.
	unanswered int
	// withoutZooKeeper are those of them that wait for ZooKeeper, according to the present stream.
	withoutZooKeeper map[string]struct{}
}

// entry is a path and its present registration.
type entry struct {
	of        *Registration
	exclusive bool
	value     *v1.Value
	// accepted is the value that was last accepted, while another one is wanted.
	accepted *v1.Value
	leaving  bool
	// version is the version of the wanted value. It rises with each change.
	version int
	// said is the request that is not answered yet, on the present stream.
	said said
	// answered is the version that was answered on the present stream; unknown when none was.
	answered int
	// generation is the generation that was last received; 0 before.
	generation int64
	isQueued   bool
	// late is the number of sets that earlier streams have not answered. Each may still be carried out, once; another
	// replica then takes the path over, for us.
	late    int
	waiters []chan<- error
}

// said is nothing, an unset, or a set of some version.
type said struct {
	what    saidWhat
	version int
}

type saidWhat int

const (
	nothing saidWhat = iota
	saidSet
	saidUnset
)

// mostLate is the maximum number of its own late requests that a registration survives. It is larger than the usual
// number of replicas.
const mostLate = 8

const (
	// unknown is the version that stands for no value.
	unknown = -1
	// earlier is the version in a request that an earlier registration of the path has sent.
	earlier = -2
)

func newRegState() *regState {
	return &regState{entries: make(map[string]*entry), withoutZooKeeper: make(map[string]struct{})}
}

// add adds a registration. An existing registration of the same path ends: it has been taken over.
func (s *regState) add(of *Registration, value *v1.Value, exclusive bool, waiter chan<- error) error {
	before := s.entries[of.path]
	if exclusive && before != nil && !before.leaving {
		return &Error{
			Reason:  NameTaken,
			Code:    codes.AlreadyExists,
			Message: of.path + " is registered by this program",
		}
	}
	added := &entry{of: of, exclusive: exclusive, value: value, answered: unknown, waiters: []chan<- error{waiter}}
	if before != nil {
		// A request that is under way is still answered, and answers come in order.
		if before.said.what != nothing {
			added.said = said{saidSet, earlier}
		}
		added.isQueued = before.isQueued
		lost := &LostError{Path: of.path, Reason: LostTakenOver}
		if before.leaving {
			before.of.tell(State{Kind: Unregistered})
			before.answer(nil)
		} else {
			before.of.tell(State{Kind: Lost, Err: lost})
			before.answer(lost)
		}
	}
	s.entries[of.path] = added
	s.enqueue(of.path, added)
	return nil
}

// update changes the wanted value.
func (s *regState) update(of *Registration, value *v1.Value, waiter chan<- error) bool {
	entry := s.entry(of)
	if entry == nil || entry.leaving {
		return false
	}
	if entry.accepted == nil {
		entry.accepted = entry.value
	}
	entry.value = value
	entry.version++
	entry.answered = unknown
	entry.waiters = append(entry.waiters, waiter)
	s.enqueue(of.path, entry)
	return true
}

// remove asks for the end of a registration.
func (s *regState) remove(of *Registration, waiter chan<- error) {
	entry := s.entry(of)
	if entry == nil {
		waiter <- nil
		return
	}
	if !entry.leaving {
		// A caller that waits for an update waits in vain.
		entry.answer(closed(of.path))
	}
	entry.leaving = true
	entry.waiters = append(entry.waiters, waiter)
	s.enqueue(of.path, entry)
}

func (s *regState) isEmpty() bool { return len(s.entries) == 0 }

// isSettled reports whether everything that is wanted has been answered on the present stream.
func (s *regState) isSettled() bool { return len(s.queue) == 0 && s.unanswered == 0 }

// isWithoutZooKeeper reports whether the replica of the present stream keeps a request waiting because it has no
// ZooKeeper.
func (s *regState) isWithoutZooKeeper() bool { return len(s.withoutZooKeeper) > 0 }

// begin begins a new stream, on which everything is sent again.
func (s *regState) begin() {
	s.later, s.queue, s.unanswered = nil, s.queue[:0], 0
	clear(s.withoutZooKeeper)
	for path, entry := range s.entries {
		if entry.said.what == saidSet {
			entry.late = min(entry.late+1, mostLate)
		}
		entry.said, entry.answered, entry.isQueued = said{}, unknown, true
		s.queue = append(s.queue, path)
	}
}

// next is the next request to send on the present stream; nil when there is none.
func (s *regState) next() *v1.RegisterRequest {
	for len(s.queue) > 0 {
		path := s.queue[0]
		s.queue = s.queue[1:]
		entry := s.entries[path]
		if entry == nil {
			continue
		}
		entry.isQueued = false
		if entry.said.what != nothing || (!entry.leaving && entry.answered == entry.version) {
			continue
		}
		s.unanswered++
		// A registration that another replica may still hold is taken from it before it is taken down.
		isHeldElsewhere := entry.answered == unknown && entry.generation != 0
		if entry.leaving && !isHeldElsewhere {
			entry.said = said{what: saidUnset}
			unset := &v1.UnsetRegistration{Path: path}
			return &v1.RegisterRequest{Request: &v1.RegisterRequest_Unset{Unset: unset}}
		}
		entry.said = said{saidSet, entry.version}
		set := &v1.SetRegistration{Path: path, Value: entry.value, Exclusive: entry.exclusive}
		if generation := entry.generation; generation != 0 {
			set.Generation = &generation
		}
		return &v1.RegisterRequest{Request: &v1.RegisterRequest_Set{Set: set}}
	}
	s.queue = nil
	return nil
}

// tryAgain sends the requests again for which a replica had no room.
func (s *regState) tryAgain() {
	for _, path := range s.later {
		if entry := s.entries[path]; entry != nil {
			s.enqueue(path, entry)
		}
	}
	s.later = nil
}

// doubt records that it is no longer certain that anything is registered.
func (s *regState) doubt() { s.doubtThose(func(*entry) bool { return true }) }

// doubtTheRest does the same for the registrations that were not answered on the present stream.
func (s *regState) doubtTheRest() {
	s.doubtThose(func(entry *entry) bool { return entry.answered == unknown })
}

func (s *regState) doubtThose(concerns func(*entry) bool) {
	for _, entry := range s.entries {
		if concerns(entry) && entry.of.State().IsRegistered() {
			entry.of.tell(State{Kind: Pending})
		}
	}
}

// refuse records that a replica refuses to open a stream. Registrations that were never made end with the refusal; the
// others are tried again.
func (s *regState) refuse(refusal *Error) {
	for path, entry := range s.entries {
		if entry.generation == 0 {
			s.end(path, refusal, &LostError{Path: path, Reason: LostRefused, cause: refusal})
		}
	}
}

func (s *regState) entry(of *Registration) *entry {
	if entry := s.entries[of.path]; entry != nil && entry.of == of {
		return entry
	}
	return nil
}

func (s *regState) enqueue(path string, entry *entry) {
	if !entry.isQueued {
		entry.isQueued = true
		s.queue = append(s.queue, path)
	}
}

// sayAgain records that the answer of the present stream about a path no longer holds.
func (s *regState) sayAgain(path string, entry *entry) {
	s.heard(entry)
	entry.answered = unknown
	entry.of.tell(State{Kind: Pending})
	s.enqueue(path, entry)
}

// heard records that the request was answered, and returns that request.
func (s *regState) heard(entry *entry) said {
	was := entry.said
	if was.what != nothing {
		entry.said = said{}
		s.unanswered--
		delete(s.withoutZooKeeper, entry.of.path)
	}
	return was
}

// end ends a registration without a request of the program, unless the program has meanwhile asked for its end.
func (s *regState) end(path string, answer error, lost *LostError) {
	entry := s.entries[path]
	delete(s.entries, path)
	s.heard(entry)
	if entry.leaving {
		entry.of.tell(State{Kind: Unregistered})
		entry.answer(nil)
		return
	}
	entry.of.tell(State{Kind: Lost, Err: lost})
	entry.answer(answer)
}

// answer answers all waiters. Each channel has room for one answer, and no waiter gets two. The state is published
// first, so that a waiter that has its answer finds the matching state.
func (e *entry) answer(answer error) {
	for _, waiter := range e.waiters {
		waiter <- answer
	}
	e.waiters = nil
}
