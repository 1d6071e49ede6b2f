//! The error catalogue: AWS's error names, whether a retry can help, and Keyward's messages.
//!
//! Names and messages follow the AWS KMS API reference and recorded answers. `ValidationException`,
//! `ThrottlingException` and `AccessDeniedException` may come from any operation.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// An AWS error name, and with it the class of what went wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The caller may not do this.
    AccessDeniedException,
    /// The caller's certificate is revoked, expired or unknown.
    UnrecognizedClientException,
    /// A resource of that name exists already.
    AlreadyExistsException,
    /// Another change of the same kind is under way.
    ConflictException,
    /// No answer in time from something that the call needs, such as a quorum.
    DependencyTimeoutException,
    /// The key is disabled.
    DisabledException,
    /// The call would have succeeded; `DryRun` kept it from being made.
    DryRunOperationException,
    /// The ciphertext was made under another key than the one named.
    IncorrectKeyException,
    /// The alias name is not allowed.
    InvalidAliasNameException,
    /// The ARN is malformed, or of a kind that the operation does not take.
    InvalidArnException,
    /// The ciphertext does not open: altered, foreign, or another encryption context.
    InvalidCiphertextException,
    /// The key's usage or the algorithm does not fit the operation.
    InvalidKeyUsageException,
    /// The pagination marker is not one that was handed out.
    InvalidMarkerException,
    /// Something broke inside.
    KMSInternalException,
    /// The key's state does not allow the operation.
    KMSInvalidStateException,
    /// The key's material cannot be reached now.
    KeyUnavailableException,
    /// A quota of resources (not of rate) is used up.
    LimitExceededException,
    /// No such key, alias, principal or node.
    NotFoundException,
    /// A tag is not allowed.
    TagException,
    /// Too many calls at once.
    ThrottlingException,
    /// The operation is not offered, or not for this kind of key.
    UnsupportedOperationException,
    /// The request is malformed.
    ValidationException,
}

impl ErrorCode {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 22] = [
        Self::AccessDeniedException,
        Self::UnrecognizedClientException,
        Self::AlreadyExistsException,
        Self::ConflictException,
        Self::DependencyTimeoutException,
        Self::DisabledException,
        Self::DryRunOperationException,
        Self::IncorrectKeyException,
        Self::InvalidAliasNameException,
        Self::InvalidArnException,
        Self::InvalidCiphertextException,
        Self::InvalidKeyUsageException,
        Self::InvalidMarkerException,
        Self::KMSInternalException,
        Self::KMSInvalidStateException,
        Self::KeyUnavailableException,
        Self::LimitExceededException,
        Self::NotFoundException,
        Self::TagException,
        Self::ThrottlingException,
        Self::UnsupportedOperationException,
        Self::ValidationException,
    ];

    /// The name as AWS writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AccessDeniedException => "AccessDeniedException",
            Self::UnrecognizedClientException => "UnrecognizedClientException",
            Self::AlreadyExistsException => "AlreadyExistsException",
            Self::ConflictException => "ConflictException",
            Self::DependencyTimeoutException => "DependencyTimeoutException",
            Self::DisabledException => "DisabledException",
            Self::DryRunOperationException => "DryRunOperationException",
            Self::IncorrectKeyException => "IncorrectKeyException",
            Self::InvalidAliasNameException => "InvalidAliasNameException",
            Self::InvalidArnException => "InvalidArnException",
            Self::InvalidCiphertextException => "InvalidCiphertextException",
            Self::InvalidKeyUsageException => "InvalidKeyUsageException",
            Self::InvalidMarkerException => "InvalidMarkerException",
            Self::KMSInternalException => "KMSInternalException",
            Self::KMSInvalidStateException => "KMSInvalidStateException",
            Self::KeyUnavailableException => "KeyUnavailableException",
            Self::LimitExceededException => "LimitExceededException",
            Self::NotFoundException => "NotFoundException",
            Self::TagException => "TagException",
            Self::ThrottlingException => "ThrottlingException",
            Self::UnsupportedOperationException => "UnsupportedOperationException",
            Self::ValidationException => "ValidationException",
        }
    }

    /// True when the same call may succeed later without a change.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::DependencyTimeoutException
                | Self::KMSInternalException
                | Self::KeyUnavailableException
                | Self::ThrottlingException
        )
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refusal, as every door tells it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KmsError {
    /// The class, by AWS's name.
    pub code: ErrorCode,
    /// What was wrong and what would be right. Empty where AWS sends none on purpose.
    pub message: Text,
    /// The call may have taken effect: it was handed on and its answer did not come back in time.
    pub outcome_unknown: bool,
    /// The quota that was hit, in a ThrottlingException of one.
    pub throttle: Option<Arc<Throttle>>,
}

/// The quota that a call was refused for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Throttle {
    /// Its name.
    pub quota: Text,
    /// Whose calls it counts.
    pub scope: Text,
    /// Calls in a window.
    pub limit: u64,
    /// The window's length.
    pub window_seconds: u64,
    /// When to try again, in milliseconds.
    pub retry_after_ms: u64,
}

impl KmsError {
    /// An error with its message.
    pub fn new(code: ErrorCode, message: impl Into<Text>) -> Self {
        Self { code, message: message.into(), outcome_unknown: false, throttle: None }
    }

    /// A malformed request. The message follows AWS's pattern when `detail` does.
    pub fn validation(detail: impl Into<Text>) -> Self {
        Self::new(ErrorCode::ValidationException, detail)
    }

    /// One failed constraint, in AWS's words: `1 validation error detected: Value at 'x' failed to
    /// satisfy constraint: ...`. The value is left out: it may be secret.
    #[must_use]
    pub fn constraint(member: &str, constraint: &str) -> Self {
        Self::validation(format!(
            "1 validation error detected: Value at '{member}' failed to satisfy constraint: {constraint}"
        ))
    }

    /// One failed constraint with the offending value shown.
    #[must_use]
    pub fn constraint_on(member: &str, value: &str, constraint: &str) -> Self {
        Self::validation(format!(
            "1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: {constraint}"
        ))
    }

    /// A required member is absent.
    #[must_use]
    pub fn missing(member: &str) -> Self {
        Self::validation(format!(
            "1 validation error detected: Value null at '{member}' failed to satisfy constraint: \
             Member must not be null"
        ))
    }

    /// The deadline passed while the call was with the cluster: it may have taken effect.
    #[must_use]
    pub fn unknown_outcome(message: impl Into<Text>) -> Self {
        Self {
            code: ErrorCode::DependencyTimeoutException,
            message: message.into(),
            outcome_unknown: true,
            throttle: None,
        }
    }

    /// AWS sends no message with it, so that nothing tells which check failed.
    #[must_use]
    pub const fn invalid_ciphertext() -> Self {
        Self {
            code: ErrorCode::InvalidCiphertextException,
            message: Text::Static(""),
            outcome_unknown: false,
            throttle: None,
        }
    }
}

impl fmt::Display for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            f.write_str(self.code.name())
        } else {
            write!(f, "{}: {}", self.code, self.message)
        }
    }
}

impl std::error::Error for KmsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_once_and_named_as_its_variant() {
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|c| c.name()).collect();
        for code in ErrorCode::ALL {
            assert_eq!(code.name(), format!("{code:?}"));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
    }
}
