package rollcall

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reason is why a call failed, in a word that never changes. It is an error itself, so that errors.Is(err, LockBusy)
// checks for that reason.
type Reason string

// The reasons that replicas give. registry.proto lists the reasons of each call.
const (
	// InvalidPath means that the path is not a valid path, or can't be used for this call.
	InvalidPath Reason = "INVALID_PATH"
	// ValueTooLarge means that the value is larger than the replica's limit.
	ValueTooLarge Reason = "VALUE_TOO_LARGE"
	// InvalidTTL means that the ttl is not between 1 second and 10 minutes.
	InvalidTTL Reason = "INVALID_TTL"
	// Protocol means that the request breaks the rules of the protocol.
	Protocol Reason = "PROTOCOL"
	// NoNode means that the node does not exist.
	NoNode Reason = "NO_NODE"
	// LockLost means that the lock is over, or was never held under this id.
	LockLost Reason = "LOCK_LOST"
	// VersionMismatch means that the node has another version.
	VersionMismatch Reason = "VERSION_MISMATCH"
	// LockBusy means that the lock was not granted in the time that the request allowed.
	LockBusy Reason = "LOCK_BUSY"
	// Superseded means that another stream has taken over the same lock.
	Superseded Reason = "SUPERSEDED"
	// SessionExpired means that the replica heard nothing from the client for the ttl.
	SessionExpired Reason = "SESSION_EXPIRED"
	// PageExpired means that the replica no longer has the state that the page belongs to.
	PageExpired Reason = "PAGE_EXPIRED"
	// NameTaken means that another client has registered the name, and the request was [Exclusive].
	NameTaken Reason = "NAME_TAKEN"
	// NodeExists means that the node exists already, and the request was to create it.
	NodeExists Reason = "NODE_EXISTS"
	// LockLimitDiffers means that [Simultaneous] differs from the number that others use for the lock.
	LockLimitDiffers Reason = "LOCK_LIMIT_DIFFERS"
	// NotALock means that the path holds something other than a lock.
	NotALock Reason = "NOT_A_LOCK"
	// NotEphemeral means that a durable node exists where the registration should go.
	NotEphemeral Reason = "NOT_EPHEMERAL"
	// NotEmpty means that the node has children.
	NotEmpty Reason = "NOT_EMPTY"
	// HasRegistrations means that a registration, or a lock's node, is in the way.
	HasRegistrations Reason = "HAS_REGISTRATIONS"
	// Evicted means that an operator keeps the path from being registered for a time.
	Evicted Reason = "EVICTED"
	// NoAuth means that ZooKeeper's access control forbids the call.
	NoAuth Reason = "NO_AUTH"
	// Rule means that a rule of the replica forbids the call.
	Rule Reason = "RULE"
	// ReadOnly means that the replica takes no writes, locks or registrations.
	ReadOnly Reason = "READ_ONLY"
	// BackendUnavailable means that ZooKeeper can't be reached.
	BackendUnavailable Reason = "BACKEND_UNAVAILABLE"
	// Draining means that the replica is about to stop.
	Draining Reason = "DRAINING"
	// OutcomeUnknown means that a write may or may not have been made: read before you try again. The client also gives
	// this reason, when the connection broke after the write was sent.
	OutcomeUnknown Reason = "OUTCOME_UNKNOWN"
	// Quota means that a quota that is set in ZooKeeper forbids the call.
	Quota Reason = "QUOTA"
)

// The reasons that the client itself gives.
const (
	// Invalid means that the request is not valid; nothing was sent.
	Invalid Reason = "INVALID"
	// Unreachable means that no replica answered in time. Nothing was written.
	Unreachable Reason = "UNREACHABLE"
	// Closed means that the program has closed the client, the registration or the lock.
	Closed Reason = "CLOSED"
)

// Error returns the reason's word.
func (r Reason) Error() string { return string(r) }

// Error is why a call failed.
type Error struct {
	// Reason is the reason to decide by. If the error did not come from a replica but, for example, from a proxy, it is
	// the name of the status code.
	Reason Reason
	// Code is the gRPC status code.
	Code codes.Code
	// Message is the cause, for people; its wording may change.
	Message string
	// Metadata holds details by key, such as path, actual_version or holders. It may be nil.
	Metadata map[string]string
	// RetryAfter is the time that the replica asks to wait before the call is tried again; 0 when it gives none.
	RetryAfter time.Duration

	cause error
}

// Error describes what happened, for people.
func (e *Error) Error() string {
	switch {
	case e.Message == "":
		return "rollcall: " + string(e.Reason)
	case e.cause != nil:
		return fmt.Sprintf("rollcall: %s: %v", e.Message, e.cause)
	}
	return "rollcall: " + e.Message
}

// Unwrap returns the Reason and, if there is one, the cause, such as the context's error.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.cause}
}

// GRPCStatus returns the error as a gRPC status, so that status.Code(err) works.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// Retryable reports whether the same call may well succeed later. It is false when it is unknown whether a write was
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

// Retryable reports whether the call that returned the error may well succeed later.
func Retryable(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Retryable()
}

// LostReason is why a registration or a lock is no longer held.
type LostReason string

// The reasons why a registration or a lock is no longer held.
const (
	// LostTakenOver means that somebody else has registered the path since.
	LostTakenOver LostReason = "taken over"
	// LostExpired means that its time ran out before any replica heard that it is still wanted.
	LostExpired LostReason = "expired"
	// LostSession means that the ZooKeeper session that carried it is over, or may be.
	LostSession LostReason = "session lost"
	// LostRemoved means that somebody deleted it, and it is not created again.
	LostRemoved LostReason = "removed"
	// LostEvicted means that an operator removed it with Evict. The client does not register it again by itself.
	LostEvicted LostReason = "evicted"
	// LostConnection means that the connection that carried it broke, and it has no ttl.
	LostConnection LostReason = "disconnected"
	// LostReleased means that somebody released the lock by its id.
	LostReleased LostReason = "released"
	// LostSuperseded means that another stream has taken over the lock with the same id.
	LostSuperseded LostReason = "superseded"
	// LostRefused means that a replica refused to keep it; the LostError's cause has the details.
	LostRefused LostReason = "refused"
)

// LostError reports that a registration or a lock is no longer held.
type LostError struct {
	// Path is the path of the registration or the lock.
	Path string
	// Reason is why it was lost.
	Reason LostReason

	cause error
}

// Error describes what was lost and why.
func (e *LostError) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("rollcall: %s is lost: %s: %v", e.Path, e.Reason, e.cause)
	}
	return fmt.Sprintf("rollcall: %s is lost: %s", e.Path, e.Reason)
}

// Unwrap returns the replica's error, if there is one.
func (e *LostError) Unwrap() error { return e.cause }

func invalid(format string, arguments ...any) error {
	return &Error{Reason: Invalid, Code: codes.InvalidArgument, Message: fmt.Sprintf(format, arguments...)}
}

func closed(what string) error {
	return &Error{Reason: Closed, Code: codes.Canceled, Message: what + " is closed"}
}
