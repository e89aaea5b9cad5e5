package rollcall

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"
)

// A program may find out by itself that its lock is over while another goroutine is still recording that in the client.
// The context must then say so as well.
func TestTheContextOfALockHasEndedOnceItsStateSaysSo(t *testing.T) {
	client := &Client{locks: map[string]*Lock{}}
	lock := &Lock{client: client, path: "/lock", id: "id", state: LockState{Until: time.Now().Add(time.Hour)}}
	inner, cancel := context.WithCancelCause(context.Background())
	lock.ctx, lock.cancel = lockContext{inner, lock}, cancel
	lock.keeping, lock.unkeep = context.WithCancel(context.Background())
	lock.expiry = time.AfterFunc(time.Hour, lock.check)
	client.locks[lock.id] = lock

	client.mu.Lock()
	told := make(chan struct{})
	go func() {
		defer close(told)
		lock.lose(LostExpired, nil)
	}()
	for lock.State().Kind != LockIsLost {
		runtime.Gosched()
	}
	err, cause := lock.Context().Err(), context.Cause(lock.Context())
	client.mu.Unlock()
	<-told
	var lost *LostError
	if err == nil || !errors.As(cause, &lost) || lost.Reason != LostExpired {
		t.Fatalf("%v, because of %v", err, cause)
	}
	if len(client.locks) != 0 {
		t.Fatal("the client still knows the lock")
	}
}
