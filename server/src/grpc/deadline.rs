//! What ends a stream from outside: its deadline, which counts as a broken stream whether or not the client keeps time
//! itself, and the end of the replica.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Request;
use tonic::metadata::MetadataMap;

use super::{Responses, status};
use crate::error::Error;

/// The deadline of a call.
pub(super) fn of<T>(request: &Request<T>) -> Option<Instant> {
    let header = timeout_header(request.metadata())?;
    Instant::now().checked_add(parse(header)?)
}

fn timeout_header(metadata: &MetadataMap) -> Option<&str> {
    metadata.get("grpc-timeout")?.to_str().ok()
}

/// `grpc-timeout` is up to eight digits and a unit.
///
/// Source: gRPC over HTTP2, «Requests».
fn parse(header: &str) -> Option<Duration> {
    let (unit_at, unit) = header.char_indices().next_back()?;
    let number: u64 = header[..unit_at].parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(number.checked_mul(3600)?),
        'M' => Duration::from_secs(number.checked_mul(60)?),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Ends a stream at its deadline, or when the replica goes down; everything that it holds is dropped then.
pub(super) fn bound<T: Send + 'static>(
    responses: Responses<T>,
    deadline: Option<Instant>,
    mut going_down: watch::Receiver<bool>,
) -> Responses<T> {
    let end = Box::pin(async move {
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => status::status(&Error::DeadlineExceeded),
            _ = going_down.wait_for(|going_down| *going_down) => status::status(&Error::Draining),
        }
    });
    let bounded = stream::unfold(Some((responses, end)), |open| async move {
        let (mut responses, mut end) = open?;
        tokio::select! {
            biased;
            status = &mut end => Some((Err(status), None)),
            response = responses.next() => Some((response?, Some((responses, end)))),
        }
    });
    Box::pin(bounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(parse("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "1x", "-1S", "1é"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
