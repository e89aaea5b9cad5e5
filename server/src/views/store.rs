//! Keeps views over a restart: the last known state of each path that is read or watched, in a directory. So a replica
//! that starts while ZooKeeper is away can still show it.
//!
//! One task writes, off the runtime's threads: a view that has changed, at most once in a while. A state without
//! children never replaces one with children: an outage that empties a list is exactly what the last known list is kept
//! for. Within one process no state is shown that is older than one that was shown before.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::directory::{Directory, MAX_FILE_BYTES, OpenError, Owner};
use super::scope::Scope;
use super::state::State;
use super::stored::{self, Stored};
use super::times::{REST, REST_AFTER_FAILURE, TOUCH};
use super::view::View;
use crate::types::Revision;

/// Maximum number of views that are kept, and of the bytes of their files; beyond either, the views that were written
/// longest ago are removed.
const MAX_FILES: usize = 10_000;
const MAX_BYTES: u64 = 1024 * 1024 * 1024;
/// Maximum number of dropped views that wait to be written, and of their bytes.
const MAX_LEFT: usize = 1024;
const MAX_LEFT_BYTES: usize = MAX_FILE_BYTES;

/// A directory of views. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: Directory,
    index: Mutex<Index>,
    /// Held during each write, so that there is only one at a time.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Index {
    kept: HashMap<Scope, KeptFile>,
    bytes: u64,
    /// The last states of dropped views that are not on disk yet.
    left: HashMap<Scope, Last>,
    left_bytes: usize,
    is_failing: bool,
    /// Views without a file whose write has failed, with the time before which it is not tried again.
    resting: HashMap<Scope, Instant>,
}

/// The index's entry for a file.
#[derive(Debug, Clone)]
struct KeptFile {
    revision: Revision,
    has_children: bool,
    bytes: u64,
    written: SystemTime,
    /// Whether this process has shown a later state that was not kept.
    is_outdated: bool,
    /// The file is not written again before then.
    rests_until: Instant,
    touched: Instant,
}

/// The last that is known of a view.
#[derive(Debug, Clone)]
enum Last {
    Shown(Stored),
    /// ZooKeeper's access control list hides the path: an earlier state may not be shown any more.
    Hidden,
}

/// The work to do on a file.
enum FileJob {
    Write(Stored),
    Touch(SystemTime),
    Remove,
}

impl Store {
    /// Takes a directory, and reads its views. Blocks.
    ///
    /// # Errors
    /// When another process has it, when it belongs to another ZooKeeper or chroot, or when it can't be used. A broken
    /// file is no error: it is named in the log.
    pub(crate) fn open(path: &Path, owner: &Owner) -> Result<Self, OpenError> {
        let directory = Directory::open(path, owner)?;
        let mut index = Index::default();
        let now = Instant::now();
        let scanned = directory.scan(|found| {
            let state = &found.stored.state;
            let kept = KeptFile::new(state, found.bytes, found.modified, now);
            index.bytes += found.bytes;
            index.kept.insert(state.scope(), KeptFile { rests_until: now, ..kept });
        });
        scanned.map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
        tracing::info!(directory = %path.display(), views = index.kept.len(), bytes = index.bytes, "views are kept");
        Ok(Self(Arc::new(Shared { directory, index: Mutex::new(index), writing: tokio::sync::Mutex::default() })))
    }

