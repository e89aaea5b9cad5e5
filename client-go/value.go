package rollcall

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// Value is the value of a node: [Data], [Text] or [Raw]; nil for an empty node.
type Value interface{ isValue() }

// Data is a JSON object, the usual case. Numbers are float64, as with encoding/json.
type Data map[string]any

// Text is text that is not a JSON object.
type Text string

// Raw is anything else, including JSON that Data could not represent without loss.
type Raw []byte

func (Data) isValue() {}
func (Text) isValue() {}
func (Raw) isValue()  {}

// Decode stores a Data value in target, as json.Unmarshal does. The error has the reason [Invalid]: the value is not
// Data, or does not fit.
func Decode(value Value, target any) error {
	data, ok := value.(Data)
	if !ok {
		return invalid("the value is not a JSON object")
	}
	text, err := json.Marshal(data)
	if err == nil {
		err = json.Unmarshal(text, target)
	}
	if err != nil {
		return invalid("value: %v", err)
	}
	return nil
}

func valueFromProto(value *v1.Value) Value {
	switch kind := value.GetKind().(type) {
	case *v1.Value_Data:
		return Data(kind.Data.AsMap())
	case *v1.Value_Text:
		return Text(kind.Text)
	case *v1.Value_Raw:
		return Raw(kind.Raw)
	}
	return nil
}

// valueToProto converts the value that a program gives: nil for nothing, a Value, a string for Text, bytes for Raw, or
// anything that encoding/json makes an object of.
func valueToProto(value any) (*v1.Value, error) {
	switch value := value.(type) {
	case nil:
		return nil, nil
	case Text:
		return textToProto(string(value))
	case string:
		return textToProto(value)
	case Raw:
		return &v1.Value{Kind: &v1.Value_Raw{Raw: value}}, nil
	case []byte:
		return &v1.Value{Kind: &v1.Value_Raw{Raw: value}}, nil
	case Data:
		return dataToProto(map[string]any(value), value == nil)
	case map[string]any:
		return dataToProto(value, value == nil)
	}
	return dataToProto(value, false)
}

// dataToProto converts anything that encoding/json makes an object of; a nil map has no fields.
func dataToProto(value any, isEmpty bool) (*v1.Value, error) {
	if isEmpty {
		value = map[string]any{}
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, invalid("data: %v", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var fields map[string]any
	if err := decoder.Decode(&fields); err != nil || fields == nil {
		return nil, invalid("data: %.64s is not a JSON object", text)
	}
	data, err := structOf(fields)
	if err != nil {
		return nil, err
	}
	return &v1.Value{Kind: &v1.Value_Data{Data: data}}, nil
}

func textToProto(text string) (*v1.Value, error) {
	if strings.ToValidUTF8(text, "") != text {
		return nil, invalid("the text is not UTF-8: give it as bytes")
	}
	return &v1.Value{Kind: &v1.Value_Text{Text: text}}, nil
}

func structOf(fields map[string]any) (*structpb.Struct, error) {
	data := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(fields))}
	for key, field := range fields {
		value, err := jsonToProto(field)
		if err != nil {
			return nil, err
		}
		data.Fields[key] = value
	}
	return data, nil
}

func jsonToProto(value any) (*structpb.Value, error) {
	switch value := value.(type) {
	case json.Number:
		number, err := double(value)
		if err != nil {
			return nil, err
		}
		return structpb.NewNumberValue(number), nil
	case []any:
		list := &structpb.ListValue{Values: make([]*structpb.Value, len(value))}
		for index, item := range value {
			var err error
			if list.Values[index], err = jsonToProto(item); err != nil {
				return nil, err
			}
		}
		return structpb.NewListValue(list), nil
	case map[string]any:
		data, err := structOf(value)
		if err != nil {
			return nil, err
		}
		return structpb.NewStructValue(data), nil
	}
	// A string, a boolean or null.
	return structpb.NewValue(value)
}

// double converts a number to a double, since numbers are sent as doubles. A number that a double would change is
// refused instead.
func double(number json.Number) (float64, error) {
	refused := invalid("data: a double can't hold %v; write it as a string", number)
	value, err := number.Float64()
	if err != nil {
		return 0, refused
	}
	if whole, ok := new(big.Int).SetString(number.String(), 10); ok {
		if held, _ := new(big.Float).SetFloat64(value).Int(nil); held.Cmp(whole) != 0 {
			return 0, refused
		}
	}
	return value, nil
}

const (
	// largestMessage is the maximum size of a request, in bytes. A replica refuses a larger request, and ends the stream
	// on which it comes.
	largestMessage = 2 << 20
	// envelope is the size of a request besides its path and its value.
	envelope = 256
)

// checkSent refuses, as a replica would, a value that no message can carry. On a stream it would end that stream for
// all other registrations too.
func checkSent(path string, value *v1.Value) error {
	if !utf8.ValidString(path) {
		return &Error{Reason: InvalidPath, Code: codes.InvalidArgument, Message: fmt.Sprintf("%.100q is not UTF-8", path)}
	}
	size := len(path) + proto.Size(value)
	if size <= largestMessage-envelope {
		return nil
	}
	name := []rune(path)
	message := fmt.Sprintf("%s and its value take %d bytes, and a message has at most %d",
		string(name[:min(len(name), 100)]), size, largestMessage)
	return &Error{Reason: ValueTooLarge, Code: codes.InvalidArgument, Message: message}
}

// withCreated adds the time at which a registration began, as the server would. The client sets it once, so it is the
// same whenever the registration is resumed, and a replica recognizes it even if an answer was lost.
func withCreated(value *v1.Value, now time.Time) *v1.Value {
	if value == nil {
		value = &v1.Value{Kind: &v1.Value_Data{Data: &structpb.Struct{Fields: make(map[string]*structpb.Value)}}}
	}
	if data := value.GetData(); data != nil && data.GetFields()["created"] == nil {
		data.Fields["created"] = structpb.NewStringValue(now.UTC().Format(time.DateTime))
	}
	return value
}
