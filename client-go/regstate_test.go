package rollcall

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// scene is a state and the replica at the other end, advanced one step at a time.
type scene struct {
	*testing.T
	*regState
}

func newScene(t *testing.T) scene { return scene{t, newRegState()} }

func number(n int) *v1.Value { return &v1.Value{Kind: &v1.Value_Text{Text: fmt.Sprint(n)}} }

func waiter() chan error { return make(chan error, 1) }

func (s scene) adds(path string, n int) *Registration {
	s.Helper()
	of := &Registration{path: path, states: make(chan State, 1)}
	if err := s.add(of, number(n), false, waiter()); err != nil {
		s.Fatal(err)
	}
	return of
}

// says checks all requests that are due, as «set PATH N [@GENERATION]» and «unset PATH», in any order.
func (s scene) says(want ...string) {
	s.Helper()
	var all []string
	for request := s.next(); request != nil; request = s.next() {
		if set := request.GetSet(); set != nil {
			text := fmt.Sprintf("set %s %s", set.GetPath(), set.GetValue().GetText())
			if set.Generation != nil {
				text += fmt.Sprintf(" @%d", set.GetGeneration())
			}
			all = append(all, text)
		} else {
			all = append(all, "unset "+request.GetUnset().GetPath())
		}
	}
	slices.Sort(all)
	if !slices.Equal(all, want) {
		s.Fatalf("said %q instead of %q", all, want)
	}
}

func (s scene) isRegistered(path string, generation int64) {
	told := &v1.Registered{Path: path, Generation: generation}
	s.take(&v1.RegisterResponse{Response: &v1.RegisterResponse_Registered{Registered: told}})
}

func (s scene) isUnregistered(path string) {
	told := &v1.Unregistered{Path: path}
	s.take(&v1.RegisterResponse{Response: &v1.RegisterResponse_Unregistered{Unregistered: told}})
}

func (s scene) isLost(path string, generation int64, reason v1.LostReason) {
	told := &v1.Lost{Path: path, Generation: generation, Reason: reason}
	s.take(&v1.RegisterResponse{Response: &v1.RegisterResponse_Lost{Lost: told}})
}

func (s scene) isRejected(path string, code codes.Code, reason Reason) {
	told := &v1.Rejected{Path: path, Code: int32(code), Reason: string(reason)}
	s.take(&v1.RegisterResponse{Response: &v1.RegisterResponse_Rejected{Rejected: told}})
}

// standing adds a registration that is held on the present stream.
func (s scene) standing(path string, generation int64) *Registration {
	s.Helper()
	of := s.adds(path, 1)
	s.says(fmt.Sprintf("set %s 1", path))
	s.isRegistered(path, generation)
	return of
}

func (s scene) stands(of *Registration, kind StateKind, generation int64) {
	s.Helper()
	if state := of.State(); state.Kind != kind || state.Generation != generation {
		s.Fatalf("%s is %v @%d, not %v @%d", of.path, state.Kind, state.Generation, kind, generation)
	}
}

func (s scene) isAnswered(waiter chan error, want error) {
	s.Helper()
	select {
	case err := <-waiter:
		if want == nil && err != nil || want != nil && !errors.Is(err, want) {
			s.Fatalf("%v instead of %v", err, want)
		}
	default:
		s.Fatal("there is no answer")
	}
}

func TestStateARegistrationIsSaidOnceAndStandsWhenItIsAnswered(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	s.stands(held, Registered, 5)
	s.says()
	if !s.isSettled() {
		t.Fatal("nothing is open")
	}
}

func TestStateOnANewStreamEverythingIsResumedByItsLastGeneration(t *testing.T) {
	s := newScene(t)
	s.standing("/a", 5)
	s.standing("/b", 6)
	restored := &v1.Registered{Path: "/a", Generation: 9, Restored: true}
	s.take(&v1.RegisterResponse{Response: &v1.RegisterResponse_Registered{Registered: restored}})
	added := s.adds("/new", 3)
	s.begin()
	s.says("set /a 1 @9", "set /b 1 @6", "set /new 3")
	if s.isSettled() {
		t.Fatal("nothing is answered")
	}
	for _, path := range []string{"/a", "/b", "/new"} {
		s.isRegistered(path, 10)
	}
	if !s.isSettled() {
		t.Fatal("all is answered")
	}
	s.stands(added, Registered, 10)
}

