//! The two ways to make load: a number of concurrent callers for a time, and a number of requests in flight.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinSet;

/// Calls each of `operations` again and again, from a task of its own, until the time is over. Returns the number of
/// completed operations a second.
///
/// # Errors
/// The first error that an operation ends with.
pub(crate) async fn throughput<Operation, Call>(
    time: Duration,
    operations: impl IntoIterator<Item = Operation>,
) -> anyhow::Result<f64>
where
    Operation: Fn() -> Call + Send + 'static,
    Call: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let begin = Instant::now();
    let end = begin + time;
    let mut tasks = JoinSet::new();
    for operation in operations {
        tasks.spawn(async move {
            let mut count = 0_u32;
            while Instant::now() < end {
                operation().await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut total = 0.0;
    while let Some(ended) = tasks.join_next().await {
        total += f64::from(ended.context("a caller panicked")??);
    }
    // Operations in flight at the end are counted, so the time that they took is counted too.
    Ok(total / begin.elapsed().as_secs_f64())
}

/// Makes the calls for `0..count` from one task, with `window` of them in flight. Returns how long all calls took.
///
/// # Errors
/// The first error that a call ends with.
pub(crate) async fn pipelined<Call>(
    count: usize,
    window: usize,
    call: impl Fn(usize) -> Call,
) -> anyhow::Result<Duration>
where
    Call: Future<Output = anyhow::Result<()>>,
{
    let begin = Instant::now();
    let mut numbers = 0..count;
    let mut flight: FuturesUnordered<Call> = numbers.by_ref().take(window).map(&call).collect();
    while let Some(ended) = flight.next().await {
        ended?;
        flight.extend(numbers.next().map(&call));
    }
    Ok(begin.elapsed())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::iter::repeat_n;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn pipelined_makes_every_call_once_and_never_more_than_the_window_at_once() {
        let (flying, most, made) = (Cell::new(0), Cell::new(0), Cell::new(0));
        pipelined(100, 7, async |number| {
            flying.set(flying.get() + 1);
            most.set(flying.get().max(most.get()));
            made.set(made.get() + number);
            tokio::task::yield_now().await;
            flying.set(flying.get() - 1);
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!((most.get(), made.get()), (7, 99 * 100 / 2));
    }

    #[tokio::test]
    async fn throughput_counts_what_was_completed() {
        let calls = Arc::new(AtomicU32::new(0));
        let begin = Instant::now();
        let counted = Arc::clone(&calls);
        let operation = move || {
            let counted = Arc::clone(&counted);
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                counted.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        };
        let rate = throughput(Duration::from_millis(30), repeat_n(operation, 3)).await.unwrap();
        let least = f64::from(calls.load(Ordering::Relaxed)) / begin.elapsed().as_secs_f64();
        assert!(rate >= least && rate > 0.0, "{rate} is less than {least}");
    }

    #[tokio::test]
    async fn a_failed_call_ends_the_measurement() {
        let failing = async |number| if number == 3 { anyhow::bail!("three") } else { Ok(()) };
        assert_eq!(pipelined(10, 2, failing).await.unwrap_err().to_string(), "three");
    }
}
