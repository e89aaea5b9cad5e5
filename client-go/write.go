package rollcall

import (
	"context"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// Put writes a durable node, such as a service's configuration, and creates it and its parents where they are missing.
// value is [Data] or anything that encoding/json makes an object of, to which the server adds the key created; or a
// string or [Text], bytes or [Raw]; nil leaves the node empty. A later [IfVersion] expects the Version of the answer.
//
// ZooKeeper has acknowledged the write before the answer. A later lookup of this client sees the write, and so does a
// [Latest] lookup of any client. A write that was certainly not made is tried at another replica.
//
// Errors have the reason [Invalid] (the data is not valid), [ValueTooLarge], [NoNode], [VersionMismatch], [NodeExists],
// [HasRegistrations], [Unreachable] (nothing was written), those of every call, or [OutcomeUnknown]: the write may or
// may not have been made, so read before you write again. If the context is cancelled meanwhile, the outcome is not
// known either.
func (c *Client) Put(ctx context.Context, path string, value any, opts ...PutOption) (*Stat, error) {
	var settings putSettings
	for _, option := range opts {
		option.applyPut(&settings)
	}
	sent, err := valueToProto(value)
	if err != nil {
		return nil, err
	}
	if err := checkSent(path, sent); err != nil {
		return nil, err
	}
	request := &v1.PutRequest{
		Path:            path,
		Value:           sent,
		ExpectedVersion: settings.version,
		CreateOnly:      settings.createOnly,
	}
	put := func(ctx context.Context, at *replica) (*v1.PutResponse, error) {
		return at.stub.Put(ctx, request)
	}
	answer, err := call(ctx, c, path, writes, 0, put)
	if err != nil {
		return nil, err
	}
	c.seen.noteStat(answer.GetStat())
	return statFromProto(answer.GetStat()), nil
}

// Delete deletes a durable node, and with [Recursive] everything below it too.
//
// Errors have the reason [NoNode], [VersionMismatch], [NotEmpty], [HasRegistrations], [Unreachable] (nothing was
// deleted), those of every call, or [OutcomeUnknown]: all, part or nothing may be gone.
func (c *Client) Delete(ctx context.Context, path string, opts ...DeleteOption) error {
	var settings deleteSettings
	for _, option := range opts {
		option.applyDelete(&settings)
	}
	request := &v1.DeleteRequest{Path: path, ExpectedVersion: settings.version, Recursive: settings.recursive}
	remove := func(ctx context.Context, at *replica) (*v1.DeleteResponse, error) {
		return at.stub.Delete(ctx, request)
	}
	_, err := call(ctx, c, path, writes, 0, remove)
	return err
}