func TestStateUpdatesGoOneAtATimeAndTheLastOneStands(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	var answers []chan error
	for n := 2; n <= 4; n++ {
		answer := waiter()
		s.update(held, number(n), answer)
		answers = append(answers, answer)
		if n == 2 {
			s.says("set /a 2 @5")
		}
	}
	s.says()
	s.isRegistered("/a", 5)
	if len(answers[0]) != 0 {
		t.Fatal("what was answered is not what is wished now")
	}
	s.says("set /a 4 @5")
	s.isRegistered("/a", 5)
	for _, answer := range answers {
		s.isAnswered(answer, nil)
	}
}

func TestStateDataThatIsRefusedLeavesWhatStood(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	answer := waiter()
	s.update(held, number(2), answer)
	s.says("set /a 2 @5")
	s.isRejected("/a", codes.InvalidArgument, ValueTooLarge)
	s.isAnswered(answer, ValueTooLarge)
	s.stands(held, Registered, 5)
	s.says("set /a 1 @5")
	s.isRegistered("/a", 5)
	s.begin()
	s.says("set /a 1 @5")
}

func TestStateAFirstSetThatIsRefusedIsOver(t *testing.T) {
	s := newScene(t)
	of, answer := &Registration{path: "/a", states: make(chan State, 1)}, waiter()
	if err := s.add(of, number(1), false, answer); err != nil {
		t.Fatal(err)
	}
	s.says("set /a 1")
	s.isRejected("/a", codes.AlreadyExists, NameTaken)
	s.isAnswered(answer, NameTaken)
	s.stands(of, Lost, 0)
	if !s.isEmpty() || !s.isSettled() {
		t.Fatal("it is over")
	}
}

func TestStateAResumeThatAReplicaHasNoRoomForIsTriedAgain(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	s.begin()
	s.says("set /a 1 @5")
	s.isRejected("/a", codes.ResourceExhausted, "TOO_MANY_REGISTRATIONS")
	s.stands(held, Pending, 0)
	s.says()
	s.tryAgain()
	s.says("set /a 1 @5")
	s.isRegistered("/a", 5)
	s.stands(held, Registered, 5)
}

func TestStateWhatAnEarlierStreamMayHaveTakenOverLateIsAskedForOnce(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	s.begin()
	s.says("set /a 1 @5")
	// That stream breaks before it is answered. The next one is answered at a replica where the first registration still
	// exists.
	s.begin()
	s.says("set /a 1 @5")
	s.isRegistered("/a", 5)
	s.isLost("/a", 5, v1.LostReason_LOST_REASON_TAKEN_OVER)
	s.stands(held, Pending, 0)
	s.says("set /a 1 @5")
	s.isRegistered("/a", 7)
	s.stands(held, Registered, 7)
	s.isLost("/a", 7, v1.LostReason_LOST_REASON_TAKEN_OVER)
	s.stands(held, Lost, 0)
}

func TestStateEachEarlierStreamMayHaveTakenOverLateOnce(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	for range 2 {
		s.begin()
		s.says("set /a 1 @5")
	}
	s.begin()
	s.says("set /a 1 @5")
	s.isRegistered("/a", 5)
	for generation := int64(5); generation < 7; generation++ {
		s.isLost("/a", generation, v1.LostReason_LOST_REASON_TAKEN_OVER)
		s.stands(held, Pending, 0)
		s.says(fmt.Sprintf("set /a 1 @%d", generation))
		s.isRegistered("/a", generation+1)
		s.stands(held, Registered, generation+1)
	}
	s.isLost("/a", 7, v1.LostReason_LOST_REASON_TAKEN_OVER)
	s.stands(held, Lost, 0)
}

