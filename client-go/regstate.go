package rollcall

import (
	"google.golang.org/grpc/codes"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// regState is what is wished, what was said, and what was answered, for each path of a session. Pure: its owner locks
// it.
type regState struct {
	entries map[string]*entry
	// queue are the paths about which there may be something to say, each once.
	queue []string
	// later are the paths that a replica had no room for: they are said again.
	later []string
	// unanswered is how many paths have something said that was not answered.
	unanswered int
	// withoutZooKeeper are those of them that wait for ZooKeeper, as the present stream says.
	withoutZooKeeper map[string]struct{}
}

// entry is one path, and the registration that has it now.
type entry struct {
	of        *Registration
	exclusive bool
	value     *v1.Value
	// accepted is the value that was last answered, while another one is wished.
	accepted *v1.Value
	leaving  bool
	// version is which value is wished: it rises with each.
	version int
	// said is what was said and not answered, on the present stream.
	said said
	// answered is what of the wish was answered on the present stream; unknown when nothing was.
	answered int
	// generation is the last one that we were given; 0 before.
	generation int64
	isQueued   bool
	// late is how many sets, said on earlier streams and not answered, may still be carried out, each once: another
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

// mostLate is how many late requests of its own a registration survives: more than there are replicas, mostly.
const mostLate = 8

const (
	// unknown is the version of no value.
	unknown = -1
	// earlier is the version of something that an earlier registration of the path has said.
	earlier = -2
)

func newRegState() *regState {
	return &regState{entries: make(map[string]*entry), withoutZooKeeper: make(map[string]struct{})}
}

// add adds a registration. One that stands for the same path is over: the path was taken from it.
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
		// What is under way is still answered, and answers come in order.
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

// update wishes another value.
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

// remove wishes it gone.
func (s *regState) remove(of *Registration, waiter chan<- error) {
	entry := s.entry(of)
	if entry == nil {
		waiter <- nil
		return
	}
	if !entry.leaving {
		// Whoever waits for an update waits in vain.
		entry.answer(closed(of.path))
	}
	entry.leaving = true
	entry.waiters = append(entry.waiters, waiter)
	s.enqueue(of.path, entry)
}

func (s *regState) isEmpty() bool { return len(s.entries) == 0 }

// isSettled tells whether everything that is wished was answered on the present stream.
func (s *regState) isSettled() bool { return len(s.queue) == 0 && s.unanswered == 0 }

// isWithoutZooKeeper tells whether the present stream's replica keeps something waiting since it has no ZooKeeper.
func (s *regState) isWithoutZooKeeper() bool { return len(s.withoutZooKeeper) > 0 }

// begin: a new stream, on which everything is said again.
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

// next is the next thing to say on the present stream; nil when there is nothing.
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
		// What another replica may still hold is taken from it before it is taken down.
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

// tryAgain says again what a replica had no room for.
func (s *regState) tryAgain() {
	for _, path := range s.later {
		if entry := s.entries[path]; entry != nil {
			s.enqueue(path, entry)
		}
	}
	s.later = nil
}

// doubt: it is not certain any more that anything is registered.
func (s *regState) doubt() { s.doubtThose(func(*entry) bool { return true }) }

// doubtTheRest is the same of what was not answered on the present stream.
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

// refuse: a replica refuses to open a stream. Who has never been registered is told, the others are tried again.
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

// sayAgain: what the present stream has answered about a path does not hold any more.
func (s *regState) sayAgain(path string, entry *entry) {
	s.heard(entry)
	entry.answered = unknown
	entry.of.tell(State{Kind: Pending})
	s.enqueue(path, entry)
}

// heard: what was said is answered. It gives what that was.
func (s *regState) heard(entry *entry) said {
	was := entry.said
	if was.what != nothing {
		entry.said = said{}
		s.unanswered--
		delete(s.withoutZooKeeper, entry.of.path)
	}
	return was
}

// end: it is over, and not because the program has asked for it; unless it has meanwhile.
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

// answer tells all who wait. There is room for one answer in each channel, and nobody gets two. The state is told before:
// whoever has an answer finds the state that goes with it.
func (e *entry) answer(answer error) {
	for _, waiter := range e.waiters {
		waiter <- answer
	}
	e.waiters = nil
}
