package main

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	etcd "go.etcd.io/etcd/client/v3"

	rollcall "github.com/rollcall/rollcall/client-go"
)

const ttl = 15 * time.Second

// newRollcall registers with the Go client, in front of ZooKeeper.
func newRollcall(servers *servers) (system, error) {
	address, err := servers.rollcall()
	if err != nil {
		return system{}, err
	}
	client, err := rollcall.New(address)
	if err != nil {
		return system{}, err
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(data), &fields); err != nil {
		return system{}, err
	}
	var mu sync.Mutex
	var held []*rollcall.Registration
	register := func(ctx context.Context, path string) error {
		registration, err := client.Register(ctx, path, fields, rollcall.TTL(ttl))
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		held = append(held, registration)
		return nil
	}
	clear := func(ctx context.Context) error {
		defer func() { held = nil }()
		return together(held, func(registration *rollcall.Registration) error { return registration.Close(ctx) })
	}
	return system{"rollcall", register, clear}, nil
}

// newEtcd registers with etcd's client: with a lease for each registration, and with one lease for all.
func newEtcd(ctx context.Context, servers *servers) (each, shared system, err error) {
	address, err := servers.etcd()
	if err != nil {
		return each, shared, err
	}
	client, err := etcd.New(etcd.Config{Endpoints: []string{address}, DialTimeout: 10 * time.Second})
	if err != nil {
		return each, shared, err
	}
	var mu sync.Mutex
	var leases []etcd.LeaseID
	grant := func(ctx context.Context, path string) error {
		lease, err := client.Grant(ctx, int64(ttl/time.Second))
		if err != nil {
			return err
		}
		if _, err := client.Put(ctx, path, data, etcd.WithLease(lease.ID)); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		leases = append(leases, lease.ID)
		return nil
	}
	revoke := func(ctx context.Context) error {
		defer func() { leases = nil }()
		return together(leases, func(id etcd.LeaseID) error {
			_, err := client.Revoke(ctx, id)
			return err
		})
	}
	lease, err := client.Grant(ctx, 3600)
	if err != nil {
		return each, shared, err
	}
	put := func(ctx context.Context, path string) error {
		_, err := client.Put(ctx, path, data, etcd.WithLease(lease.ID))
		return err
	}
	remove := func(ctx context.Context) error {
		_, err := client.Delete(ctx, "/bench/", etcd.WithPrefix())
		return err
	}
	return system{"etcd, lease and put", grant, revoke}, system{"etcd, put under one lease", put, remove}, nil
}

// together calls do for each item, many at once.
func together[T any](items []T, do func(T) error) error {
	turns := make(chan struct{}, 64)
	problems := make(chan error, len(items))
	for _, item := range items {
		turns <- struct{}{}
		go func() {
			problems <- do(item)
			<-turns
		}()
	}
	for range items {
		if err := <-problems; err != nil {
			return err
		}
	}
	return nil
}