func TestStateWhatANewStreamHasNotTakenOverIsInDoubtAndTheRestIsNot(t *testing.T) {
	s := newScene(t)
	taken, left := s.standing("/a", 5), s.standing("/b", 6)
	s.begin()
	s.says("set /a 1 @5", "set /b 1 @6")
	s.isRegistered("/a", 5)
	s.doubtTheRest()
	s.stands(taken, Registered, 5)
	s.stands(left, Pending, 0)
	s.isRegistered("/b", 6)
	s.stands(left, Registered, 6)
	s.doubt()
	s.stands(taken, Pending, 0)
	s.stands(left, Pending, 0)
}

func TestStateWhatWasTakenOverIsLostAndNotFoughtFor(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	s.isLost("/a", 4, v1.LostReason_LOST_REASON_TAKEN_OVER)
	s.stands(held, Registered, 5)
	s.isLost("/a", 5, v1.LostReason_LOST_REASON_TAKEN_OVER)
	s.stands(held, Lost, 0)
	s.begin()
	s.says()
	if s.update(held, number(2), waiter()) {
		t.Fatal("it is lost")
	}
}

func TestStateWhatIsEvictedIsLostAndDoesNotComeBackByItself(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	s.isLost("/a", 5, v1.LostReason_LOST_REASON_EVICTED)
	s.stands(held, Lost, 0)
	if lost := new(LostError); !errors.As(held.State().Err, &lost) || lost.Reason != LostEvicted {
		t.Fatal(held.State().Err)
	}
	// Evicted while its stream was broken: the request to resume it is refused.
	resumed := s.standing("/b", 5)
	s.begin()
	s.says("set /b 1 @5")
	s.isRejected("/b", codes.FailedPrecondition, Evicted)
	s.stands(resumed, Lost, 0)
	if lost := new(LostError); !errors.As(resumed.State().Err, &lost) || lost.Reason != LostEvicted {
		t.Fatal(resumed.State().Err)
	}
	s.says()
}

func TestStateWhatExpiredIsRegisteredAgain(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	s.isLost("/a", 5, v1.LostReason_LOST_REASON_EXPIRED)
	s.stands(held, Pending, 0)
	s.begin()
	s.says("set /a 1 @5")
	s.isRegistered("/a", 8)
	s.stands(held, Registered, 8)
}

func TestStateRemovalIsSaidAndDoneWhenItIsAnswered(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	gone := waiter()
	s.remove(held, gone)
	s.says("unset /a")
	if len(gone) != 0 || s.isEmpty() {
		t.Fatal("it is not answered")
	}
	s.isUnregistered("/a")
	s.isAnswered(gone, nil)
	s.stands(held, Unregistered, 0)
	s.remove(held, gone)
	s.isAnswered(gone, nil)
	if !s.isEmpty() || !s.isSettled() {
		t.Fatal("twice is once")
	}
}

func TestStateWhatIsRemovedWhileItIsSetIsUnsetAfterThat(t *testing.T) {
	s := newScene(t)
	held := s.adds("/a", 1)
	s.says("set /a 1")
	s.remove(held, waiter())
	s.says()
	s.isRegistered("/a", 5)
	s.says("unset /a")
	s.stands(held, Pending, 0)
	s.isUnregistered("/a")
	if !s.isEmpty() {
		t.Fatal("it is gone")
	}
}

func TestStateWhatAnotherReplicaStillHoldsIsTakenFromItBeforeItIsRemoved(t *testing.T) {
	s := newScene(t)
	s.remove(s.standing("/a", 5), waiter())
	s.begin()
	s.says("set /a 1 @5")
	s.isRegistered("/a", 6)
	s.says("unset /a")
	s.isUnregistered("/a")
	if !s.isEmpty() {
		t.Fatal("it is gone")
	}
}

