package rollcall

import (
	"time"

	v1 "github.com/rollcall/rollcall/client-go/rollcallv1"
)

// Node is a path with its value and everything that was read below it.
type Node struct {
	// Path is the absolute path that was asked for.
	Path string
	// Exists reports whether the path exists. If not, the rest is empty.
	Exists bool
	// Value is the value of the node itself; nil when it is empty.
	Value Value
	// Stat is ZooKeeper's record of the node; nil when it does not exist.
	Stat *Stat
	// Children are the children by name. In a recursive answer they are by path relative to the node, such as a/b.
	Children map[string]Child
}

// Child is one child of a node.
type Child struct {
	// Value is its value; nil when it is empty.
	Value Value
	// Stat is ZooKeeper's record of it. In a watch it is as of the last event.
	Stat *Stat
}

// Stat is ZooKeeper's own record of a node.
type Stat struct {
	// Czxid, Mzxid and Pzxid are the transactions that created the node, last changed its data, and last added or
	// removed a child. Czxid is the generation of a registration.
	Czxid, Mzxid, Pzxid int64
	// Ctime and Mtime are when the node was created and when its data last changed, by ZooKeeper's clock.
	Ctime, Mtime time.Time
	// Version counts the changes of the data; [IfVersion] is compared with it. Cversion counts the changes of the list of
	// children, Aversion those of the access control list.
	Version, Cversion, Aversion int32
	// EphemeralOwner is the ZooKeeper session of a registration; 0 for a durable node.
	EphemeralOwner int64
	// DataLength is the size of the data in bytes, NumChildren the number of children.
	DataLength, NumChildren int32
}

// ChangeKind is the kind of a change of a watched path.
type ChangeKind int

// The changes of a watched path and its children.
const (
	// Added means that a child has appeared.
	Added ChangeKind = ChangeKind(v1.ChangeKind_CHANGE_KIND_ADDED)
	// Updated means that a child's data has changed.
	Updated ChangeKind = ChangeKind(v1.ChangeKind_CHANGE_KIND_UPDATED)
	// Removed means that a child is gone.
	Removed ChangeKind = ChangeKind(v1.ChangeKind_CHANGE_KIND_REMOVED)
	// Created means that the watched path was created.
	Created ChangeKind = ChangeKind(v1.ChangeKind_CHANGE_KIND_CREATED)
	// DataChanged means that the watched path's own data has changed.
	DataChanged ChangeKind = ChangeKind(v1.ChangeKind_CHANGE_KIND_DATA_CHANGED)
	// Deleted means that the watched path and all its children are gone.
	Deleted ChangeKind = ChangeKind(v1.ChangeKind_CHANGE_KIND_DELETED)
)

// String returns the name of the kind.
func (k ChangeKind) String() string {
	switch k {
	case Added:
		return "added"
	case Updated:
		return "updated"
	case Removed:
		return "removed"
	case Created:
		return "created"
	case DataChanged:
		return "data changed"
	case Deleted:
		return "deleted"
	}
	return "unknown"
}

// Change is one change of a watched path.
type Change struct {
	// Kind is the kind of the change.
	Kind ChangeKind
	// Name is the name of the child; empty for the watched path itself.
	Name string
	// Child is the value and the stat after the change; empty for a path that is gone.
	Child Child
}

// apply applies the change to a node that nobody else holds.
func (n *Node) apply(change Change) {
	switch change.Kind {
	case Added, Updated:
		n.Children[change.Name] = change.Child
	case Removed:
		delete(n.Children, change.Name)
	case Created, DataChanged:
		n.Exists, n.Value, n.Stat = true, change.Child.Value, change.Child.Stat
	case Deleted:
		n.Exists, n.Value, n.Stat = false, nil, nil
		clear(n.Children)
	}
}

func nodeFromProto(node *v1.Node) Node {
	children := make(map[string]Child, len(node.GetChildren()))
	for name, child := range node.GetChildren() {
		children[name] = childFromProto(child)
	}
	return Node{
		Path:     node.GetPath(),
		Exists:   node.GetExists(),
		Value:    valueFromProto(node.GetValue()),
		Stat:     statFromProto(node.GetStat()),
		Children: children,
	}
}

func childFromProto(child *v1.Child) Child {
	return Child{Value: valueFromProto(child.GetValue()), Stat: statFromProto(child.GetStat())}
}

func statFromProto(stat *v1.Stat) *Stat {
	if stat == nil {
		return nil
	}
	return &Stat{
		Czxid:          stat.GetCzxid(),
		Mzxid:          stat.GetMzxid(),
		Pzxid:          stat.GetPzxid(),
		Ctime:          time.UnixMilli(stat.GetCtime()),
		Mtime:          time.UnixMilli(stat.GetMtime()),
		Version:        stat.GetVersion(),
		Cversion:       stat.GetCversion(),
		Aversion:       stat.GetAversion(),
		EphemeralOwner: stat.GetEphemeralOwner(),
		DataLength:     stat.GetDataLength(),
		NumChildren:    stat.GetNumChildren(),
	}
}

// changesFromProto leaves out kinds that this version does not know.
func changesFromProto(changes []*v1.Change) []Change {
	var known []Change
	for _, change := range changes {
		if kind := ChangeKind(change.GetKind()); kind >= Added && kind <= Deleted {
			known = append(known, Change{Kind: kind, Name: change.GetName(), Child: childFromProto(change.GetChild())})
		}
	}
	return known
}
