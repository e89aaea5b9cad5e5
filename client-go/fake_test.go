package rollcall_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/types/known/durationpb"

	rollcall "github.com/rollcall/rollcall/client-go"
	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// fake is a replica that does things that a real one can't be made to do.
type fake struct {
	v1.UnimplementedRegistryServer
	server *grpc.Server
	tokens chan []string
	// streams are its actions on each Register stream, in order.
	streams chan func(registering) error
	// heartbeats has one item for each heartbeat that it sends to the holder of a lock.
	heartbeats chan struct{}
}

// registering is a Register stream of a fake.
type registering struct {
	grpc.BidiStreamingServer[v1.RegisterRequest, v1.RegisterResponse]
}

// Register runs the action that the test has set for the next stream.
func (f *fake) Register(stream grpc.BidiStreamingServer[v1.RegisterRequest, v1.RegisterResponse]) error {
	select {
	case does := <-f.streams:
		return does(registering{stream})
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// opens opens the stream, and asks the client for a keep-alive in this interval.
func (r registering) opens(interval time.Duration) error {
	if _, err := r.Recv(); err != nil {
		return err
	}
	opened := &v1.Opened{KeepAliveInterval: durationpb.New(interval)}
	return r.Send(&v1.RegisterResponse{Response: &v1.RegisterResponse_Opened{Opened: opened}})
}

// serves answers everything, until told returns an error. It calls told for each keep-alive that was answered.
func (r registering) serves(told func() error) error {
	for generation := int64(1); ; generation++ {
		request, err := r.Recv()
		if err != nil {
			return err
		}
		response, isKeepAlive := &v1.RegisterResponse{}, false
		switch said := request.GetRequest().(type) {
		case *v1.RegisterRequest_KeepAlive:
			isKeepAlive = true
			response.Response = &v1.RegisterResponse_KeptAlive{KeptAlive: &v1.KeptAlive{}}
		case *v1.RegisterRequest_Set:
			registered := &v1.Registered{Path: said.Set.GetPath(), Generation: generation}
			response.Response = &v1.RegisterResponse_Registered{Registered: registered}
		case *v1.RegisterRequest_Unset:
			unregistered := &v1.Unregistered{Path: said.Unset.GetPath()}
			response.Response = &v1.RegisterResponse_Unregistered{Unregistered: unregistered}
		}
		if err := r.Send(response); err != nil {
			return err
		}
		if !isKeepAlive {
			continue
		}
		if err := told(); err != nil {
			return err
		}
	}
}

// Get passes the token of the call to the test.
func (f *fake) Get(ctx context.Context, _ *v1.GetRequest) (*v1.GetResponse, error) {
	headers, _ := metadata.FromIncomingContext(ctx)
	f.tokens <- headers.Get("authorization")
	return &v1.GetResponse{Node: &v1.Node{Path: "/", Exists: true}}, nil
}

// Put breaks the connection.
func (f *fake) Put(ctx context.Context, _ *v1.PutRequest) (*v1.PutResponse, error) {
	go f.server.Stop()
	<-ctx.Done()
	return nil, ctx.Err()
}

// pretend starts a fake, and returns its address.
func pretend(t *testing.T, options ...grpc.ServerOption) (*fake, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	f := &fake{
		server:     grpc.NewServer(options...),
		tokens:     make(chan []string, 1),
		streams:    make(chan func(registering) error, 64),
		heartbeats: make(chan struct{}),
	}
	v1.RegisterRegistryServer(f.server, f)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = f.server.Serve(listener)
	}()
	t.Cleanup(func() {
		f.server.Stop()
		<-ended
	})
	return f, listener.Addr().String()
}

func TestATokenIsShownWithEveryCallAndConnectionsCanBeEncrypted(t *testing.T) {
	ctx := begin(t)
	// The server is needed for its certificate, which is valid for 127.0.0.1.
	web := httptest.NewTLSServer(nil)
	certificate, trusted := web.TLS.Certificates[0], x509.NewCertPool()
	trusted.AddCert(web.Certificate())
	web.Close()
	replica, address := pretend(t, grpc.Creds(credentials.NewServerTLSFromCert(&certificate)))
	client, err := rollcall.New(address, rollcall.WithTLS(&tls.Config{RootCAs: trusted}), rollcall.WithToken("hush"))
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	_, err = client.Get(ctx, "/")
	must(t, err)
	if tokens := <-replica.tokens; !slices.Equal(tokens, []string{"Bearer hush"}) {
		t.Fatal(tokens)
	}
	plain, err := rollcall.New(address, rollcall.WithTimeout(200*time.Millisecond))
	must(t, err)
	t.Cleanup(func() { _ = plain.Close() })
	if _, err := plain.Get(context.WithoutCancel(ctx), "/"); !errors.Is(err, rollcall.Unreachable) {
		t.Fatal(err)
	}
}

// badAddress is an address where each connection is closed at once or, if hangs is set, never answered.
func badAddress(t *testing.T, hangs bool) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if hangs {
				defer func() { _ = conn.Close() }()
			} else {
				_ = conn.Close()
			}
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-ended
	})
	return listener.Addr().String()
}

func TestEachAddressOfANameIsTriedAndTheClientsSpread(t *testing.T) {
	ctx := begin(t)
	one, first := pretend(t)
	other, second := pretend(t)
	var state resolver.State
	for _, address := range []string{badAddress(t, true), badAddress(t, false), freeAddress(t), first, second} {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	served := make(map[*fake]int)
	for range 20 {
		names := manual.NewBuilderWithScheme("dns")
		names.InitialState(state)
		client, err := rollcall.New("name:1", rollcall.WithDialOptions(grpc.WithResolvers(names)))
		must(t, err)
		_, err = client.Get(ctx, "/")
		must(t, err)
		select {
		case <-one.tokens:
			served[one]++
		case <-other.tokens:
			served[other]++
		}
		must(t, client.Close())
	}
	if len(served) != 2 {
		t.Fatal("all clients sit on one server")
	}
}

func TestAWriteWhoseAnswerIsLostIsNotMadeTwice(t *testing.T) {
	ctx := begin(t)
	_, address := pretend(t)
	client, err := rollcall.New(address)
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	if _, err := client.Put(ctx, "/a", nil); !errors.Is(err, rollcall.OutcomeUnknown) || rollcall.Retryable(err) {
		t.Fatal(err)
	}
	// No server is there any more, so this write was certainly not carried out.
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := client.Put(short, "/a", nil); !errors.Is(err, rollcall.Unreachable) {
		t.Fatal(err)
	}
}
