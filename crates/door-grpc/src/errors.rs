//! From [`KmsError`] to a gRPC status, in one table.

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

/// The status that tells of a refusal, with its typed detail.
#[must_use]
pub fn status(error: KmsError) -> Status {
    let code = if error.outcome_unknown { Code::DeadlineExceeded } else { grpc_code(error.code) };
    let message = error.to_string();
    let detail = v1::ErrorDetail {
        code: error.code.name().to_owned(),
        retryable: error.code.is_retryable(),
        message: error.message.into_owned(),
        outcome_unknown: error.outcome_unknown,
        throttle: error.throttle.map(|throttle| v1::Throttle {
            quota: throttle.quota,
            scope: throttle.scope,
            limit: throttle.limit,
            window_seconds: throttle.window_seconds,
            retry_after_milliseconds: throttle.retry_after_ms,
        }),
    };
    let envelope = rpc::Status {
        code: code as i32,
        message: message.clone(),
        details: vec![prost_types::Any {
            type_url: DETAIL_TYPE.to_owned(),
            value: detail.encode_to_vec(),
        }],
    };
    let mut status = Status::new(code, message);
    let mut details = BinaryMetadataValue::from_bytes(&envelope.encode_to_vec());
    // Not worth a place in HPACK's table (RFC 7541, section 2.2): no other answer has it.
    details.set_sensitive(true);
    status.metadata_mut().insert_bin(DETAILS, details);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(status: &Status) -> Option<v1::ErrorDetail> {
        let details = status.metadata().get_bin(DETAILS)?.to_bytes().ok()?;
        let envelope = rpc::Status::decode(details).ok()?;
        v1::ErrorDetail::decode(envelope.details.first()?.value.as_slice()).ok()
    }

    #[test]
    fn every_error_arrives_with_its_name_and_advice() {
        for code in ErrorCode::ALL {
            let status = status(KmsError::new(code, "why"));
            let detail = detail(&status).expect("a detail");
            assert_eq!(detail.code, code.name());
            assert_eq!(detail.retryable, code.is_retryable());
            assert_eq!(detail.message, "why");
            assert!(!detail.outcome_unknown);
        }
        let unknown = status(KmsError::unknown_outcome("late"));
        assert_eq!(unknown.code(), Code::DeadlineExceeded);
        assert!(detail(&unknown).expect("a detail").outcome_unknown);
    }
}
