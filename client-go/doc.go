// Package rollcall is the Go client of Rollcall, the service registry and lock service in front of ZooKeeper.
//
// A [Client] knows any number of replicas and talks to one of them for as long as that answers. What it registers,
// watches and locks goes on at another replica when the first stops or dies; a program does nothing for that.
//
//	client, err := rollcall.New("a:7700,b:7700")
//	if err != nil { … }
//	defer client.Close()
//	registration, err := client.Register(ctx, "/services/ssh/server1:22", map[string]any{"foo": "bar"})
//
// Contexts bound the waiting for an answer, not what comes of it: a registration stands, and a lock is held, until it
// is closed or lost, or the client is closed. A context without a deadline gets the client's time-out, see
// [WithTimeout].
//
// Errors that replicas answer with are of type *[Error]; errors.Is tells their [Reason]:
//
//	if errors.Is(err, rollcall.LockBusy) { … }
//
// Whoever imports this package can dial services by their registrations, as rollcall:///services/web: see
// [NewResolver].
//
// The generated stubs are in the package rollcallv1, for programs that want only them.
package rollcall
