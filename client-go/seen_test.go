package rollcall

import (
	"testing"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

func TestTheLargestIsKeptUntilZooKeeperHasLostIt(t *testing.T) {
	var s seen
	is := func(latest int64) {
		t.Helper()
		if s.latest.Load() != latest {
			t.Fatalf("%d and not %d", s.latest.Load(), latest)
		}
	}
	s.noteAnswer(0, &v1.GetResponse{Revision: 7})
	s.noteAnswer(0, &v1.GetResponse{Revision: 5})
	is(7)
	registered := &v1.Registered{Generation: 8, Stat: &v1.Stat{Czxid: 8, Mzxid: 9}}
	s.noteRegistration(&v1.RegisterResponse{Response: &v1.RegisterResponse_Registered{Registered: registered}})
	is(9)
	s.noteAnswer(8, &v1.GetResponse{Revision: 3, Reset_: true})
	is(9) // There was something newer by then.
	s.noteAnswer(9, &v1.GetResponse{Revision: 3, Reset_: true})
	is(3)
	for _, consistency := range []v1.Consistency{v1.Consistency_CONSISTENCY_CACHED, v1.Consistency_CONSISTENCY_LATEST} {
		s.note(9)
		request := &v1.GetRequest{Consistency: consistency}
		known := s.ask(request)
		if (request.MinRevision == 9) != (consistency == v1.Consistency_CONSISTENCY_CACHED) {
			t.Fatalf("%v asks for %d", consistency, request.MinRevision)
		}
		s.noteAnswer(known, &v1.GetResponse{Revision: 3, Reset_: true})
		is(3)
	}
	for _, step := range []struct {
		revision int64
		reset    bool
		latest   int64
	}{{6, false, 6}, {0, true, 6}, {2, true, 2}} {
		event := &v1.WatchResponse_Snapshot{Snapshot: &v1.Snapshot{Reset_: step.reset}}
		s.noteWatch(&v1.WatchResponse{Revision: step.revision, Event: event})
		is(step.latest)
	}
}
