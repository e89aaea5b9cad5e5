//! Evict.

use std::time::{Duration, SystemTime};

use rollcall_proto::server::v1;

use super::times::DEFAULT_EVICTION;
use super::{Service, convert};
use crate::error::Error;

/// Durations that an eviction may have.
const EVICTION_DURATIONS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

impl Service {
    pub(super) async fn do_evict(&self, request: v1::EvictRequest) -> Result<v1::EvictResponse, Error> {
        self.check_writable()?;
        let path = self.settings.path_to_write(&request.path)?;
        let duration = convert::duration_or_zero("duration", request.duration)?.unwrap_or(DEFAULT_EVICTION);
        if duration.is_zero() {
            self.evictions.lift(&path).await?;
            return Ok(v1::EvictResponse { removed: false, until_time: None });
        }
        if !EVICTION_DURATIONS.contains(&duration) {
            return Err(Error::Protocol { field: "duration", cause: "it must be zero, or 1s to 24h".to_owned() });
        }
        let removed = self.evictions.evict(&path, duration).await?;
        let until = SystemTime::now() + duration;
        Ok(v1::EvictResponse { removed, until_time: Some(convert::timestamp_to_proto(until)) })
    }
}
