package rollcall

import (
	"context"
	"sync"
	"time"
)

const (
	// registrationTTL is how long a registration outlives its program, unless it is told otherwise.
	registrationTTL = 15 * time.Second
	shortestTTL     = time.Second
	longestTTL      = 10 * time.Minute
)

// StateKind is how a registration stands.
type StateKind int

// How a registration can stand.
const (
	// Pending: not registered yet, or perhaps no more: no replica, or no ZooKeeper, can be reached. The client goes on
	// trying.
	Pending StateKind = iota
	// Registered: it stands.
	Registered
	// Overwritten: it stands, but somebody else has written other data into the node. The server writes yours again after
	// a second, and after twice as long each further time, up to 10 minutes; Registered follows then. The next Update
	// writes yours at once.
	Overwritten
	// Lost: gone for good, and the client does not bring it back.
	Lost
	// Unregistered: taken down, as the program asked.
	Unregistered
)

// String names the kind.
func (k StateKind) String() string {
	return [...]string{"pending", "registered", "overwritten", "lost", "unregistered"}[k]
}

// State is how a registration stands.
type State struct {
	// Kind is what the other fields belong to.
	Kind StateKind
	// Generation is which incarnation stands; later ones are larger. Of Registered and Overwritten.
	Generation int64
	// Value is what the node holds now; nil when it is empty. Of Overwritten.
	Value Value
	// Err is a *[LostError] that says why. Of Lost.
	Err error
}

// IsRegistered tells whether the path is registered, by all that is known.
func (s State) IsRegistered() bool { return s.Kind == Registered || s.Kind == Overwritten }

func (s State) isOver() bool { return s.Kind == Lost || s.Kind == Unregistered }

// Registration is a path that is registered until it is closed or lost. It is safe for use by any number of goroutines.
type Registration struct {
	path    string
	session *session
	// began is when the registration did, as its data says.
	began time.Time

	mu     sync.Mutex
	state  State
	states chan State
}

// Register registers a path, and waits until that is done. data is [Data] or anything that encoding/json makes an
// object of; or a string or [Text], bytes or [Raw]; nil is an empty object. The keys pid and created are added to an
// object that does not have them. Missing parents are made.
//
// The registration stands until it is closed, the client is closed, or the program ends; the context bounds the waiting
// alone. The client keeps it: when a replica stops or dies it goes on at another, by its generation, so that nobody who
// watches misses it for a moment. Who registers a path that another holds takes it over, as a service needs that
// restarts on the same host and port; the older one is Lost and does not fight back. See [Exclusive] for the opposite.
//
// Errors are of the reasons [Invalid], [NameTaken], [NotEphemeral], [ValueTooLarge], [InvalidPath], those of every
// call, and [Unreachable]: no replica or no ZooKeeper could be reached in time. Nothing is left then; use
// [InBackground] to go on trying. A *[LostError] says that another registration has taken the path meanwhile.
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

// State is how it stands now.
func (r *Registration) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// States tells how it stands, as it changes. There is one channel a registration: of several receivers each state comes
// to one. A state that was not received before the next is skipped. The channel is closed after Lost or Unregistered.
func (r *Registration) States() <-chan State { return r.states }

// Update changes the data, and waits until that is done. Who watches sees one change; of several updates the last one
// stands. data is as of [Client.Register]; the key created keeps its first value.
//
// Errors are as of Register. After a refusal the old data stands. After [Unreachable], or when the context ends, the
// client goes on trying to write the new. A *[LostError] or reason [Closed]: there is no registration any more.
func (r *Registration) Update(ctx context.Context, data any) error {
	value, err := valueToProto(data)
	if err != nil {
		return err
	}
	waiter := make(chan error, 1)
	if !r.session.update(r, withCreated(value, r.began), waiter) {
		if state := r.State(); state.Kind == Lost {
			return state.Err
		}
		return closed(r.path)
	}
	return r.session.await(ctx, waiter)
}

// Close takes the registration down, and waits until it is gone. It may be called more than once.
//
// An error is of reason [Unreachable], or the context's: no replica could be told in time. The client goes on trying;
// at the latest the registration goes with its ttl.
func (r *Registration) Close(ctx context.Context) error {
	waiter := make(chan error, 1)
	r.session.remove(r, waiter)
	return r.session.await(ctx, waiter)
}

// tell makes a state known, unless it is no news.
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
	// There is room: nobody else sends.
	r.states <- state
	if state.isOver() {
		close(r.states)
	}
}
