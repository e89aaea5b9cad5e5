package rollcall

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reason says why a call failed, in a word that never changes. It is an error itself, so that errors.Is(err, LockBusy)
// tells whether that was the reason.
type Reason string

// The reasons that replicas give. Which call gives which is told in registry.proto.
const (
	// InvalidPath says that the path is none, or can't be used for this.
	InvalidPath Reason = "INVALID_PATH"
	// ValueTooLarge says that the value is over the replica's limit.
	ValueTooLarge Reason = "VALUE_TOO_LARGE"
	// InvalidTTL says that the ttl is not between 1 second and 10 minutes.
	InvalidTTL Reason = "INVALID_TTL"
	// Protocol says that the request breaks the rules.
	Protocol Reason = "PROTOCOL"
	// NoNode says that the node does not exist.
	NoNode Reason = "NO_NODE"
	// LockLost says that the lock is over, or was never held under this id.
	LockLost Reason = "LOCK_LOST"
	// VersionMismatch says that the node has another version.
	VersionMismatch Reason = "VERSION_MISMATCH"
	// LockBusy says that the lock was not granted in the time that was given.
	LockBusy Reason = "LOCK_BUSY"
	// Superseded says that another stream has come for the same lock.
	Superseded Reason = "SUPERSEDED"
	// SessionExpired says that nothing was heard from the client for the ttl.
	SessionExpired Reason = "SESSION_EXPIRED"
	// PageExpired says that the state that a page belongs to is gone.
	PageExpired Reason = "PAGE_EXPIRED"
	// NameTaken says that the name is registered by another, and [Exclusive] was asked for.
	NameTaken Reason = "NAME_TAKEN"
	// NodeExists says that the node exists, and was to be created.
	NodeExists Reason = "NODE_EXISTS"
	// LockLimitDiffers says that the lock may be held by another number at once.
	LockLimitDiffers Reason = "LOCK_LIMIT_DIFFERS"
	// NotALock says that the path holds something else than a lock.
	NotALock Reason = "NOT_A_LOCK"
	// NotEphemeral says that a durable node stands where a registration should go.
	NotEphemeral Reason = "NOT_EPHEMERAL"
	// NotEmpty says that the node has children.
	NotEmpty Reason = "NOT_EMPTY"
	// HasRegistrations says that a registration, or a lock's node, is in the way.
	HasRegistrations Reason = "HAS_REGISTRATIONS"
	// Evicted says that an operator keeps the path from being registered for a time.
	Evicted Reason = "EVICTED"
	// NoAuth says that ZooKeeper's access control forbids it.
	NoAuth Reason = "NO_AUTH"
	// Rule says that a rule of the replica forbids it.
	Rule Reason = "RULE"
	// ReadOnly says that the replica takes no writes, locks or registrations.
	ReadOnly Reason = "READ_ONLY"
	// BackendUnavailable says that ZooKeeper can't be reached.
	BackendUnavailable Reason = "BACKEND_UNAVAILABLE"
	// Draining says that the replica is about to stop.
	Draining Reason = "DRAINING"
	// OutcomeUnknown says that a write may or may not have been made: read before you try again. The client gives it
	// too, when the connection broke after the write was sent.
	OutcomeUnknown Reason = "OUTCOME_UNKNOWN"
	// Quota says that a quota that is set in ZooKeeper forbids it.
	Quota Reason = "QUOTA"
)

// The reasons that the client itself gives.
const (
	// Invalid says that it can't be asked for like this; nothing was sent.
	Invalid Reason = "INVALID"
	// Unreachable says that no replica gave an answer in time. Nothing was written.
	Unreachable Reason = "UNREACHABLE"
	// Closed says that the client, the registration or the lock was closed by the program.
	Closed Reason = "CLOSED"
)

// Error returns the reason's word.
func (r Reason) Error() string { return string(r) }

// Error is why a call failed.
type Error struct {
	// Reason is what to decide by. From something else than a replica, such as a proxy, it is the name of the status
	// code.
	Reason Reason
	// Code is the gRPC status code.
	Code codes.Code
	// Message is the cause, for a human reader; its wording may change.
	Message string
	// Metadata says more about it, by key, such as path, actual_version or holders. May be nil.
	Metadata map[string]string
	// RetryAfter is how long the replica asks to wait before the call is tried again; 0 when it does not.
	RetryAfter time.Duration

	cause error
}

// Error says what happened, in a form for people.
func (e *Error) Error() string {
	switch {
	case e.Message == "":
		return "rollcall: " + string(e.Reason)
	case e.cause != nil:
		return fmt.Sprintf("rollcall: %s: %v", e.Message, e.cause)
	}
	return "rollcall: " + e.Message
}

// Unwrap gives the Reason and, where there is one, the cause, such as the context's error.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.cause}
}

// GRPCStatus gives the error as a gRPC status, so that status.Code(err) works.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// Retryable tells whether the same call may well succeed later. It is never so where it is not known if a write was
// made.
func (e *Error) Retryable() bool {
	switch e.Reason {
	case LockBusy, PageExpired, Unreachable:
		return true
	case OutcomeUnknown, Closed:
		return false
	}
	return e.RetryAfter > 0 || e.Code == codes.Unavailable || e.Code == codes.ResourceExhausted
}

// Retryable tells whether the call that gave the error may well succeed later.
func Retryable(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Retryable()
}

// LostReason says why a registration or a lock is held no more.
type LostReason string

// Why a registration or a lock is held no more.
const (
	// LostTakenOver says that somebody else has registered the path since.
	LostTakenOver LostReason = "taken over"
	// LostExpired says that no replica could be told in time that it is still wanted.
	LostExpired LostReason = "expired"
	// LostSession says that the ZooKeeper session that carried it is over, or may be.
	LostSession LostReason = "session lost"
	// LostRemoved says that somebody deleted it, and it is not made again.
	LostRemoved LostReason = "removed"
	// LostEvicted says that an operator took it out with Evict. The client does not register it again by itself.
	LostEvicted LostReason = "evicted"
	// LostConnection says that the connection that carried it broke: it has no ttl.
	LostConnection LostReason = "disconnected"
	// LostReleased says that somebody gave the lock back by its id.
	LostReleased LostReason = "released"
	// LostSuperseded says that another has come back for the lock with the same id.
	LostSuperseded LostReason = "superseded"
	// LostRefused says that a replica refused to go on with it; the LostError's cause tells more.
	LostRefused LostReason = "refused"
)

// LostError says that a registration or a lock is held no more.
type LostError struct {
	// Path is the path of the registration or the lock.
	Path string
	// Reason is why it was lost.
	Reason LostReason

	cause error
}

// Error says what was lost and why.
func (e *LostError) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("rollcall: %s is lost: %s: %v", e.Path, e.Reason, e.cause)
	}
	return fmt.Sprintf("rollcall: %s is lost: %s", e.Path, e.Reason)
}

// Unwrap gives what a replica said, if it was that.
func (e *LostError) Unwrap() error { return e.cause }

func invalid(format string, arguments ...any) error {
	return &Error{Reason: Invalid, Code: codes.InvalidArgument, Message: fmt.Sprintf(format, arguments...)}
}

func closed(what string) error {
	return &Error{Reason: Closed, Code: codes.Canceled, Message: what + " is closed"}
}
