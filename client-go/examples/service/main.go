// Command service is a service that finds its peers and takes turns with them.
//
//	ROLLCALL_SERVER=localhost:7700 service NAME PEERS ROUNDS FILE
//
// It registers NAME, waits until PEERS of its kind are registered, itself included, and then adds one to the number in
// FILE, ROUNDS times, under a lock. It goes on when a replica is killed meanwhile.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	rollcall "github.com/rollcall/rollcall/client-go"
)

// place is the path under which the services of this kind register.
const place = "/services/example"

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: service NAME PEERS ROUNDS FILE")
	}
	peers, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	rounds, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	if err := serve(os.Args[1], peers, rounds, os.Args[4]); err != nil {
		log.Fatal(err)
	}
}

func serve(name string, peers, rounds int, file string) error {
	client, err := rollcall.New(cmp.Or(os.Getenv(rollcall.ServerVariable), "localhost:7700"), rollcall.WithName(name))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx := context.Background()
	if _, err := client.Register(ctx, place+"/"+name, map[string]any{"language": "go"}); err != nil {
		return err
	}
	for update, err := range client.Watch(ctx, place) {
		if err != nil {
			return err
		}
		if len(update.Children) >= peers {
			// With %q a terminal obeys no name.
			fmt.Printf("found %q\n", slices.Sorted(maps.Keys(update.Children)))
			break
		}
	}
	for rounds > 0 {
		lock, err := client.Lock(ctx, place+"-lock")
		if err != nil {
			return err
		}
		if err := add(lock.Context(), file); err == nil {
			rounds--
		} else if lock.Context().Err() == nil {
			return err
		}
		// A lost lock is as good as a released one.
		var lost *rollcall.LostError
		if err := lock.Unlock(ctx); err != nil && !errors.As(err, &lost) {
			return err
		}
	}
	fmt.Println("done")
	return nil
}

// add reads, thinks, and writes, unless its turn is over.
func add(ctx context.Context, file string) error {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	number, err := strconv.Atoi(cmp.Or(strings.TrimSpace(string(text)), "0"))
	if err != nil {
		return err
	}
	time.Sleep(5 * time.Millisecond)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return os.WriteFile(file, fmt.Appendln(nil, number+1), 0o600)
}
