package rollcall

import (
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	// connectTimeout is the time that a connection may take to be made.
	connectTimeout = 3 * time.Second
	// pingInterval is the time after which a silent connection is pinged. A replica welcomes pings no more often than
	// this.
	pingInterval = 10 * time.Second
	// pingTimeout is the time that the answer to a ping may take. Together with the interval it is shorter than the time
	// that a replica allows itself, so that a client knows of a broken connection before the lock that it carried is given
	// to another client.
	pingTimeout = 5 * time.Second
)

// anyAddress is for a name with several addresses: each is tried, and the clients are spread over them.
const anyAddress = `{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}`

// parseEndpoints parses HOST:PORT[,HOST:PORT…].
func parseEndpoints(endpoints string) ([]string, error) {
	var names []string
	for name := range strings.SplitSeq(endpoints, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if !isAddress(name) {
			return nil, invalid("endpoint %q is not HOST:PORT", name)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil, invalid("no endpoint: name at least one HOST:PORT")
	}
	return names, nil
}

// isAddress reports whether a name is HOST:PORT, with a number for the port.
func isAddress(name string) bool {
	host, port, err := net.SplitHostPort(name)
	if err != nil || host == "" || strings.ContainsAny(host, "/ \t") {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// dialer makes connections with the options. Nothing is connected before the first call.
func dialer(options *options) func(name string) (*grpc.ClientConn, error) {
	transport := insecure.NewCredentials()
	if options.tls != nil {
		transport = credentials.NewTLS(options.tls)
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithStatsHandler(sentMarker{}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout}),
		// The client has pauses of its own: a connection that failed is replaced, not tried again.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultServiceConfig(anyAddress),
		// gRPC's retries would repeat calls that may have been carried out, and keep old replicas in use.
		grpc.WithDisableRetry(),
	}
	if options.token != "" {
		dial = append(dial, grpc.WithPerRPCCredentials(bearer(options.token)))
	}
	dial = append(dial, options.dial...)
	return func(name string) (*grpc.ClientConn, error) { return grpc.NewClient("dns:///"+name, dial...) }
}

// bearer is a token that is sent with every call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity is false: the program that gives the token decides whether the connection is safe.
func (bearer) RequireTransportSecurity() bool { return false }

// Option is a setting of a [Client].
type Option func(*options)

type options struct {
	tls      *tls.Config
	token    string
	name     string
	patience time.Duration
	dial     []grpc.DialOption
}

// WithTLS encrypts the connections.
func WithTLS(config *tls.Config) Option { return func(o *options) { o.tls = config } }

// WithToken sends this token with every call, as «authorization: Bearer …». Use it with TLS only: without TLS,
// everybody on the way can read it.
func WithToken(token string) Option { return func(o *options) { o.token = token } }

// WithName sets the program's name in the replicas' logs and, unless a lock is given another [Name], as the holder of
// locks. Default: host name and process id.
func WithName(name string) Option { return func(o *options) { o.name = name } }

// WithTimeout sets the time that a call may take, with all replicas that it tries, when its context has no deadline.
// Default: 10 seconds. Watches, and waiting for a lock, have no time-out of their own.
func WithTimeout(patience time.Duration) Option { return func(o *options) { o.patience = patience } }

// WithDialOptions adds gRPC options to each connection, such as interceptors.
func WithDialOptions(dial ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, dial...) }
}
