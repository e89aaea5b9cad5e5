//! Process groups. Each command that is started leads a group, so that everything that it starts can be signalled and
//! ended with it.

use std::io;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;

use super::orphans::Ours;

/// A process that leads a group of its own.
#[derive(Debug)]
pub(crate) struct Group {
    process: tokio::process::Child,
    leader: Ours,
}

impl Group {
    /// Starts a command as the leader of a new group.
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        let process = command.process_group(0).spawn()?;
        let id = process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let id = id.ok_or_else(|| io::Error::other("it has no process id"))?;
        Ok(Self { process, leader: Ours::new(id) })
    }

    pub(crate) fn id(&self) -> Pid {
        self.leader.id()
    }

    /// Waits for the end of the leader.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Whether the end of the leader was not waited for yet.
    pub(crate) fn is_running(&self) -> bool {
        self.process.id().is_some()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // The group may be empty already.
        let _ = kill_process_group(self.id(), signal);
    }

    /// Kills the group when the returned value is dropped, for whatever reason.
    pub(crate) fn killed_on_drop(&self) -> KilledOnDrop {
        KilledOnDrop(self.id())
    }
}

/// Kills the group when it is dropped: from [`Group::killed_on_drop`].
pub(crate) struct KilledOnDrop(Pid);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // Mostly the group is empty already.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}
