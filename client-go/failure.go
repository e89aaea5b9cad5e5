package rollcall

import (
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// domain is the domain of every google.rpc.ErrorInfo that a replica sends.
const domain = "rollcall"

// failureKind is what a failed call means for trying another replica.
type failureKind int

const (
	// notSent: the call never reached a replica.
	notSent failureKind = iota
	// notNow: a replica can't serve the call now, and has done nothing.
	notNow
	// refused: a replica refused the call.
	refused
	// broken: the replica does not know the outcome, or the connection broke on the way.
	broken
)

// failure is how a call ended, as far as trying another replica is concerned.
type failure struct {
	kind failureKind
	err  *Error
	// isEnd: a stream ended with OK.
	isEnd bool
}

var (
	// errEnded: the replica ended a stream without an error, and without being asked to.
	errEnded = errors.New("the replica ended the stream")
	// errSilent: the replica was silent for too long.
	errSilent = errors.New("the replica does not answer")
)

// failureOf turns the end of a call into a failure. sent reports whether a request may have reached a replica.
func failureOf(err error, sent bool) *failure {
	if err == errSilent || err == io.EOF {
		isEnd := err == io.EOF
		if isEnd {
			err = errEnded
		}
		silent := &Error{Reason: Unreachable, Code: codes.Unavailable, Message: err.Error()}
		return &failure{kind: broken, err: silent, isEnd: isEnd}
	}
	refusal, fromReplica := refusalOf(status.Convert(err))
	if !fromReplica {
		switch refusal.Code {
		case codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented, codes.InvalidArgument:
			// An intermediary may refuse as well, such as a proxy that checks credentials.
			return &failure{kind: refused, err: refusal}
		}
		if !sent {
			return &failure{kind: notSent, err: refusal}
		}
		return &failure{kind: broken, err: refusal}
	}
	switch {
	case refusal.Code == codes.Unavailable:
		return &failure{kind: notNow, err: refusal}
	case refusal.Reason == OutcomeUnknown:
		return &failure{kind: broken, err: refusal}
	}
	return &failure{kind: refused, err: refusal}
}

// refusalOf reads a status, and reports whether it comes from a replica.
func refusalOf(answer *status.Status) (refusal *Error, fromReplica bool) {
	refusal = &Error{Reason: Reason(answer.Code().String()), Code: answer.Code(), Message: answer.Message()}
	for _, detail := range answer.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == domain {
				refusal.Reason, refusal.Metadata, fromReplica = Reason(detail.GetReason()), detail.GetMetadata(), true
			}
		case *errdetails.RetryInfo:
			refusal.RetryAfter = max(detail.GetRetryDelay().AsDuration(), 0)
		}
	}
	return refusal, fromReplica
}

// refusedFor reports whether a replica refused the call for this reason.
func (f *failure) refusedFor(reason Reason) bool { return f.kind == refused && f.err.Reason == reason }

// pause is the time for which the replica asks to be left alone.
func (f *failure) pause() time.Duration {
	if f == nil {
		return 0
	}
	return f.err.RetryAfter
}

// unreachable is the error of a call that no replica answered; why, if known, is the error of the context.
func unreachable(replicas string, last *failure, why error) error {
	message := fmt.Sprintf("no replica answered (%s)", replicas)
	if last != nil {
		message = fmt.Sprintf("%s: %s", message, last.err.Message)
	}
	return &Error{Reason: Unreachable, Code: codes.Unavailable, Message: message, cause: why}
}
