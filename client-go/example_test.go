package rollcall_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	rollcall "github.com/rollcall/rollcall/client-go"
)

func ExampleClient_Register() {
	client, err := rollcall.New(os.Getenv("ROLLCALL_SERVER"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	registration, err := client.Register(ctx, "/examples/ssh/server1:22", map[string]any{"foo": "bar"})
	if err != nil {
		log.Fatal(err)
	}
	ssh, err := client.Get(ctx, "/examples/ssh", rollcall.Latest())
	if err != nil {
		log.Fatal(err)
	}
	for name, child := range ssh.Children {
		fmt.Println(name, child.Value.(rollcall.Data)["foo"])
	}
	if err := registration.Close(ctx); err != nil {
		log.Fatal(err)
	}
	for state := range registration.States() {
		fmt.Println(state.Kind)
	}
	// Output:
	// server1:22 bar
	// unregistered
}

func ExampleClient_Watch() {
	client, err := rollcall.New(os.Getenv("ROLLCALL_SERVER"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	if _, err := client.Register(ctx, "/examples/watched/a:80", nil); err != nil {
		log.Fatal(err)
	}
	for update, err := range client.Watch(ctx, "/examples/watched") {
		if err != nil {
			log.Fatal(err)
		}
		names := slices.Sorted(maps.Keys(update.Children))
		fmt.Println(names)
		if len(names) == 2 {
			break
		}
		// Other services come and go meanwhile.
		if _, err := client.Register(ctx, "/examples/watched/b:80", nil); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// [a:80]
	// [a:80 b:80]
}

func ExampleClient_Lock() {
	client, err := rollcall.New(os.Getenv("ROLLCALL_SERVER"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	lock, err := client.Lock(ctx, "/examples/nightly")
	if err != nil {
		log.Fatal(err)
	}
	_, err = client.Lock(ctx, "/examples/nightly", rollcall.Wait(0))
	fmt.Println("busy:", errors.Is(err, rollcall.LockBusy))
	// Work that takes the lock's context stops when the lock is lost.
	work := func(ctx context.Context) error { return ctx.Err() }
	if err := work(lock.Context()); err != nil {
		log.Fatal(context.Cause(lock.Context()))
	}
	if err := lock.Unlock(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(context.Cause(lock.Context()))
	// Output:
	// busy: true
	// rollcall: /examples/nightly is closed
}

func ExampleNewResolver() {
	client, err := rollcall.New(os.Getenv("ROLLCALL_SERVER"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	conn, err := grpc.NewClient("rollcall:///services/greeter",
		grpc.WithResolvers(rollcall.NewResolver(client)),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	// greeter := greeterpb.NewGreeterClient(conn)
	fmt.Println(conn.Target())
	// Output: rollcall:///services/greeter
}
