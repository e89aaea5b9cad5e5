package rollcall

import (
	"context"
	"sync"
	"time"
)

const (
	// registrationTTL is the default time for which a registration outlives its program.
	registrationTTL = 15 * time.Second
	shortestTTL     = time.Second
	longestTTL      = 10 * time.Minute
)

// StateKind is the kind of a registration's state.
type StateKind int

// The states of a registration.
const (
	// Pending means that the path is not registered yet, or perhaps no longer: no replica, or no ZooKeeper, can be
	// reached. The client goes on trying.
	Pending StateKind = iota
	// Registered means that the path is registered.
	Registered
	// Overwritten means that the path is registered, but somebody else has written other data into the node. The server
	// writes yours again after a second, and after twice as long each further time, up to 10 minutes; then Registered
	// follows. The next Update writes yours at once.
	Overwritten
	// Lost means that the registration is gone for good; the client does not bring it back.
	Lost
	// Unregistered means that the registration was taken down at the program's request.
	Unregistered
)

// String returns the name of the kind.
func (k StateKind) String() string {
	return [...]string{"pending", "registered", "overwritten", "lost", "unregistered"}[k]
}

// State is the state of a registration.
type State struct {
	// Kind is the kind of the state. The other fields belong to it.
	Kind StateKind
	// Generation is the generation of the registration; later ones are larger. Of Registered and Overwritten.
	Generation int64
	// Value is the present value of the node; nil when it is empty. Of Overwritten.
	Value Value
	// Err is a *[LostError] with the cause. Of Lost.
	Err error
}

// IsRegistered reports whether the path is registered, as far as is known.
func (s State) IsRegistered() bool { return s.Kind == Registered || s.Kind == Overwritten }

func (s State) isOver() bool { return s.Kind == Lost || s.Kind == Unregistered }

// Registration is a path that is registered until it is closed or lost. It is safe for concurrent use.
type Registration struct {
	path    string
	session *session
	// began is when the registration began, as its data says.
	began time.Time

	mu     sync.Mutex
	state  State
	states chan State
}

// Register registers a path, and waits until that is done. data is [Data] or anything that encoding/json makes an
// object of; or a string or [Text], bytes or [Raw]; nil is an empty object. The keys pid and created are added to an
// object that does not have them. Missing parents are created.
//
// The registration is kept until it is closed, the client is closed, or the program ends; the context bounds only the
// wait. When a replica stops or dies, the client resumes the registration at another by its generation, so that no
// watcher misses it for a moment. Registering a path that another client holds takes it over: a service that restarts
// on the same host and port needs that. The older registration is Lost and does not fight back. See [Exclusive] for the
// opposite.
//
// Errors have the reason [Invalid], [NameTaken], [NotEphemeral], [ValueTooLarge], [InvalidPath], those of every call,
// or [Unreachable]: no replica or no ZooKeeper could be reached in time. Nothing is left then; use [InBackground] to go
// on trying. A *[LostError] means that another registration has taken the path meanwhile.
func (c *Client) Register(ctx context.Context, path string, data any, opts ...RegisterOption) (*Registration, error) {
	settings := registerSettings{ttl: registrationTTL}
	for _, option := range opts {
		option.applyRegister(&settings)
	}
	if err := checkTTL(settings.ttl); err != nil {
		return nil, err
	}
	value, err := valueToProto(data)
	if err != nil {
		return nil, err
	}
	registration := &Registration{path: path, began: time.Now(), states: make(chan State, 1)}
	registration.session = c.sessionOf(settings.ttl)
	waiter := make(chan error, 1)
	value = withCreated(value, registration.began)
	if err := checkSent(path, value); err != nil {
		return nil, err
	}
	if err := registration.session.add(registration, value, settings.exclusive, waiter); err != nil {
		return nil, err
	}
	if settings.lazy {
		return registration, nil
	}
	if err := registration.session.await(ctx, waiter); err != nil {
		registration.session.remove(registration, make(chan error, 1))
		return nil, err
	}
	return registration, nil
}

func checkTTL(ttl time.Duration) error {
	if ttl != 0 && (ttl < shortestTTL || ttl > longestTTL) {
		return invalid("ttl %v: it must be from 1 second to 10 minutes, or 0", ttl)
	}
	return nil
}

// Path is the registered path.
func (r *Registration) Path() string { return r.path }

// State is the present state.
func (r *Registration) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// States returns the channel of states, as they change. There is one channel for each registration, so with several
// receivers each state goes to one of them. A state that was not received before the next is skipped. The channel is
// closed after Lost or Unregistered.
func (r *Registration) States() <-chan State { return r.states }

// Update changes the data, and waits until the change is made. Watchers see one change; of several updates the last one
// wins. data is as for [Client.Register]; the key created keeps its first value.
//
// Errors are as for Register. After a refusal the node keeps the old data. After [Unreachable], or when the context
// ends, the client goes on trying to write the new data. A *[LostError] or the reason [Closed] means that the
// registration no longer exists.
func (r *Registration) Update(ctx context.Context, data any) error {
	value, err := valueToProto(data)
	if err != nil {
		return err
	}
	value = withCreated(value, r.began)
	if err := checkSent(r.path, value); err != nil {
		return err
	}
	waiter := make(chan error, 1)
	if !r.session.update(r, value, waiter) {
		if state := r.State(); state.Kind == Lost {
			return state.Err
		}
		return closed(r.path)
	}
	return r.session.await(ctx, waiter)
}

// Close takes the registration down, and waits until it is gone. It may be called more than once.
//
// An error has the reason [Unreachable], or is the context's: no replica could be reached in time. Then the client goes
// on trying; at the latest the registration goes with its ttl.
func (r *Registration) Close(ctx context.Context) error {
	waiter := make(chan error, 1)
	r.session.remove(r, waiter)
	return r.session.await(ctx, waiter)
}

// tell publishes a state, if it is news.
func (r *Registration) tell(state State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	isNews := state.Kind != r.state.Kind || state.Generation != r.state.Generation || state.Kind == Overwritten
	if !isNews || r.state.isOver() {
		return
	}
	r.state = state
	select {
	case <-r.states:
	default:
	}
	// There is room, since nobody else sends.
	r.states <- state
	if state.isOver() {
		close(r.states)
	}
}