func TestStateALaterRegistrationOfThePathTakesItOver(t *testing.T) {
	s := newScene(t)
	first := s.standing("/a", 5)
	second := s.adds("/a", 2)
	s.stands(first, Lost, 0)
	// The end of the first registration does not concern the second.
	s.remove(first, waiter())
	s.says("set /a 2")
	s.isRegistered("/a", 5)
	s.stands(second, Registered, 5)
}

func TestStateALaterRegistrationWaitsForWhatTheEarlierHasSaid(t *testing.T) {
	s := newScene(t)
	first := s.adds("/a", 1)
	s.says("set /a 1")
	second := s.adds("/a", 2)
	s.says()
	s.isRegistered("/a", 5)
	s.stands(second, Pending, 0)
	s.says("set /a 2 @5")
	s.isRegistered("/a", 5)
	s.stands(second, Registered, 5)
	s.remove(second, waiter())
	s.says("unset /a")
	third := s.adds("/a", 3)
	s.stands(second, Unregistered, 0)
	s.isUnregistered("/a")
	s.says("set /a 3")
	s.isRegistered("/a", 7)
	s.stands(third, Registered, 7)
	s.stands(first, Lost, 0)
}

func TestStateDoubtIsToldAndSoIsWhatOthersHaveWritten(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	told := &v1.Overwritten{Path: "/a", Value: number(7)}
	s.take(&v1.RegisterResponse{Response: &v1.RegisterResponse_Overwritten{Overwritten: told}})
	s.stands(held, Overwritten, 5)
	if held.State().Value != Text("7") || (<-held.States()).Kind != Overwritten {
		t.Fatalf("%+v", held.State())
	}
	// The server has written the data again: the same generation, and no answer to a set.
	right := &v1.Registered{Path: "/a", Generation: 5, Restored: true}
	s.take(&v1.RegisterResponse{Response: &v1.RegisterResponse_Registered{Registered: right}})
	s.stands(held, Registered, 5)
	if (<-held.States()).Kind != Registered {
		t.Fatal("nobody was told")
	}
	s.doubt()
	s.stands(held, Pending, 0)
}

func TestStateAReplicaThatRefusesTheStreamEndsOnlyWhatNeverStood(t *testing.T) {
	s := newScene(t)
	held := s.standing("/a", 5)
	of, answer := &Registration{path: "/b", states: make(chan State, 1)}, waiter()
	if err := s.add(of, number(1), false, answer); err != nil {
		t.Fatal(err)
	}
	s.refuse(&Error{Reason: "Unauthenticated", Code: codes.Unauthenticated})
	s.isAnswered(answer, Reason("Unauthenticated"))
	s.stands(of, Lost, 0)
	s.stands(held, Registered, 5)
}

// answersAfter checks that does publishes a state before any waiter has an answer.
func (s scene) answersAfter(of *Registration, kind StateKind, waiter <-chan error, does func()) {
	s.Helper()
	done := make(chan struct{})
	go func() { does(); close(done) }()
	select {
	case state := <-of.States():
		if state.Kind != kind {
			s.Errorf("it is %v and not %v", state.Kind, kind)
		}
		<-waiter
	case <-waiter: // The channel has no room: the answering goroutine blocks until this receive.
		s.Errorf("answered before it is %v", kind)
	}
	<-done
}

func TestWhoHasAnAnswerFindsTheStateThatGoesWithIt(t *testing.T) {
	s := newScene(t)
	registers := func() (*Registration, chan error) {
		of, waiter := &Registration{path: "/a", states: make(chan State, 1)}, make(chan error)
		if err := s.add(of, number(1), false, waiter); err != nil {
			t.Fatal(err)
		}
		s.next()
		return of, waiter
	}
	for _, expected := range []StateKind{Registered, Lost} {
		of, waiter := registers()
		says := func() { s.isRegistered("/a", 7) }
		if expected == Lost {
			rejected := &v1.Rejected{Path: "/a", Reason: string(NameTaken)}
			says = func() { s.take(&v1.RegisterResponse{Response: &v1.RegisterResponse_Rejected{Rejected: rejected}}) }
		}
		s.answersAfter(of, expected, waiter, says)
	}
}
