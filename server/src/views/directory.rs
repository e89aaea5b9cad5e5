//! The directory that keeps views over a restart: its owner, and its files. Everything here blocks.
//!
//! Each view has one file, named by the hash of its path. A file is written beside its place, synced, and renamed into
//! it, so that a whole one always exists. It holds values, so only the owner may read it.
//!
//! No other user may interfere. The directory belongs to this user and is writable to this user alone; it is opened
//! once, and all its files are opened through that handle. No link is followed, and a new file never reuses an existing
//! one. Anything that is not a regular file of this user, such as a pipe or a device, is not read.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::scope::Scope;
use super::stored::{self, Broken, Stored};

/// Maximum size of a file, in bytes. A larger file is neither written nor read.
pub(super) const MAX_FILE_BYTES: usize = 64 * 1024 * 1024;
/// Maximum size of the file that names the owner, in bytes.
const MAX_OWNER_BYTES: usize = 64 * 1024;

const ENDING: &str = ".view";
/// The ending of a file that was not finished.
const UNFINISHED: &str = ".new";
const LOCK: &str = "lock";
const OWNER: &str = "belongs-to";

/// The ensemble and chroot whose views a directory keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// `HOST:PORT` of each server of the ensemble.
    pub(crate) hosts: Vec<String>,
    /// The path that is prefixed to every path; empty for the root.
    pub(crate) chroot: String,
}

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{} is in use by another process: every replica needs a directory of its own", .0.display())]
    InUse(PathBuf),
    #[error(
        "{} keeps the views of {theirs}, but this replica serves {ours}: name another directory, or empty this one",
        path.display()
    )]
    Foreign { path: PathBuf, theirs: Owner, ours: Owner },
    #[error(
        "{} {cause}: name a directory that belongs to the user of this process and that no other user may write, as \
         mkdir -m 700 creates it",
        path.display()
    )]
    Unsafe { path: PathBuf, cause: String },
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

impl From<Errno> for ReadError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// A directory that belongs to this process for as long as this value lives.
#[derive(Debug)]
pub(super) struct Directory {
    /// For messages.
    path: PathBuf,
    handle: OwnedFd,
    /// Locked. The system releases the lock when the process ends for any reason.
    _lock: File,
}

/// A whole file that was found.
#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) stored: Stored,
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
}

