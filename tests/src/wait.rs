//! Waiting for a condition, with a deadline. Tests use this where a sleep would be a guess.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Enough time for anything that needs no session to expire, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(20);

/// Calls `probe` until it returns `Ok`, and returns that value. `Err` describes the state that the probe found instead.
///
/// # Panics
/// When the deadline passes, with `what` and the last `Err`. A probe that hangs is cut off at the deadline.
pub async fn eventually<T>(what: &str, deadline: Duration, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + deadline;
    let mut last = "no answer at all".to_owned();
    loop {
        match timeout_at(end, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(seen)) => last = seen,
            Err(_) => panic!("not within {deadline:?}: {what}; the probe hangs; before that: {last}"),
        }
        if Instant::now() + PAUSE > end {
            panic!("not within {deadline:?}: {what}; last seen: {last}");
        }
        sleep(PAUSE).await;
    }
}

/// Awaits `future` for at most [`SOON`].
///
/// # Panics
/// When it takes longer, with `what`.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(SOON, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {SOON:?}: {what}"),
    }
}

/// Turns a condition into a result for [`eventually`].
pub fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn eventually_returns_the_first_success() {
        let mut calls = 0;
        let value = eventually("three calls", SOON, async || {
            calls += 1;
            if calls == 3 { Ok(calls) } else { Err(format!("{calls} calls")) }
        })
        .await;
        assert_eq!(value, 3);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "last seen: still nothing")]
    async fn eventually_says_what_it_saw_last() {
        eventually("never", SOON, async || Err::<(), _>("still nothing".to_owned())).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "the probe hangs")]
    async fn eventually_cuts_off_a_probe_that_hangs() {
        eventually("never", SOON, async || std::future::pending::<Result<(), String>>().await).await;
    }
}
