//! Wall-clock time, as it is written into nodes.

/// Now, UTC, as nd_service_registry writes the time of a call.
pub(crate) fn created_now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S").to_string()
}
