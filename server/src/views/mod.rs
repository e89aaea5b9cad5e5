//! Views: live copies of paths in memory. One watch keeps each view up to date for all its readers and watchers.
//!
//! - [`Views`]: the handle; opens a view when it is first needed.
//! - [`Reader`]: reads a view, as it is known ([`Reader::cached`]) or after a sync ([`Reader::latest`]).
//! - [`Watcher`]: a cursor in the view's recent past.
//!
//! Promises:
//! - Every state shown is one that ZooKeeper had, at the revision that it carries.
//! - One process never shows an older state of a path than it has shown before. A later load is behind a sync, so this
//!   also holds for views that were dropped meanwhile, and for new sessions.
//! - What a change costs ZooKeeper does not depend on the number of readers and watchers. A slow watcher costs no
//!   memory beyond the ring, which is shared.
//! - A reader that knows of a later transaction waits until the view shows it ([`Reader::reach`]), if that transaction
//!   exists.
//! - While ZooKeeper is away, the view goes on showing the last known state, marked as stale. With a [`Store`] that
//!   state outlives the process.
//!
//! What may be lost: changes that undo each other between two reads are never seen. Nodes that the access control list
//! hides are listed without data; ZooKeeper sends no events for them, so they appear and disappear with the next change
//! of another node. A view that nobody uses is dropped after a while, and its history with it; a view that was not
//! loaded yet is dropped at once.
//!
//! What one client can cost others: a path counts for a connection that alone reads it; connections take turns with
//! first loads, and with bytes that take long to make; each view has a bound in bytes, and so have all views together;
//! and work that takes long because a tree is large is done on blocking threads, under no lock.
//!
//! Inside:
//! - `fetch` reads on the connection that holds the watch; `consistent_read` makes consistent cuts of reads and events.
//! - `state` and `ring` hold the present state and the recent changes; `cursor` is a watcher's place in them.
//! - `task` drives it all. `view` is the part that it shares with readers: `reach` lets them wait for a transaction,
//!   `purse` decides which connection pays for the view, `notifier` wakes them.
//! - `slots` is the table of views; `registry` fills it, and `shared` is what all of them have.
//! - `parts` are bytes made of a state or a delta; `maker` makes them, in `turns`. `apart` runs work that takes long.
//! - `store` keeps views over a restart: `directory` is its files, `stored` the content of one file.

mod apart;
mod by_name;
mod consistent_read;
mod cursor;
mod directory;
mod fetch;
mod maker;
mod node;
mod notifier;
mod parts;
mod pins;
mod purse;
mod reach;
mod reader;
mod registry;
mod ring;
mod scope;
mod shared;
mod slots;
mod state;
mod store;
mod stored;
mod task;
mod view;
#[cfg(test)]
mod view_tests;
mod watcher;

pub(crate) use cursor::Step;
pub(crate) use directory::Owner;
pub(crate) use node::ViewNode;
pub(crate) use notifier::ConnectionKey;
pub(crate) use parts::{Begin, MadePart, PartForm, PartKey};
pub(crate) use reach::Reached;
pub(crate) use reader::{Reader, StateReading};
pub(crate) use registry::Views;
pub(crate) use ring::{Change, ChangeKind, Delta};
pub(crate) use shared::Settings;
use shared::ViewUse;
pub(crate) use state::State;
pub(crate) use store::Store;
pub(crate) use view::BackendState;
pub(crate) use watcher::{Watcher, WatcherUpdate};
