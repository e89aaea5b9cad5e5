package rollcall_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	rollcall "github.com/rollcall/rollcall/client-go"
)

// soon is the time that anything may take on a busy machine.
const soon = 60 * time.Second

// TestMain starts a server for the examples, which no test starts a server for.
func TestMain(m *testing.M) {
	examples, err := start("--embedded", "--listen", "127.0.0.1:0")
	if err == nil {
		err = os.Setenv(rollcall.ServerVariable, examples.address)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	examples.kill()
	os.Exit(code)
}

// begin bounds the time of a test, and fails the test if it leaves goroutines behind.
func begin(t *testing.T) context.Context {
	t.Helper()
	// Idle goroutines of the runtime, and goroutines that another test has left, are not this test's.
	before := goleak.IgnoreCurrent()
	// goleak itself waits for less than half a second, which is short on a busy machine.
	t.Cleanup(func() {
		eventually(t, context.Background(), "no goroutine is left", func() error { return goleak.Find(before) })
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
	t.Cleanup(cancel)
	return ctx
}

// server is a rollcall-server of one test.
type server struct {
	address string
	command *exec.Cmd
	said    *strings.Builder
}

var listening = regexp.MustCompile(`^listening grpc=(\S+)`)

// serve starts rollcall-server, and waits until it listens. It is killed with the test.
func serve(t *testing.T, arguments ...string) *server {
	t.Helper()
	s, err := start(arguments...)
	must(t, err)
	t.Cleanup(s.kill)
	return s
}

func start(arguments ...string) (*server, error) {
	program := os.Getenv("ROLLCALL_SERVER_BIN")
	if program == "" {
		program = filepath.Join("..", "target", "debug", "rollcall-server")
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("no %s: run cargo build -p rollcall-server, or set ROLLCALL_SERVER_BIN", program)
	}
	s := &server{said: new(strings.Builder)}
	s.command = exec.Command(program, append(arguments, "--http-listen", "127.0.0.1:0")...)
	s.command.Stderr = s.said
	output, err := s.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.command.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	match := listening.FindStringSubmatch(line)
	if err != nil || match == nil {
		s.kill()
		return nil, fmt.Errorf("%s does not listen: %q %w\n%s", program, line, err, s.said)
	}
	s.address = match[1]
	return s, nil
}

// embedded starts a server that keeps everything in memory.
func embedded(t *testing.T) *server {
	t.Helper()
	return serve(t, "--embedded", "--listen", "127.0.0.1:0")
}

// replica starts a replica in front of the ZooKeeper that the environment names, at the address, or at any when it is
// empty.
func replica(t *testing.T, address string, arguments ...string) *server {
	t.Helper()
	hosts := os.Getenv("ROLLCALL_TEST_ZOOKEEPER")
	if hosts == "" {
		t.Fatal("ROLLCALL_TEST_ZOOKEEPER is not set: it is HOST:PORT/CHROOT of a ZooKeeper for this test alone; " +
			"cargo test -p rollcall-tests go_client:: sets it")
	}
	if address == "" {
		address = "127.0.0.1:0"
	}
	return serve(t, append([]string{"--zookeeper", hosts, "--listen", address}, arguments...)...)
}

// kill ends the server as a crash would.
func (s *server) kill() {
	if s.command.ProcessState == nil {
		_ = s.command.Process.Kill()
		_ = s.command.Wait()
	}
}

// drain stops the server as a roll-out does.
func (s *server) drain(t *testing.T) { s.signal(t, syscall.SIGTERM) }

func (s *server) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	must(t, s.command.Process.Signal(signal))
}

// freeAddress is an address on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// connect creates a client that is closed with the test.
func connect(t *testing.T, options []rollcall.Option, servers ...*server) *rollcall.Client {
	t.Helper()
	var addresses []string
	for _, server := range servers {
		addresses = append(addresses, server.address)
	}
	client, err := rollcall.New(strings.Join(addresses, ","), options...)
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until wrong returns nil.
func eventually(t *testing.T, ctx context.Context, what string, wrong func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	for {
		err := wrong()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not so: %s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// reaches waits for a state of this kind.
func reaches(
	t *testing.T, ctx context.Context, registration *rollcall.Registration, kind rollcall.StateKind,
) rollcall.State {
	t.Helper()
	for {
		select {
		case state, ok := <-registration.States():
			if !ok {
				t.Fatalf("it ended as %+v", registration.State())
			}
			if state.Kind == kind {
				return state
			}
		case <-ctx.Done():
			t.Fatalf("it is still %v", registration.State().Kind)
		}
	}
}

func wrongUnless(right bool, format string, arguments ...any) error {
	if right {
		return nil
	}
	return fmt.Errorf(format, arguments...)
}
