//! From [`KmsError`] to a gRPC status, in one table.

use std::cell::RefCell;
use std::collections::VecDeque;

use keyward_model::{ErrorCode, KmsError};
use keyward_proto::{rpc, v1};
use prost::Message;
use tonic::metadata::BinaryMetadataValue;
use tonic::{Code, Status};

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

/// Refusals for a quota that a thread keeps written down.
const KEPT: usize = 16;

/// A refusal as it goes out.
struct Written {
    error: KmsError,
    message: String,
    details: BinaryMetadataValue,
}

thread_local! {
    /// The latest refusals for a quota. Whoever is over a quota gets the same one again and again.
    static WRITTEN: RefCell<VecDeque<Written>> = const { RefCell::new(VecDeque::new()) };
}

/// The status that tells of a refusal, with its typed detail.
#[must_use]
pub fn status(error: KmsError) -> Status {
    let code = if error.outcome_unknown { Code::DeadlineExceeded } else { grpc_code(error.code) };
    let (message, details) = match error.throttle {
        Some(_) => kept(error, code),
        None => {
            let message = error.to_string();
            let details = once(details(&error, code, &message));
            (message, details)
        }
    };
    let mut status = Status::new(code, message);
    status.metadata_mut().insert_bin(DETAILS, details);
    status
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

/// Not worth a place in HPACK's table (RFC 7541, section 2.2): no other answer has it.
fn once(mut details: BinaryMetadataValue) -> BinaryMetadataValue {
    details.set_sensitive(true);
    details
}

/// Message and details of a refusal that may come again: from the second time on they are not written anew, and on
/// their connection the details are a number in HPACK's table.
fn kept(error: KmsError, code: Code) -> (String, BinaryMetadataValue) {
    WRITTEN.with_borrow_mut(|written| {
        if let Some(kept) = written.iter().find(|kept| kept.error == error) {
            return (kept.message.clone(), kept.details.clone());
        }
        let message = error.to_string();
        let details = details(&error, code, &message);
        written.truncate(KEPT - 1);
        let kept = Written { error, message: message.clone(), details: details.clone() };
        written.push_front(kept);
        (message, once(details))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyward_model::Throttle;

    use super::*;

    fn told(status: &Status) -> Option<v1::ErrorDetail> {
        let details = status.metadata().get_bin(DETAILS)?.to_bytes().ok()?;
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
        for round in 0..3 {
            for retry_after_ms in 1..40 {
                let first = status(refusal(retry_after_ms));
                let again = status(refusal(retry_after_ms));
                assert!(!again.metadata().get_bin(DETAILS).expect("details").is_sensitive());
                for status in [first, again] {
                    let detail = told(&status).expect("a detail");
                    let throttle = detail.throttle.expect("a quota");
                    assert_eq!(throttle.retry_after_milliseconds, retry_after_ms, "round {round}");
                    assert_eq!((throttle.quota.as_str(), throttle.limit), ("q", 30));
                    assert_eq!(status.message(), "ThrottlingException: Rate exceeded");
                }
            }
        }
        assert_eq!(WRITTEN.with_borrow(VecDeque::len), KEPT);
    }
}
