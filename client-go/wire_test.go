package rollcall

import (
	"errors"
	"io"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func answered(t *testing.T, code codes.Code, reason string) error {
	t.Helper()
	answer, err := status.New(code, "what happened").WithDetails(
		&errdetails.ErrorInfo{Domain: domain, Reason: reason, Metadata: map[string]string{"path": "/a"}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)},
	)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Err()
}

func TestWhatMayHaveBeenCarriedOutIsToldFromWhatWasNot(t *testing.T) {
	for _, one := range []struct {
		err  error
		sent bool
		kind failureKind
	}{
		{answered(t, codes.Unavailable, "DRAINING"), true, notNow},
		{answered(t, codes.Unknown, "OUTCOME_UNKNOWN"), true, broken},
		{answered(t, codes.NotFound, "NO_NODE"), true, refused},
		{status.Error(codes.Unavailable, "connection refused"), false, notSent},
		{status.Error(codes.Unavailable, "keep-alive timed out"), true, broken},
		{status.Error(codes.Unauthenticated, "no token"), false, refused},
		{io.EOF, true, broken},
		{errSilent, true, broken},
	} {
		if why := failureOf(one.err, one.sent); why.kind != one.kind || why.isEnd != (one.err == io.EOF) {
			t.Errorf("%v: %+v", one.err, why)
		}
	}
}

func TestARefusalTellsReasonDetailsAndWhenToComeBack(t *testing.T) {
	err := error(failureOf(answered(t, codes.Unavailable, "BACKEND_UNAVAILABLE"), true).err)
	var refusal *Error
	if !errors.As(err, &refusal) || refusal.Metadata["path"] != "/a" || refusal.RetryAfter != time.Second {
		t.Fatalf("%+v", err)
	}
	if !errors.Is(err, BackendUnavailable) || errors.Is(err, Draining) || !Retryable(err) ||
		status.Code(err) != codes.Unavailable {
		t.Fatalf("%+v", err)
	}
	if err.Error() != "rollcall: what happened" {
		t.Fatal(err)
	}
	if Retryable(failureOf(answered(t, codes.Unknown, "OUTCOME_UNKNOWN"), true).err) || Retryable(io.EOF) {
		t.Fatal("never where it is not known whether it was carried out")
	}
}

func TestValuesSurviveTheWire(t *testing.T) {
	data := Data{"port": 10733.0, "load": 0.25, "tags": []any{"a", nil, true}, "in": map[string]any{"deep": -1.0}}
	for _, value := range []Value{data, Text("text"), Raw{0, 255}, nil} {
		sent, err := valueToProto(value)
		if err != nil || !reflect.DeepEqual(valueFromProto(sent), value) {
			t.Errorf("%v: %v %v", value, valueFromProto(sent), err)
		}
	}
	if empty, err := valueToProto(Data(nil)); err != nil || empty.GetData() == nil {
		t.Fatal(empty, err)
	}
	if _, err := valueToProto(map[string]uint64{"id": 1 << 53}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []any{map[string]uint64{"id": 1<<53 + 1}, []int{}, 7, "\xff", (*struct{})(nil)} {
		if _, err := valueToProto(bad); !errors.Is(err, Invalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestTheKeyCreatedIsSetOnce(t *testing.T) {
	now := time.Date(2026, 1, 31, 23, 59, 59, 0, time.UTC)
	if data := valueFromProto(withCreated(nil, now)); !reflect.DeepEqual(data, Data{"created": "2026-01-31 23:59:59"}) {
		t.Fatal(data)
	}
	own, _ := valueToProto(Data{"created": "mine"})
	if data := valueFromProto(withCreated(own, now)); !reflect.DeepEqual(data, Data{"created": "mine"}) {
		t.Fatal(data)
	}
	text, _ := valueToProto("text")
	if value := valueFromProto(withCreated(text, now)); value != Text("text") {
		t.Fatal(value)
	}
}

func TestEndpointsAreAddresses(t *testing.T) {
	for _, text := range []string{"", "localhost", "localhost:ssh", ":7700", "ftp://a:1", "a:1/path", "a:1,b"} {
		if _, err := parseEndpoints(text); !errors.Is(err, Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := New("a:1", WithDialOptions(grpc.WithTransportCredentials(nil))); !errors.Is(err, Invalid) {
		t.Error(err)
	}
	names, err := parseEndpoints(" a:1,[::1]:7700 ,")
	if err != nil || !slices.Equal(names, []string{"a:1", "[::1]:7700"}) {
		t.Fatal(names, err)
	}
}

func TestNamesThatAreNoAddressesAreLeftOut(t *testing.T) {
	children := map[string]Child{
		"server1:22": {}, "10.0.0.1:80": {}, "[::1]:80": {}, "server1": {}, "server1:ssh": {}, ":22": {}, "a b:22": {},
	}
	if names := addresses(children); !slices.Equal(names, []string{"10.0.0.1:80", "[::1]:80", "server1:22"}) {
		t.Fatal(names)
	}
}