impl Directory {
    /// Takes a directory, which is created if it is missing.
    ///
    /// # Errors
    /// When another process has it, when it keeps views of another ZooKeeper or another chroot, or when it can't be
    /// used.
    pub(super) fn open(path: &Path, owner: &Owner) -> Result<Self, OpenError> {
        let io = |error| OpenError::Io { path: path.to_owned(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let handle = open_directory(path)?;
        let lock = open_file(&handle, LOCK, OFlags::WRONLY | OFlags::CREATE).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let directory = Self { path: path.to_owned(), handle, _lock: lock };
        directory.settle_owner(owner)?;
        Ok(directory)
    }

    /// Checks that the kept views belong to `owner`, and writes down that they do.
    fn settle_owner(&self, owner: &Owner) -> Result<(), OpenError> {
        let io = |error| OpenError::Io { path: self.path.join(OWNER), error };
        let theirs = match self.read_bytes(OWNER, MAX_OWNER_BYTES) {
            Ok((bytes, _)) => String::from_utf8(bytes).ok().and_then(|text| Owner::parse(&text)),
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(ReadError::Io(error)) => return Err(io(error)),
            Err(_) => None,
        };
        match theirs {
            Some(theirs) if !owner.is_same(&theirs) => {
                return Err(OpenError::Foreign { path: self.path.clone(), theirs, ours: owner.clone() });
            }
            Some(theirs) if theirs == *owner => return Ok(()),
            Some(_) => {}
            None => {
                // The owner of these views is no longer known.
                for name in self.names(is_view).map_err(io)? {
                    tracing::error!(file = %self.path.join(&name).display(), "removed a view of an unknown zookeeper");
                    self.remove_file(&name).map_err(io)?;
                }
            }
        }
        self.write_file(OWNER, owner.to_text().as_bytes()).map_err(io)
    }

    /// Finds every view that can be read. A file that can't be read is named in the log and stays where it is.
    pub(super) fn scan(&self, mut found: impl FnMut(FoundFile)) -> io::Result<()> {
        for name in self.names(is_unfinished)? {
            if let Err(error) = self.remove_file(&name) {
                tracing::warn!(file = %self.path.join(&name).display(), %error, "can't remove an unfinished file");
            }
        }
        for name in self.names(is_view)? {
            match self.read_file(&name) {
                Ok(view) if file_name(&view.stored.state.scope()) == name => found(view),
                Ok(_) => self.tell_unreadable(&name, &ReadError::Misplaced),
                Err(error) => self.tell_unreadable(&name, &error),
            }
        }
        Ok(())
    }

    /// Reads one view. A file that can't be read is named in the log.
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

    fn read_file(&self, name: &str) -> Result<FoundFile, ReadError> {
        let (bytes, modified) = self.read_bytes(name, MAX_FILE_BYTES)?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(FoundFile { stored: stored::decode(&Bytes::from(bytes), modified)?, bytes: length, modified })
    }

    /// A file's content, and when it was written.
    fn read_bytes(&self, name: &str, most: usize) -> Result<(Vec<u8>, SystemTime), ReadError> {
        let file = open_file(&self.handle, name, OFlags::RDONLY)?;
        let (limit, modified) = (u64::try_from(most).unwrap_or(u64::MAX), file.metadata()?.modified()?);
        let mut bytes = Vec::new();
        // The limit holds whatever length the file claims to have.
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() > most { Err(ReadError::TooLarge) } else { Ok((bytes, modified)) }
    }

    fn tell_unreadable(&self, name: &str, error: &ReadError) {
        tracing::error!(file = %self.path.join(name).display(), %error, "ignoring a view that can't be read");
    }

    /// Writes one view, completely or not at all.
    pub(super) fn write(&self, scope: &Scope, file: &[u8]) -> io::Result<()> {
        self.write_file(&file_name(scope), file)
    }

    /// Updates the time of a view that has not changed.
    pub(super) fn touch(&self, scope: &Scope, as_of: SystemTime) -> io::Result<()> {
        let (at, bytes) = stored::seen_at(as_of);
        open_file(&self.handle, &file_name(scope), OFlags::WRONLY)?.write_all_at(&bytes, at)
    }

    /// Removes one view.
    pub(super) fn remove(&self, scope: &Scope) -> io::Result<()> {
        self.remove_file(&file_name(scope))
    }

    fn remove_file(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Err(error) if error != Errno::NOENT => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Writes a file, completely or not at all.
    fn write_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Nobody can guess the name beforehand, and an existing file of that name is not opened.
        let unfinished = format!("{name}.{:016x}{UNFINISHED}", rand::random::<u64>());
        let mut file = open_file(&self.handle, &unfinished, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        let placed = written
            .and_then(|()| Ok(rustix::fs::renameat(&self.handle, unfinished.as_str(), &self.handle, name)?))
            // This puts the name on disk, too.
            .and_then(|()| Ok(rustix::fs::fsync(&self.handle)?));
        if placed.is_err() {
            // If this fails, the file is removed at the next start.
            let _ = self.remove_file(&unfinished);
        }
        placed
    }

    /// The names of our files of one kind. Files of others are left alone.
    fn names(&self, is_ours: fn(&str) -> bool) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.handle)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && is_ours(name)
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// Opens a directory that belongs to this user and that no other user may write.
fn open_directory(path: &Path) -> Result<OwnedFd, OpenError> {
    let refused = |cause: String| OpenError::Unsafe { path: path.to_owned(), cause };
    let io = |error: Errno| OpenError::Io { path: path.to_owned(), error: error.into() };
    // With a slash at its end, a link would be followed.
    let plain: PathBuf = path.components().collect();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = match rustix::fs::open(&plain, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(refused("is a link, or no directory".to_owned())),
        opened => opened.map_err(io)?,
    };
    let stat = rustix::fs::fstat(&handle).map_err(io)?;
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != own {
        return Err(refused(format!("belongs to user {}, not to user {own}", stat.st_uid)));
    }
    if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        return Err(refused(format!("may be written by others (mode {:o})", stat.st_mode & 0o7777)));
    }
    Ok(handle)
}

/// Opens a regular file of this user; if it is new, only this user may read it. Never waits, not even for the other end
/// of a pipe.
fn open_file(directory: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let refused = |cause: &str| io::Error::other(format!("{name} is {cause}: remove it"));
    let handle = match rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::LOOP) => return Err(refused("a link")),
        // The error for a pipe without a reader.
        Err(Errno::NXIO) => return Err(refused("no regular file")),
        opened => opened?,
    };
    let stat = rustix::fs::fstat(&handle)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused("no regular file"));
    }
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(refused("a file of another user"));
    }
    Ok(handle.into())
}

fn is_view(name: &str) -> bool {
    let is_hash = |stem: &str| stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.strip_suffix(ENDING).is_some_and(is_hash)
}

/// Whether this is a file that [`Directory::write_file`], or an earlier version of it that added no number, did not
/// finish.
fn is_unfinished(name: &str) -> bool {
    let is_ours = |name: &str| is_view(name) || name == OWNER;
    name.strip_suffix(UNFINISHED)
        .is_some_and(|stem| is_ours(stem) || stem.rsplit_once('.').is_some_and(|(name, _)| is_ours(name)))
}

fn file_name(scope: &Scope) -> String {
    let mut hash = Sha256::new();
    hash.update([u8::from(scope.recursive)]);
    hash.update(scope.path.as_str());
    HEXLOWER.encode(&hash.finalize()) + ENDING
}

