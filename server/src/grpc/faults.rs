//! Requests that never reach a method: too large, no protobuf, not UTF-8. tonic answers them with a code only. This
//! module makes that answer an error of this API, with its `ErrorInfo`.

use tonic::Status;
use tonic::body::Body;

use super::status;

/// The header with the details of a status, the `ErrorInfo` among them.
const DETAILS: &str = "grpc-status-details-bin";

/// The same answer, unless it is an error without details. All errors of the service itself have them.
pub(super) fn explained(response: http::Response<Body>) -> http::Response<Body> {
    let headers = response.headers();
    let bare = (!headers.contains_key(DETAILS)).then(|| Status::from_header_map(headers)).flatten();
    match bare.and_then(|bare| status::fault(&bare)) {
        Some(error) => status::status(&error).into_http(),
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::error::Error;

    fn told(status: Status) -> Status {
        Status::from_header_map(explained(status.into_http()).headers()).unwrap()
    }

    #[test]
    fn what_tonic_says_of_a_request_becomes_an_error_of_the_api() {
        for (status, reason) in [
            (Status::out_of_range("decoded message length too large"), "VALUE_TOO_LARGE"),
            (Status::internal("failed to decode Protobuf message: ".repeat(100)), "PROTOCOL"),
            (Status::internal(""), "PROTOCOL"),
        ] {
            let told = told(status);
            assert_eq!(told.code(), status::code(&Error::MessageTooLarge { limit: 0 }));
            assert!(told.message().len() <= 512, "{}", told.message());
            assert_eq!(told.get_details_error_info().unwrap().reason, reason);
        }
    }

    #[test]
    fn what_says_why_stays_as_it_is() {
        let own = status::status(&Error::ReadOnly);
        assert_eq!((told(own.clone()).code(), told(own.clone()).details()), (own.code(), own.details()));
        assert_eq!(told(Status::unimplemented("no such method")).message(), "no such method");
        assert!(explained(http::Response::new(Body::empty())).headers().is_empty());
    }
}
