//! The directory that keeps views over a restart: who may use it, and its files. Everything here blocks.
//!
//! One file a view, named by the hash of its path. A file is written beside its place, synced, and renamed into it, so
//! that there is always a whole one. It holds values: only the owner may read it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::scope::Scope;
use super::stored::{self, Broken, Stored};

/// A file of more bytes is neither written nor read.
pub(super) const MAX_FILE_BYTES: usize = 64 * 1024 * 1024;

const ENDING: &str = ".view";
/// A file that was not finished.
const UNFINISHED: &str = ".new";
const LOCK: &str = "lock";
const OWNER: &str = "belongs-to";

/// Whose views a directory keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// `HOST:PORT` of each server of the ensemble.
    pub(crate) hosts: Vec<String>,
    /// The path below which everything lives; empty for the root.
    pub(crate) chroot: String,
}

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{} is in use by another process: every replica needs a directory of its own", .0.display())]
    InUse(PathBuf),
    #[error("{} keeps what {theirs} holds, and this replica is to serve {ours}: give it another directory, or empty this one", path.display())]
    Foreign { path: PathBuf, theirs: Owner, ours: Owner },
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Why a file can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Broken(#[from] Broken),
    #[error("it belongs to another path")]
    Misplaced,
    #[error("it is over {MAX_FILE_BYTES} bytes")]
    TooLarge,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A directory that belongs to this process for as long as this lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Locked. The system gives the lock back when the process ends, whatever ends it.
    _lock: File,
}

/// A whole file that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) stored: Stored,
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
}

impl Directory {
    /// Takes a directory, which is made if it is missing.
    ///
    /// # Errors
    /// When another process has it, when it keeps views of another ZooKeeper or another chroot, or when it can't be
    /// used.
    pub(super) fn open(path: &Path, owner: &Owner) -> Result<Self, OpenError> {
        let io = |error| OpenError::Io { path: path.to_owned(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let lock = private().create(true).truncate(false).open(path.join(LOCK)).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let directory = Self { path: path.to_owned(), _lock: lock };
        directory.settle_owner(owner)?;
        Ok(directory)
    }

    /// Checks that what is kept is `owner`'s, and notes that it is.
    fn settle_owner(&self, owner: &Owner) -> Result<(), OpenError> {
        let io = |error| OpenError::Io { path: self.path.clone(), error };
        let note = self.path.join(OWNER);
        let theirs = match fs::read_to_string(&note) {
            Ok(text) => Owner::parse(&text),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => None,
            Err(error) => return Err(io(error)),
        };
        match theirs {
            Some(theirs) if !owner.is_same(&theirs) => {
                return Err(OpenError::Foreign { path: self.path.clone(), theirs, ours: owner.clone() });
            }
            Some(theirs) if theirs == *owner => return Ok(()),
            Some(_) => {}
            None => {
                // Whose they are can't be told any more.
                for name in self.names(ENDING).map_err(io)? {
                    tracing::error!(file = %self.path.join(&name).display(), "no note says whose this view is: removed");
                    fs::remove_file(self.path.join(name)).map_err(io)?;
                }
            }
        }
        self.write_file(OWNER, owner.to_text().as_bytes()).map_err(io)
    }

    /// Every view that can be read; what can't be is named in the log, and stays where it is.
    pub(super) fn scan(&self, mut found: impl FnMut(Found)) -> io::Result<()> {
        for name in self.names(UNFINISHED)? {
            fs::remove_file(self.path.join(name))?;
        }
        for name in self.names(ENDING)? {
            match self.read_file(&name) {
                Ok(view) if file_name(&view.stored.state.scope()) == name => found(view),
                Ok(_) => self.tell_unreadable(&name, &ReadError::Misplaced),
                Err(error) => self.tell_unreadable(&name, &error),
            }
        }
        Ok(())
    }

    /// Reads one view; what can't be read is named in the log.
    pub(super) fn read(&self, scope: &Scope) -> Option<Stored> {
        let name = file_name(scope);
        match self.read_file(&name) {
            Ok(found) if found.stored.state.scope() == *scope => Some(found.stored),
            Ok(_) => {
                self.tell_unreadable(&name, &ReadError::Misplaced);
                None
            }
            Err(error) => {
                self.tell_unreadable(&name, &error);
                None
            }
        }
    }

    fn read_file(&self, name: &str) -> Result<Found, ReadError> {
        let path = self.path.join(name);
        let metadata = fs::metadata(&path)?;
        if metadata.len() > u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX) {
            return Err(ReadError::TooLarge);
        }
        let modified = metadata.modified()?;
        let stored = stored::decode(&Bytes::from(fs::read(&path)?), modified)?;
        Ok(Found { stored, bytes: metadata.len(), modified })
    }

    fn tell_unreadable(&self, name: &str, error: &ReadError) {
        tracing::error!(file = %self.path.join(name).display(), %error, "a kept view can't be read, and is ignored");
    }

    /// Writes one view, whole or not at all.
    pub(super) fn write(&self, scope: &Scope, file: &[u8]) -> io::Result<()> {
        self.write_file(&file_name(scope), file)
    }

    /// Moves the time of a view that has not changed.
    pub(super) fn touch(&self, scope: &Scope, as_of: SystemTime) -> io::Result<()> {
        let (at, bytes) = stored::seen_at(as_of);
        private().open(self.path.join(file_name(scope)))?.write_all_at(&bytes, at)
    }

    /// Removes one view.
    pub(super) fn remove(&self, scope: &Scope) -> io::Result<()> {
        match fs::remove_file(self.path.join(file_name(scope))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.path.join(format!("{name}{UNFINISHED}"));
        let mut file = private().create(true).truncate(true).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, self.path.join(name))?;
        // The name, too, is on disk now.
        File::open(&self.path)?.sync_all()
    }

    /// Our files with this ending; others' are left alone.
    fn names(&self, ending: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let stem = name.strip_suffix(ending).map(|stem| stem.strip_suffix(ENDING).unwrap_or(stem));
            let is_hash = |stem: &str| stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
            if stem.is_some_and(is_hash) {
                names.push(name);
            }
        }
        Ok(names)
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn file_name(scope: &Scope) -> String {
    use std::fmt::Write as _;
    let mut hash = Sha256::new();
    hash.update([u8::from(scope.recursive)]);
    hash.update(scope.path.as_str());
    let mut name = String::new();
    for byte in hash.finalize() {
        let _ = write!(name, "{byte:02x}");
    }
    name + ENDING
}

impl Owner {
    /// The same tree: the same chroot, and an ensemble that has at least one server in common. Servers come and go.
    fn is_same(&self, other: &Self) -> bool {
        self.chroot == other.chroot && self.hosts.iter().any(|host| other.hosts.contains(host))
    }

    fn parse(text: &str) -> Option<Self> {
        let (hosts, chroot) = text.strip_suffix('\n')?.split_once('\n')?;
        Some(Self { hosts: hosts.split(',').map(str::to_owned).collect(), chroot: chroot.to_owned() })
    }

    fn to_text(&self) -> String {
        format!("{}\n{}\n", self.hosts.join(","), self.chroot)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}{}", self.hosts.join(","), self.chroot)
    }
}
