module github.com/rollcall/rollcall/client-go/bench

go 1.26.0

require (
	github.com/rollcall/rollcall/client-go v0.0.0
	go.etcd.io/etcd/client/v3 v3.7.3
)

replace github.com/rollcall/rollcall/client-go => ../
