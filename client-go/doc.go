// Package rollcall is the Go client of Rollcall, the service registry and lock service in front of ZooKeeper.
//
// A [Client] knows any number of replicas and uses one of them for as long as it answers. Registrations, watches and
// locks go on at another replica when the first stops or dies; a program does nothing for that.
//
//	client, err := rollcall.New("a:7700,b:7700")
//	if err != nil { … }
//	defer client.Close()
//	registration, err := client.Register(ctx, "/services/ssh/server1:22", map[string]any{"foo": "bar"})
//
// A context bounds the wait for an answer, not the result: a registration is kept, and a lock is held, until it is
// closed or lost, or the client is closed. A context without a deadline gets the client's time-out, see [WithTimeout].
//
// Errors that replicas return are of type *[Error]; errors.Is checks their [Reason]:
//
//	if errors.Is(err, rollcall.LockBusy) { … }
//
// A program that imports this package can dial services by their registrations, as rollcall:///services/web: see
// [NewResolver].
//
// The generated stubs are in the package rollcallv1, for programs that need only those.
package rollcall
