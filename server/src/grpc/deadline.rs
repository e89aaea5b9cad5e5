//! A deadline on a stream ends it, as if it had broken, whether or not the client keeps time itself.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;
use tonic::Request;
use tonic::metadata::MetadataMap;

use super::{Responses, status};

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

/// Ends a stream at its deadline; everything that it holds is dropped then.
pub(super) fn bound<T: Send + 'static>(responses: Responses<T>, deadline: Option<Instant>) -> Responses<T> {
    let Some(deadline) = deadline else { return responses };
    let bounded = stream::unfold(Some(responses), move |responses| async move {
        let mut responses = responses?;
        match tokio::time::timeout_at(deadline, responses.next()).await {
            Ok(response) => Some((response?, Some(responses))),
            Err(_) => Some((Err(status::deadline_exceeded()), None)),
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
