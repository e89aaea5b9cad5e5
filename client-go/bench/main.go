// Command bench measures registrations per second of the Go client, with Rollcall in front of ZooKeeper, and of etcd's
// Go client, in one run on one machine. All of them sync to disk before they answer, which is their default.
//
//	tests/setup.sh zookeeper etcd && cargo build --release -p rollcall-server
//	cd client-go/bench && go run .
//
// Each round measures all systems, in an order that rotates with the round. The first round warms up and is not
// counted. A registration is a new path with an object of two keys: Client.Register; or a lease of its own and a put
// under it; or a put under one lease that all registrations share. All registrations are taken down before the next
// measurement.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// data is the value of each registration.
const data = `{"host":"server1","port":80}`

// system is a system under measurement. Many goroutines call register at once.
type system struct {
	name     string
	register func(ctx context.Context, path string) error
	clear    func(ctx context.Context) error
}

func main() {
	root := flag.String("root", "../..", "the repository")
	seconds := flag.Float64("seconds", 2, "how long each measurement takes")
	rounds := flag.Int("rounds", 5, "how many rounds are counted")
	flag.Parse()
	if err := run(*root, time.Duration(*seconds*float64(time.Second)), *rounds); err != nil {
		log.Fatal(err)
	}
}

func run(root string, length time.Duration, rounds int) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "rollcall-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	ctx := context.Background()
	servers := &servers{root: root, scratch: scratch}
	defer servers.stop()
	rollcall, err := newRollcall(servers)
	if err != nil {
		return err
	}
	etcd, shared, err := newEtcd(ctx, servers)
	if err != nil {
		return err
	}
	systems := []system{rollcall, etcd, shared}
	fmt.Printf("registrations per second, median of %d rounds of %v [lowest, highest]\n\n", rounds, length)
	fmt.Printf("%-10s", "at once")
	for _, system := range systems {
		fmt.Printf("%-32s", system.name)
	}
	fmt.Println()
	for _, workers := range []int{1, 16, 256} {
		rates := make([][]float64, len(systems))
		for round := range rounds + 1 {
			for turn := range systems {
				index := (turn + round) % len(systems)
				rate, err := measure(ctx, systems[index], workers, length)
				if err != nil {
					return fmt.Errorf("%s: %w", systems[index].name, err)
				}
				if round > 0 {
					rates[index] = append(rates[index], rate)
				}
			}
		}
		fmt.Printf("%-10d", workers)
		for _, sample := range rates {
			slices.Sort(sample)
			text := fmt.Sprintf("%.0f [%.0f, %.0f]", sample[len(sample)/2], sample[0], sample[len(sample)-1])
			fmt.Printf("%-32s", text)
		}
		fmt.Println()
	}
	return nil
}

var paths atomic.Int64

// measure registers new paths for the given time with so many workers at once, and returns the rate per second.
func measure(ctx context.Context, system system, workers int, length time.Duration) (float64, error) {
	var done atomic.Int64
	var failed error
	var once sync.Once
	var all sync.WaitGroup
	begun := time.Now()
	for range workers {
		all.Go(func() {
			for time.Since(begun) < length {
				if err := system.register(ctx, fmt.Sprintf("/bench/%d", paths.Add(1))); err != nil {
					once.Do(func() { failed = err })
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	rate := float64(done.Load()) / time.Since(begun).Seconds()
	if failed != nil {
		return 0, failed
	}
	return rate, system.clear(ctx)
}
