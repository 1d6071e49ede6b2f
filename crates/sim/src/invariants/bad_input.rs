//! **A bad input gets a clear typed error and changes nothing** (DESIGN section 10, 10). That it changes nothing shows
//! where keys and descriptions are read: what it asked for was never begun (`check.rs`).

use keyward_model::{ErrorCode, KmsError};
use keyward_service::Response;

/// What is wrong with an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// A key id that nobody was given.
    UnknownKey,
    /// A text that is no key id.
    MalformedId,
    /// A description that is too long.
    LongDescription,
    /// A waiting period that is too short or too long.
    WaitingPeriod,
}

impl Bad {
    const fn code(self) -> ErrorCode {
        match self {
            Self::UnknownKey | Self::MalformedId => ErrorCode::NotFoundException,
            Self::LongDescription | Self::WaitingPeriod => ErrorCode::ValidationException,
        }
    }
}

/// Whether a bad input was answered as it must be: with its error, or with one of a node that cannot serve.
///
/// # Errors
/// What is wrong with the answer.
pub fn check(bad: Bad, result: &Result<Response, KmsError>) -> Result<(), String> {
    match result {
        Err(error) if error.outcome_unknown => Err(format!("{bad:?} WAS PROPOSED: {error:?}")),
        Err(error) if error.code == ErrorCode::DependencyTimeoutException => Ok(()),
        Err(error) if error.code == bad.code() && !error.message.is_empty() => Ok(()),
        other => Err(format!("A WRONG ANSWER to a bad input, {bad:?}: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input_that_is_taken_or_told_wrongly_is_noticed() {
        let error = |code| Err(KmsError::new(code, "text"));
        assert!(check(Bad::WaitingPeriod, &Ok(Response::Done)).is_err());
        assert!(check(Bad::WaitingPeriod, &error(ErrorCode::ValidationException)).is_ok());
        assert!(check(Bad::UnknownKey, &error(ErrorCode::ValidationException)).is_err());
        assert!(check(Bad::UnknownKey, &error(ErrorCode::NotFoundException)).is_ok());
        assert!(check(Bad::UnknownKey, &error(ErrorCode::KMSInternalException)).is_err());
        let silent = Err(KmsError::new(ErrorCode::NotFoundException, ""));
        assert!(check(Bad::MalformedId, &silent).is_err());
        let unknown = Err(KmsError::unknown_outcome("it may have taken effect"));
        assert!(check(Bad::LongDescription, &unknown).is_err());
    }
}
