//! Logs servers that can't be reached: at once, and then ever more rarely, however many sessions try.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::times::{FIRST_REPORT_PAUSE, LONGEST_REPORT_PAUSE};

/// Maximum number of servers that are remembered. With one more, all are forgotten and reported as new.
const MAX_REPORTED_SERVERS: usize = 1024;

/// The last reports. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    by_server: HashMap<String, ReportedServer>,
    /// The server of the last failure, and the failure. `None` once that server was reached.
    last: Option<(String, String)>,
}

#[derive(Debug)]
struct ReportedServer {
    next_at: Instant,
    pause: Duration,
}

impl Reports {
    /// Logs a failed attempt, unless the same server was reported lately. `server` is its name, with its address if
    /// that is known.
    pub(super) fn failed(&self, server: &str, tried: &str, error: &dyn fmt::Display) {
        self.lock().last = Some((server.to_owned(), format!("{tried}: {error}")));
        if self.is_due(server, Instant::now()) {
            tracing::warn!(server, tried, %error, "a zookeeper server can't be reached; trying again");
        } else {
            tracing::debug!(server, tried, %error, "a zookeeper server can't be reached");
        }
    }

    /// The server has answered, so its next failure is reported at once.
    pub(super) fn reached(&self, server: &str) {
        let mut reports = self.lock();
        reports.by_server.remove(server);
        if reports.last.as_ref().is_some_and(|(failed, _)| failed == server) {
            reports.last = None;
        }
    }

    /// The last failure as text; `None` if that server was reached since.
    pub(super) fn last(&self) -> Option<String> {
        self.lock().last.as_ref().map(|(server, failure)| format!("{server}: {failure}"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    fn is_due(&self, server: &str, now: Instant) -> bool {
        let reports = &mut self.lock().by_server;
        if let Some(report) = reports.get_mut(server) {
            if now < report.next_at {
                return false;
            }
            report.pause = (report.pause * 2).min(LONGEST_REPORT_PAUSE);
            report.next_at = now + report.pause;
            return true;
        }
        if reports.len() >= MAX_REPORTED_SERVERS {
            reports.clear();
        }
        reports
            .insert(server.to_owned(), ReportedServer { next_at: now + FIRST_REPORT_PAUSE, pause: FIRST_REPORT_PAUSE });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_reported_at_once_then_ever_more_rarely_and_anew_once_it_was_reached() {
        let (reports, start) = (Reports::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let due: Vec<u64> = (0..4000).filter(|second| reports.clone().is_due("a", at(*second))).collect();
        assert_eq!(due, [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 3030, 3630]);
        assert!(reports.is_due("b", at(0)) && !reports.is_due("b", at(1)));
        reports.reached("b");
        assert!(reports.is_due("b", at(2)));
        assert!((0..10 * MAX_REPORTED_SERVERS).all(|name| reports.is_due(&name.to_string(), at(0))));
        assert!(reports.lock().by_server.len() <= MAX_REPORTED_SERVERS);
    }
}
