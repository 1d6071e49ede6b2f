//! From [`KmsError`] to a gRPC status, in one table.

use std::cell::RefCell;
use std::collections::VecDeque;

use http::{HeaderMap, HeaderName};
use keyward_model::{ErrorCode, KmsError};
use keyward_proto::{rpc, v1};
use prost::Message;
use tonic::metadata::BinaryMetadataValue;
use tonic::{Code, Status};

/// Where gRPC has a status.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Where gRPC has a status's details.
const DETAILS: &str = "grpc-status-details-bin";
const DETAIL_TYPE: &str = "type.googleapis.com/keyward.v1.ErrorDetail";

const fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::AccessDeniedException => Code::PermissionDenied,
        ErrorCode::UnrecognizedClientException => Code::Unauthenticated,
        ErrorCode::AlreadyExistsException => Code::AlreadyExists,
        ErrorCode::ConflictException => Code::Aborted,
        ErrorCode::DependencyTimeoutException | ErrorCode::KeyUnavailableException => {
            Code::Unavailable
        }
        ErrorCode::DisabledException
        | ErrorCode::DryRunOperationException
        | ErrorCode::KMSInvalidStateException => Code::FailedPrecondition,
        ErrorCode::IncorrectKeyException
        | ErrorCode::InvalidAliasNameException
        | ErrorCode::InvalidArnException
        | ErrorCode::InvalidCiphertextException
        | ErrorCode::InvalidKeyUsageException
        | ErrorCode::InvalidMarkerException
        | ErrorCode::TagException
        | ErrorCode::ValidationException => Code::InvalidArgument,
        ErrorCode::KMSInternalException => Code::Internal,
        ErrorCode::LimitExceededException | ErrorCode::ThrottlingException => {
            Code::ResourceExhausted
        }
        ErrorCode::NotFoundException => Code::NotFound,
        ErrorCode::UnsupportedOperationException => Code::Unimplemented,
    }
}

/// The status that tells of a refusal, with its typed detail.
#[must_use]
pub fn status(error: KmsError) -> Status {
    let code = if error.outcome_unknown { Code::DeadlineExceeded } else { grpc_code(error.code) };
    let message = error.to_string();
    let mut details = details(&error, code, &message);
    // Not worth a place in HPACK's table (RFC 7541, section 2.2): no other answer has it.
    details.set_sensitive(true);
    let mut status = Status::new(code, message);
    status.metadata_mut().insert_bin(DETAILS, details);
    status
}

/// Refusals for a quota that a thread keeps written down.
const KEPT: usize = 16;

thread_local! {
    /// The latest refusals for a quota, as they go out. Whoever is over a quota gets the same one again and again.
    static WRITTEN: RefCell<VecDeque<(KmsError, HeaderMap)>> = const { RefCell::new(VecDeque::new()) };
}

/// The headers of an answer that is nothing but a refusal.
///
/// One for a quota may come again: from the second time on it is not written anew, and on its connection the details are a
/// number in HPACK's table.
pub(crate) fn trailers_only(error: KmsError) -> HeaderMap {
    if error.throttle.is_none() {
        return written(error);
    }
    WRITTEN.with_borrow_mut(|kept| {
        if let Some((_, headers)) = kept.iter().find(|(kept, _)| *kept == error) {
            return headers.clone();
        }
        let first = written(error.clone());
        let mut again = first.clone();
        if let Some(details) = again.get_mut(DETAILS) {
            details.set_sensitive(false);
        }
        kept.truncate(KEPT - 1);
        kept.push_front((error, again));
        first
    })
}

fn written(error: KmsError) -> HeaderMap {
    status(error).into_http::<()>().into_parts().0.headers
}

/// A refusal's typed detail.
pub(crate) fn detail(error: &KmsError) -> v1::ErrorDetail {
    v1::ErrorDetail {
        code: error.code.name().to_owned(),
        retryable: error.code.is_retryable(),
        message: error.message.to_string(),
        outcome_unknown: error.outcome_unknown,
        throttle: error.throttle.as_deref().map(|throttle| v1::Throttle {
            quota: throttle.quota.to_string(),
            scope: throttle.scope.to_string(),
            limit: throttle.limit,
            window_seconds: throttle.window_seconds,
            retry_after_milliseconds: throttle.retry_after_ms,
        }),
    }
}

fn details(error: &KmsError, code: Code, message: &str) -> BinaryMetadataValue {
    let envelope = rpc::Status {
        code: code as i32,
        message: message.to_owned(),
        details: vec![prost_types::Any {
            type_url: DETAIL_TYPE.to_owned(),
            value: detail(error).encode_to_vec(),
        }],
    };
    BinaryMetadataValue::from_bytes(&envelope.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyward_model::Throttle;

    use super::*;

    fn told(status: &Status) -> Option<v1::ErrorDetail> {
        // Where a server has put them, and where a client finds them.
        let put = status.metadata().get_bin(DETAILS).and_then(|details| details.to_bytes().ok());
        let details = put.unwrap_or_else(|| status.details().to_vec().into());
        let envelope = rpc::Status::decode(details).ok()?;
        v1::ErrorDetail::decode(envelope.details.first()?.value.as_slice()).ok()
    }

    #[test]
    fn every_error_arrives_with_its_name_and_advice() {
        for code in ErrorCode::ALL {
            let status = status(KmsError::new(code, "why"));
            let detail = told(&status).expect("a detail");
            assert_eq!(detail.code, code.name());
            assert_eq!(detail.retryable, code.is_retryable());
            assert_eq!(detail.message, "why");
            assert!(!detail.outcome_unknown);
        }
        let unknown = status(KmsError::unknown_outcome("late"));
        assert_eq!(unknown.code(), Code::DeadlineExceeded);
        assert!(told(&unknown).expect("a detail").outcome_unknown);
    }
    #[test]
    fn a_refusal_for_a_quota_that_comes_again_says_what_it_has_to() {
        let refusal = |retry_after_ms| KmsError {
            throttle: Some(Arc::new(Throttle {
                quota: "q".into(),
                scope: "s".into(),
                limit: 30,
                window_seconds: 1,
                retry_after_ms,
            })),
            ..KmsError::new(ErrorCode::ThrottlingException, "Rate exceeded")
        };
        let told = |headers: &HeaderMap| {
            let status = Status::from_header_map(headers).expect("a status");
            told(&status).expect("a detail")
        };
        for round in 0..3 {
            for retry_after_ms in 1..40 {
                let first = trailers_only(refusal(retry_after_ms));
                let again = trailers_only(refusal(retry_after_ms));
                assert!(!again[DETAILS].is_sensitive());
                for headers in [first, again] {
                    let throttle = told(&headers).throttle.expect("a quota");
                    assert_eq!(throttle.retry_after_milliseconds, retry_after_ms, "round {round}");
                    assert_eq!((throttle.quota.as_str(), throttle.limit), ("q", 30));
                    assert_eq!(headers["grpc-message"], "ThrottlingException:%20Rate%20exceeded");
                    assert_eq!((&headers[GRPC_STATUS], headers.len()), (&"8".parse().unwrap(), 4));
                }
            }
        }
        assert_eq!(WRITTEN.with_borrow(VecDeque::len), KEPT);
        let other = || KmsError::new(ErrorCode::DisabledException, "why");
        assert!((0..2).all(|_| trailers_only(other())[DETAILS].is_sensitive()));
    }
}