    /// Whether no view is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.index().kept.is_empty()
    }

    /// Whether there is a state of this view to show.
    pub(super) fn has(&self, scope: &Scope) -> bool {
        let index = self.0.index();
        match index.left.get(scope) {
            Some(left) => matches!(left, Last::Shown(_)),
            None => index.kept.get(scope).is_some_and(|kept| !kept.is_outdated),
        }
    }

    /// The last known state of a view.
    pub(super) async fn load(&self, scope: &Scope) -> Option<Stored> {
        if !self.has(scope) {
            return None;
        }
        if let Some(Last::Shown(left)) = self.0.index().left.get(scope) {
            return Some(left.clone());
        }
        let (shared, scope) = (self.0.clone(), scope.clone());
        tokio::task::spawn_blocking(move || shared.directory.read(&scope)).await.ok()?
    }

    /// A view is dropped: keeps its state in memory until it is on disk.
    pub(super) fn note_dropped(&self, view: &View) {
        let Some(last) = last_known(view) else { return };
        let mut index = self.0.index();
        let is_full = index.left.len() >= MAX_LEFT || index.left_bytes + last.bytes() > MAX_LEFT_BYTES;
        let has_room = !index.is_full();
        let kept = index.kept.get_mut(&view.scope);
        match (&last, kept) {
            (Last::Hidden, None) => {}
            (Last::Shown(stored), Some(kept)) if kept.revision == stored.state.revision => {}
            (Last::Shown(stored), Some(kept)) if kept.would_be_emptied(&stored.state) => kept.is_outdated = true,
            (_, Some(kept)) if is_full => kept.is_outdated = true,
            (_, None) if is_full || !has_room => {}
            _ => index.leave(&view.scope, last),
        }
    }

    /// Writes the views that have changed, unless they rest.
    pub(super) async fn save(&self, views: Vec<Arc<View>>) {
        self.save_as_of(views, Instant::now()).await;
    }

    /// Writes the views that have changed, at once.
    pub(super) async fn save_all(&self, views: Vec<Arc<View>>) {
        self.save_as_of(views, Instant::now() + REST_AFTER_FAILURE).await;
    }

    async fn save_as_of(&self, views: Vec<Arc<View>>, now: Instant) {
        let _turn = self.0.writing.lock().await;
        let shared = self.0.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let mut room = shared.index().begin_round(now);
            let left: Vec<_> = shared.index().left.iter().map(|(scope, last)| (scope.clone(), last.clone())).collect();
            for (scope, last) in left {
                let job = match &last {
                    Last::Shown(stored) => FileJob::Write(stored.clone()),
                    Last::Hidden => FileJob::Remove,
                };
                shared.carry_out(&scope, &job);
                shared.index().is_done(&scope, &last);
            }
            for view in views {
                if let Some(job) = shared.due(&view, now, &mut room) {
                    shared.carry_out(&view.scope, &job);
                }
            }
        });
        if let Err(error) = saved.await {
            tracing::error!(%error, "writing views failed");
        }
    }
}

fn last_known(view: &View) -> Option<Last> {
    let known = view.known();
    if known.is_hidden() {
        return Some(Last::Hidden);
    }
    let state = known.state.clone()?;
    let as_of = known.as_of.unwrap_or_else(SystemTime::now);
    Some(Last::Shown(Stored { state, as_of }))
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock()
    }

    /// The work to do for a view now. `room`: number of views that may be added.
    fn due(&self, view: &View, now: Instant, room: &mut usize) -> Option<FileJob> {
        let last = last_known(view)?;
        let index = self.index();
        match (last, index.kept.get(&view.scope)) {
            (Last::Hidden, kept) => kept.map(|_| FileJob::Remove),
            (Last::Shown(_), None) if index.resting.contains_key(&view.scope) => None,
            (Last::Shown(stored), None) => {
                *room = room.checked_sub(1)?;
                Some(FileJob::Write(stored))
            }
            (Last::Shown(_), Some(kept)) if now < kept.rests_until => None,
            (Last::Shown(stored), Some(kept)) if kept.revision == stored.state.revision => {
                let is_due = view.is_connected() && now.duration_since(kept.touched) >= TOUCH;
                is_due.then_some(FileJob::Touch(stored.as_of))
            }
            (Last::Shown(stored), Some(kept)) => {
                (!kept.would_be_emptied(&stored.state)).then_some(FileJob::Write(stored))
            }
        }
    }

    fn carry_out(&self, scope: &Scope, job: &FileJob) {
        let result = match job {
            FileJob::Write(stored) => self.write(scope, stored),
            FileJob::Touch(as_of) => {
                let touched = self.directory.touch(scope, *as_of);
                if touched.is_ok() {
                    self.index().note_touched(scope, *as_of);
                }
                touched
            }
            FileJob::Remove => {
                self.index().forget(scope);
                self.directory.remove(scope)
            }
        };
        let is_failing = result.is_err();
        let was_failing = std::mem::replace(&mut self.index().is_failing, is_failing);
        match result {
            Ok(()) if was_failing => tracing::info!("views are kept on disk again"),
            Ok(()) => {}
            Err(error) => {
                // Logged once, and not for every view in every round.
                if !was_failing {
                    tracing::error!(path = %scope.path, %error, "a view can't be kept on disk");
                }
                self.index().rest_after_failure(scope);
            }
        }
    }

    fn write(&self, scope: &Scope, stored: &Stored) -> io::Result<()> {
        let file = stored::encode(&stored.state, stored.as_of, MAX_FILE_BYTES).ok_or(io::ErrorKind::FileTooLarge)?;
        self.directory.write(scope, &file)?;
        let bytes = u64::try_from(file.len()).unwrap_or(u64::MAX);
        let old =
            self.index().note_written(scope, KeptFile::new(&stored.state, bytes, SystemTime::now(), Instant::now()));
        old.iter().try_for_each(|scope| self.directory.remove(scope))
    }
}

