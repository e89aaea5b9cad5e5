package rollcall

import "time"

// The options of calls. The interface of an option gives the calls that accept it.
type (
	// GetOption is a setting of [Client.Get]: [Recursive], [Latest], [Wait].
	GetOption interface{ applyGet(*getSettings) }
	// WatchOption is a setting of [Client.Watch]: [Recursive], [After].
	WatchOption interface{ applyWatch(*watchSettings) }
	// RegisterOption is a setting of [Client.Register]: [TTL], [Exclusive], [InBackground].
	RegisterOption interface{ applyRegister(*registerSettings) }
	// LockOption is a setting of [Client.Lock]: [TTL], [Wait], [Simultaneous], [Name], [OnQueued].
	LockOption interface{ applyLock(*lockSettings) }
	// PutOption is a setting of [Client.Put]: [IfVersion], [CreateOnly].
	PutOption interface{ applyPut(*putSettings) }
	// DeleteOption is a setting of [Client.Delete]: [IfVersion], [Recursive].
	DeleteOption interface{ applyDelete(*deleteSettings) }
)

type (
	getSettings struct {
		recursive, latest bool
		wait              time.Duration
	}
	watchSettings struct {
		recursive bool
		after     *View
	}
	registerSettings struct {
		ttl       time.Duration
		exclusive bool
		lazy      bool
	}
	lockSettings struct {
		ttl          time.Duration
		wait         *time.Duration
		simultaneous uint32
		name         string
		onQueued     func(Place)
	}
	putSettings struct {
		version    *int32
		createOnly bool
	}
	deleteSettings struct {
		version   *int32
		recursive bool
	}
)

// RecursiveOption is an option of Get, Watch and Delete.
type RecursiveOption interface {
	GetOption
	WatchOption
	DeleteOption
}

type recursive struct{}

// Recursive includes everything below the node. The names in an answer are then relative paths such as a/b.
func Recursive() RecursiveOption { return recursive{} }

func (recursive) applyGet(s *getSettings)       { s.recursive = true }
func (recursive) applyWatch(s *watchSettings)   { s.recursive = true }
func (recursive) applyDelete(s *deleteSettings) { s.recursive = true }

type latest struct{}

// Latest makes a lookup see every write that was acknowledged earlier, at the cost of a round trip to ZooKeeper.
func Latest() GetOption { return latest{} }

func (latest) applyGet(s *getSettings) { s.latest = true }

// WaitOption is an option of Get and Lock.
type WaitOption interface {
	GetOption
	LockOption
}

type wait time.Duration

// Wait makes a lookup wait until the node has a child, for at most this time; then the answer is the present state. By
// default a lookup does not wait. Wait makes a lock wait for at most this time; 0 tries, and takes no place in the
// queue. By default a lock waits for ever.
func Wait(atMost time.Duration) WaitOption { return wait(max(atMost, 0)) }

func (w wait) applyGet(s *getSettings)   { s.wait = time.Duration(w) }
func (w wait) applyLock(s *lockSettings) { s.wait = (*time.Duration)(&w) }

type after struct{ view *View }

// After makes a watch go on from a state that is known by an earlier lookup or update of the same path with the same
// [Recursive]. The first update is then the first change since, not the full state.
func After(view *View) WatchOption { return after{view} }

func (a after) applyWatch(s *watchSettings) { s.after = a.view }

// TTLOption is an option of Register and Lock.
type TTLOption interface {
	RegisterOption
	LockOption
}

type ttl time.Duration

// TTL is the time for which a registration or a lock outlives a program that has died or lost every replica, from 1
// second to 10 minutes. Default: 15 seconds for a registration, 30 for a lock. Within that time a replica may be
// replaced unnoticed. With 0 it goes at once when the connection to the replica ends, for whatever reason.
func TTL(d time.Duration) TTLOption { return ttl(d) }

func (t ttl) applyRegister(s *registerSettings) { s.ttl = time.Duration(t) }
func (t ttl) applyLock(s *lockSettings)         { s.ttl = time.Duration(t) }

type exclusive struct{}

// Exclusive does not take over an existing registration: [Client.Register] then fails, reason [NameTaken].
func Exclusive() RegisterOption { return exclusive{} }

func (exclusive) applyRegister(s *registerSettings) { s.exclusive = true }

type inBackground struct{}

// InBackground does not wait until the path is registered. [Registration.States] shows the outcome, and the client
// tries until the path is registered or refused. A service then starts whether or not there is a replica.
func InBackground() RegisterOption { return inBackground{} }

func (inBackground) applyRegister(s *registerSettings) { s.lazy = true }

type simultaneous uint32

// Simultaneous is the maximum number of holders at once. All users of the path must give the same number. Default: 1.
func Simultaneous(n uint32) LockOption { return simultaneous(n) }

func (n simultaneous) applyLock(s *lockSettings) { s.simultaneous = uint32(n) }

type name string

// Name is the name that the other users of the lock see. Default: the client's name.
func Name(who string) LockOption { return name(who) }

func (n name) applyLock(s *lockSettings) { s.name = string(n) }

type onQueued func(Place)

// OnQueued calls tell with the place in the queue for a lock, and with each later place, from the goroutine that waits.
func OnQueued(tell func(Place)) LockOption { return onQueued(tell) }

func (tell onQueued) applyLock(s *lockSettings) { s.onQueued = tell }

// IfVersionOption is an option of Put and Delete.
type IfVersionOption interface {
	PutOption
	DeleteOption
}

type ifVersion int32

// IfVersion writes or deletes only if the node exists and its Stat has this Version.
func IfVersion(version int32) IfVersionOption { return ifVersion(version) }

func (v ifVersion) applyPut(s *putSettings)       { s.version = (*int32)(&v) }
func (v ifVersion) applyDelete(s *deleteSettings) { s.version = (*int32)(&v) }

type createOnly struct{}

// CreateOnly writes only if the node does not exist yet.
func CreateOnly() PutOption { return createOnly{} }

func (createOnly) applyPut(s *putSettings) { s.createOnly = true }
