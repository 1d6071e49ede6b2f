//! **A bad input gets a clear typed error and changes nothing** (DESIGN section 10, 10). That it changes nothing shows
//! where keys and descriptions are read: what it asked for was never begun (`crates/check/src/history.rs`); and in the quotas of every node,
//! of which each is one that an operator has asked for (`Quotas`).

use std::collections::BTreeMap;
use std::fmt::Debug;

use keyward_model::{ErrorCode, KmsError};

use super::quotas::Meters;
use crate::book::Book;
use crate::cluster::Cluster;

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
    /// A call about quotas.
    Quota(BadQuota),
}

/// What is wrong with a call about quotas. (Limits below zero do not get so far: they are no numbers of their fields.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadQuota {
    /// No limit at all.
    Empty,
    /// A limit of nothing.
    Zero,
    /// A burst of nothing.
    ZeroBurst,
    /// A limit beyond reason.
    Absurd,
    /// A burst beyond reason.
    AbsurdBurst,
    /// A burst that is too small to be counted across nodes.
    SmallBurst,
    /// A burst of a window that has none.
    LongBurst,
    /// Two limits of one window.
    Twice,
    /// A limit of a short window that is larger than that of the long one.
    Conflict,
    /// A limit of a long window that the one of a short window never lets calls reach.
    NeverReached,
    /// A principal that nobody made.
    UnknownPrincipal,
    /// A quota to be removed that nobody set.
    UnknownQuota,
    /// A profile that is none.
    UnknownProfile,
    /// A caller who is no operator.
    NoOperator,
}

impl BadQuota {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Empty,
        Self::Zero,
        Self::ZeroBurst,
        Self::Absurd,
        Self::AbsurdBurst,
        Self::SmallBurst,
        Self::LongBurst,
        Self::Twice,
        Self::Conflict,
        Self::NeverReached,
        Self::UnknownPrincipal,
        Self::UnknownQuota,
        Self::UnknownProfile,
        Self::NoOperator,
    ];

    const fn code(self) -> ErrorCode {
        match self {
            Self::UnknownPrincipal | Self::UnknownQuota => ErrorCode::NotFoundException,
            Self::NoOperator => ErrorCode::AccessDeniedException,
            _ => ErrorCode::ValidationException,
        }
    }

    /// What its error must say: one that fits another mistake is not clear.
    const fn says(self) -> &'static str {
        match self {
            Self::Empty => "at least one limit",
            Self::Zero | Self::ZeroBurst => "a limit of 0 a ",
            Self::Absurd | Self::AbsurdBurst => "beyond what can be counted: at most ",
            Self::SmallBurst => "is too small for ",
            Self::LongBurst => "a burst goes with a limit a second",
            Self::Twice => "two limits a ",
            Self::Conflict => "make the longer one larger",
            Self::NeverReached => "can never be reached",
            Self::UnknownPrincipal => "is not a principal of this Region",
            Self::UnknownQuota => "there is no quota ",
            Self::UnknownProfile => "profile",
            Self::NoOperator => "is not an operator",
        }
    }
}

impl Bad {
    const fn code(self) -> ErrorCode {
        match self {
            Self::UnknownKey | Self::MalformedId => ErrorCode::NotFoundException,
            Self::LongDescription | Self::WaitingPeriod => ErrorCode::ValidationException,
            Self::Quota(bad) => bad.code(),
        }
    }

    const fn says(self) -> &'static str {
        match self {
            Self::Quota(bad) => bad.says(),
            _ => "",
        }
    }
}

/// Whether a bad input was answered as it must be: with its error, or with one of a node that cannot serve.
///
/// # Errors
/// What is wrong with the answer.
pub fn check<T: Debug>(bad: Bad, result: &Result<T, KmsError>) -> Result<(), String> {
    let is_clear =
        |error: &KmsError| !error.message.is_empty() && error.message.contains(bad.says());
    match result {
        Err(error) if error.outcome_unknown => Err(format!("{bad:?} WAS PROPOSED: {error:?}")),
        Err(error) if error.code == ErrorCode::DependencyTimeoutException => Ok(()),
        Err(error) if error.code == bad.code() && is_clear(error) => Ok(()),
        other => Err(format!("A WRONG ANSWER to a bad input, {bad:?}: {other:?}")),
    }
}

/// The quotas of nodes, as of the last look.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    /// Each machine's revision of them.
    looked_at: BTreeMap<usize, u64>,
}

impl Quotas {
    /// Every quota of every node is one that an operator has asked for.
    pub(super) fn look(&mut self, cluster: &Cluster, meters: &Meters, book: &mut Book) {
        for index in cluster.machines() {
            let Some(running) = cluster.running(index) else { continue };
            let state = running.kms.node().state();
            let revision = state.quotas_revision;
            if self.looked_at.insert(index, revision) == Some(revision) {
                continue;
            }
            for quota in state.quotas() {
                if !meters.were_asked_for(quota) {
                    let node = cluster.id(index);
                    book.violate(format!("A QUOTA THAT NOBODY SET on node {node}: {quota:?}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use keyward_service::Response;

    use super::*;

    #[test]
    fn bad_input_that_is_taken_or_told_wrongly_is_noticed() {
        let error = |code| Err::<Response, _>(KmsError::new(code, "text"));
        assert!(check(Bad::WaitingPeriod, &Ok(Response::Done)).is_err());
        assert!(check(Bad::WaitingPeriod, &error(ErrorCode::ValidationException)).is_ok());
        assert!(check(Bad::UnknownKey, &error(ErrorCode::ValidationException)).is_err());
        assert!(check(Bad::UnknownKey, &error(ErrorCode::NotFoundException)).is_ok());
        assert!(check(Bad::UnknownKey, &error(ErrorCode::KMSInternalException)).is_err());
        let silent = Err::<(), _>(KmsError::new(ErrorCode::NotFoundException, ""));
        assert!(check(Bad::MalformedId, &silent).is_err());
        let unknown = Err::<(), _>(KmsError::unknown_outcome("it may have taken effect"));
        assert!(check(Bad::LongDescription, &unknown).is_err());
    }

    #[test]
    fn a_quota_is_refused_for_what_is_wrong_with_it() {
        let refused = |text| Err::<(), _>(KmsError::validation(text));
        let twice = refused("two limits a second: name one");
        assert!(check(Bad::Quota(BadQuota::Twice), &twice).is_ok());
        assert!(check(Bad::Quota(BadQuota::Zero), &twice).is_err());
        for bad in BadQuota::ALL {
            assert!(check(Bad::Quota(bad), &Ok(())).is_err(), "{bad:?}");
            assert!(check(Bad::Quota(bad), &refused("invalid")).is_err(), "{bad:?}");
        }
    }
}