impl Index {
    /// Notes a file that was written; returns the views that are to be removed to make room for it.
    fn note_written(&mut self, scope: &Scope, kept: KeptFile) -> Vec<Scope> {
        self.resting.remove(scope);
        self.bytes += kept.bytes;
        self.bytes -= self.kept.insert(scope.clone(), kept).map_or(0, |before| before.bytes);
        self.make_room(scope)
    }

    /// Notes the last state of a dropped view, which is still to be written.
    fn leave(&mut self, scope: &Scope, last: Last) {
        self.left_bytes += last.bytes();
        self.left_bytes -= self.left.insert(scope.clone(), last).map_or(0, |before| before.bytes());
    }

    /// The last state of a dropped view is on disk; forgets it, unless a later one was noted meanwhile.
    fn is_done(&mut self, scope: &Scope, last: &Last) {
        let is_same = |other: &Last| match (last, other) {
            (Last::Shown(one), Last::Shown(other)) => Arc::ptr_eq(&one.state, &other.state),
            (Last::Hidden, Last::Hidden) => true,
            _ => false,
        };
        if self.left.get(scope).is_some_and(is_same) {
            self.left_bytes -= self.left.remove(scope).map_or(0, |last| last.bytes());
        }
    }

    /// A write has failed: the file does not hold what was shown meanwhile.
    fn rest_after_failure(&mut self, scope: &Scope) {
        let rests_until = Instant::now() + REST_AFTER_FAILURE;
        match self.kept.get_mut(scope) {
            Some(kept) => {
                kept.is_outdated = true;
                kept.revision = Revision(-1);
                kept.rests_until = rests_until;
            }
            None if self.resting.len() < MAX_FILES => drop(self.resting.insert(scope.clone(), rests_until)),
            None => {}
        }
    }

    /// Forgets the views that have rested for long enough. Returns the number of views that may be added: as many as
    /// there is room for or, if there is none, as many as there are files that belong to no view in use.
    fn begin_round(&mut self, now: Instant) -> usize {
        self.resting.retain(|_, until| now < *until);
        let unused = |kept: &&KeptFile| now.duration_since(kept.touched) >= 2 * TOUCH;
        let replaceable = || self.kept.values().filter(unused).count();
        if self.is_full() { replaceable() } else { MAX_FILES - self.kept.len() }
    }

    /// Whether one more view would push another one out.
    fn is_full(&self) -> bool {
        self.kept.len() >= MAX_FILES || self.bytes >= MAX_BYTES
    }

    /// The time of a file was updated.
    fn note_touched(&mut self, scope: &Scope, as_of: SystemTime) {
        if let Some(kept) = self.kept.get_mut(scope) {
            (kept.touched, kept.written) = (Instant::now(), as_of);
        }
    }

    fn make_room(&mut self, newest: &Scope) -> Vec<Scope> {
        let is_over = |index: &Self| index.kept.len() > MAX_FILES || index.bytes > MAX_BYTES;
        if !is_over(self) {
            return Vec::new();
        }
        let others = self.kept.iter().filter(|(scope, _)| *scope != newest);
        let mut oldest: Vec<_> = others.map(|(scope, kept)| (kept.written, scope.clone())).collect();
        oldest.sort_unstable_by_key(|(written, _)| *written);
        let oldest = oldest.into_iter().map(|(_, scope)| scope);
        oldest.take_while(|scope| is_over(self).then(|| self.forget(scope)).is_some()).collect()
    }

    fn forget(&mut self, scope: &Scope) {
        self.bytes -= self.kept.remove(scope).map_or(0, |kept| kept.bytes);
    }
}

impl Last {
    /// Number of bytes of memory, roughly.
    fn bytes(&self) -> usize {
        match self {
            Self::Shown(stored) => stored.state.bytes(),
            Self::Hidden => 0,
        }
    }
}

impl KeptFile {
    fn new(state: &State, bytes: u64, written: SystemTime, now: Instant) -> Self {
        let has_children = !state.children.is_empty();
        let rests_until = now + REST;
        Self { revision: state.revision, has_children, bytes, written, is_outdated: false, rests_until, touched: now }
    }

    fn would_be_emptied(&self, by: &State) -> bool {
        self.has_children && by.children.is_empty()
    }
}

#[cfg(test)]
mod tests;
