//! What went wrong, for people: the cause, and what to do next.

use std::fmt;

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    message: String,
    next: Option<String>,
}

impl Failure {
    /// A failure with its cause.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), next: None }
    }

    /// A failure from an error, with the errors behind it.
    pub fn from_error(error: impl std::error::Error + 'static) -> Self {
        Self::new(keyward_door_grpc::describe(&error))
    }

    /// Adds what to do next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.next {
            Some(next) => write!(f, "\n  next: {next}"),
            None => Ok(()),
        }
    }
}

impl From<keyward_client::CallError> for Failure {
    fn from(error: keyward_client::CallError) -> Self {
        let next = match error.code.as_deref() {
            Some("AccessDeniedException") => {
                Some("`keyward principal list` (as an operator) shows who may do what")
            }
            Some("NotFoundException") => {
                Some("`keyward key list` and `keyward alias list` show what there is")
            }
            Some("DisabledException") => Some("`keyward key enable KEY` switches it on"),
            Some("UnrecognizedClientException") => Some(
                "an operator sees to it: `keyward principal list`, then `enable ARN` or `renew ARN`",
            ),
            Some("KeyUnavailableException") => {
                Some("`keyward root list` shows which roots are away")
            }
            Some("DependencyTimeoutException") if !error.outcome_unknown => {
                Some("`keyward cluster status` shows which nodes are up")
            }
            _ if error.outcome_unknown => Some("look whether it took effect before trying again"),
            None => Some(
                "check the endpoints (--endpoint or KEYWARD_ENDPOINTS), and that the nodes are running",
            ),
            _ => None,
        };
        let failure = Self::new(error.to_string());
        match next {
            Some(next) => failure.next(next),
            None => failure,
        }
    }
}

impl From<keyward_client::ConfigError> for Failure {
    fn from(error: keyward_client::ConfigError) -> Self {
        Self::from_error(error)
    }
}
