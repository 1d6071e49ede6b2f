//! **Wrong context, wrong key, or a changed bit never opens** (DESIGN section 10, 6), and the error does not tell which
//! of context, material and ciphertext it was.

use keyward_model::{ErrorCode, KmsError};
use keyward_service::Response;

/// What is wrong with a Decrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Another encryption context.
    Context,
    /// The caller names another key.
    Key,
    /// A bit of the ciphertext, its header included.
    Bit,
}

/// Whether a wrong Decrypt was answered as it must be.
///
/// # Errors
/// What is wrong with the answer.
pub fn check(wrong: Wrong, result: &Result<Response, KmsError>) -> Result<(), String> {
    let error = match result {
        Ok(_) => return Err(format!("IT OPENS with a wrong {wrong:?}")),
        Err(error) => error,
    };
    let fits = match error.code {
        // The key cannot be used now, or the node cannot serve: looked at before the ciphertext is.
        ErrorCode::DependencyTimeoutException
        | ErrorCode::KeyUnavailableException
        | ErrorCode::DisabledException
        | ErrorCode::KMSInvalidStateException
        // It is gone; or the header names one that never was.
        | ErrorCode::AccessDeniedException => true,
        ErrorCode::NotFoundException | ErrorCode::IncorrectKeyException => wrong == Wrong::Key,
        ErrorCode::InvalidCiphertextException => {
            let same = KmsError::invalid_ciphertext();
            if error.message != same.message {
                return Err(format!("THE ERROR TELLS MORE of a wrong {wrong:?}: {error:?}"));
            }
            wrong != Wrong::Key
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("A WRONG ERROR for a wrong {wrong:?}: {error:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_or_tells_more_is_noticed() {
        assert!(check(Wrong::Bit, &Ok(Response::Done)).unwrap_err().starts_with("IT OPENS"));
        let invalid = || Err(KmsError::invalid_ciphertext());
        assert!(check(Wrong::Bit, &invalid()).is_ok());
        assert!(check(Wrong::Context, &invalid()).is_ok());
        assert!(check(Wrong::Key, &invalid()).is_err());
        let code = ErrorCode::InvalidCiphertextException;
        let more = Err(KmsError::new(code, "the context does not fit"));
        assert!(check(Wrong::Context, &more).unwrap_err().starts_with("THE ERROR TELLS MORE"));
        let incorrect = || Err(KmsError::new(ErrorCode::IncorrectKeyException, ""));
        assert!(check(Wrong::Key, &incorrect()).is_ok());
        assert!(check(Wrong::Context, &incorrect()).is_err());
        let internal = Err(KmsError::new(ErrorCode::KMSInternalException, ""));
        assert!(check(Wrong::Bit, &internal).is_err());
    }
}