impl Owner {
    /// Whether both are the same tree: the same chroot, and ensembles with at least one server in common. Servers come
    /// and go.
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::types::NodePath;
    use crate::views::state::State;

    fn owner() -> Owner {
        Owner { hosts: vec!["zk1:2181".to_owned()], chroot: String::new() }
    }

    /// Opens a directory and scans it; returns its number of views. Fails if that hangs.
    fn open(path: &Path) -> Result<usize, OpenError> {
        let (path, (done, opened)) = (path.to_owned(), mpsc::channel());
        std::thread::spawn(move || {
            let scanned = Directory::open(&path, &owner()).map(|directory| {
                let mut count = 0;
                directory.scan(|_| count += 1).unwrap();
                count
            });
            let _ = done.send(scanned);
        });
        opened.recv_timeout(Duration::from_secs(10)).expect("it does not hang")
    }

    /// A directory with one view, and the name of the view's file.
    fn kept() -> (TempDir, String) {
        let directory = TempDir::new().unwrap();
        let scope = Scope { path: NodePath::trusted("/a"), recursive: false };
        let state = Arc::new(State::empty(scope.path.clone(), false));
        let file = stored::encode(&state, SystemTime::UNIX_EPOCH, MAX_FILE_BYTES).unwrap();
        Directory::open(directory.path(), &owner()).unwrap().write(&scope, &file).unwrap();
        (directory, file_name(&scope))
    }

    #[test]
    fn what_a_link_leads_to_is_neither_written_nor_read() {
        let (directory, view) = kept();
        let outside = TempDir::new().unwrap();
        let target = outside.path().join("precious");
        fs::write(&target, "precious").unwrap();
        for name in ["belongs-to.new".to_owned(), format!("{view}.new"), format!("{}.view", "0".repeat(64))] {
            symlink(&target, directory.path().join(name)).unwrap();
        }
        symlink("/dev/zero", directory.path().join(format!("{}.view", "1".repeat(64)))).unwrap();
        // The owner is written again, since the servers have changed.
        let servers = Owner { hosts: vec!["zk1:2181".to_owned(), "zk2:2181".to_owned()], chroot: String::new() };
        drop(Directory::open(directory.path(), &servers).unwrap());
        assert_eq!(open(directory.path()).unwrap(), 1);
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        for name in ["lock", "belongs-to"] {
            fs::remove_file(directory.path().join(name)).unwrap();
            symlink(&target, directory.path().join(name)).unwrap();
            let error = open(directory.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("{name} is a link: remove it")), "{error}");
            fs::remove_file(directory.path().join(name)).unwrap();
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn pipes_devices_and_directories_are_passed_over() {
        let (directory, view) = kept();
        let handle = open_directory(directory.path()).unwrap();
        let pipe = format!("{}.view", "0".repeat(64));
        rustix::fs::mknodat(&handle, pipe.as_str(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        fs::create_dir(directory.path().join(format!("{}.view", "1".repeat(64)))).unwrap();
        fs::create_dir(directory.path().join(format!("{view}.new"))).unwrap();
        assert_eq!(open(directory.path()).unwrap(), 1);
        fs::remove_file(directory.path().join("lock")).unwrap();
        rustix::fs::mknodat(&handle, "lock", FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let error = open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("lock is no regular file: remove it"), "{error}");
    }

    #[test]
    fn a_directory_that_others_may_write_or_that_is_a_link_is_refused() {
        let (directory, _) = kept();
        for mode in [0o770, 0o702, 0o1777] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = open(directory.path()).unwrap_err();
            assert!(matches!(error, OpenError::Unsafe { .. }), "{error}");
            let error = error.to_string();
            assert!(error.contains(&format!("(mode {mode:o})")) && error.contains("mkdir -m 700"), "{error}");
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(open(directory.path()).unwrap(), 1);
        let outside = TempDir::new().unwrap();
        let link = outside.path().join("link");
        symlink(directory.path(), &link).unwrap();
        for path in [link.clone(), link.join("")] {
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains("is a link"), "{error}");
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(directory.path(), Some(12_345), None).unwrap();
            let error = open(directory.path()).unwrap_err().to_string();
            assert!(error.contains("belongs to user 12345, not to user 0"), "{error}");
        }
    }

    #[test]
    fn what_was_not_finished_is_removed_by_its_name_alone() {
        let hash = "a".repeat(64);
        for name in
            [format!("{hash}.view.new"), format!("{hash}.view.0123456789abcdef.new"), "belongs-to.new".to_owned()]
        {
            assert!(is_unfinished(&name), "{name}");
        }
        for name in ["notes.new", "belongs-to", ".new", "x.view.0.new"] {
            assert!(!is_unfinished(name), "{name}");
        }
    }
}
