//! Views: live copies of paths, in memory, each kept by one watch for all that read or watch it.
//!
//! - [`Views`]: the handle; opens a view when it is first needed.
//! - [`Reader`]: reads a view, as it is known ([`Reader::cached`]) or after a sync ([`Reader::latest`]).
//! - [`Watcher`]: a cursor in the view's recent past.
//!
//! Promises:
//! - Every state shown is one that ZooKeeper had, at the revision that it carries.
//! - One process never shows an older state of a path than before. What a later load reads is behind a sync, so this
//!   holds for views that were dropped meanwhile, and for new sessions.
//! - What a change costs ZooKeeper does not depend on how many read and watch. A slow watcher costs no memory beyond the
//!   ring, which is shared.
//! - A reader that knows of a later transaction waits until it is shown ([`Reader::reach`]), if there is such a one.
//! - While ZooKeeper is away, what is known is shown as before, and says that it is stale. With a [`Store`] that outlives
//!   the process.
//!
//! What may be lost: changes that undo each other between two reads are never seen. Nodes that the access control list
//! hides are listed without data; ZooKeeper tells no changes of them, so they come and go with the next change of
//! another. A view that nobody uses is dropped after a while, and its history with it; one that was not loaded yet, at once.
//!
//! What one client can cost others: a path counts for a connection that alone reads it; first loads, and bytes that take
//! long to make, come in turns of connections; a view has a bound in bytes, and all have; and what takes long because a tree
//! is large is done on blocking threads, under no lock.
//!
//! Inside: `fetch` reads on the connection that holds the watch; `rounds` makes consistent moments of reads and events;
//! `state` and `ring` are what is known and what has changed; `cursor` is a watcher's place in it; `task` drives it all;
//! `view` is what it shares with readers, `reach` has them wait for what they know of, `purse` who pays for it, `bell` wakes them. `slots` is the table of views, `registry` what fills it. `parts`
//! are bytes that were made of a state or a delta, `maker` makes them, in `turns`. `apart` is for what takes long. `store` keeps views over a restart: `directory` are its files, `stored` is what
//! is in one.

mod apart;
mod bell;
mod by_name;
mod cursor;
mod directory;
mod fetch;
mod maker;
mod parts;
mod pins;
mod purse;
mod reach;
mod reader;
mod registry;
mod ring;
mod rounds;
mod scope;
mod slots;
mod state;
mod store;
mod stored;
mod task;
mod view;
#[cfg(test)]
mod view_tests;
mod watcher;

pub(crate) use bell::Neighbourhood;
pub(crate) use cursor::Step;
pub(crate) use directory::Owner;
pub(crate) use parts::{Begin, Form, Key, Made};
pub(crate) use reach::Reached;
pub(crate) use reader::{Reader, Reading};
use registry::Lease;
pub(crate) use registry::{Settings, Views};
pub(crate) use ring::{Change, ChangeKind, Delta};
pub(crate) use state::{Entry, State};
pub(crate) use store::Store;
pub(crate) use view::BackendState;
pub(crate) use watcher::{Told, Watcher};
