//! Pools: which operations draw on one number (AWS KMS developer guide, "Request quotas").

use std::fmt;
use std::str::FromStr;

use keyward_model::{Operation, Plane};
use serde::{Deserialize, Serialize};

/// The operations that share one number. Each call costs 1, dry runs too; ReEncrypt counts once. The pools of
/// further key types join when those do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Pool {
    /// Cryptographic operations with symmetric keys, and random bytes.
    SymmetricCrypto,
    /// One operation by itself.
    Own(Operation),
}

const SYMMETRIC: &str = "symmetric-crypto";

impl Pool {
    /// The pool that a call draws on.
    #[must_use]
    pub const fn of(operation: Operation) -> Self {
        match operation.plane() {
            Plane::Use => Self::SymmetricCrypto,
            Plane::Read | Plane::Manage => Self::Own(operation),
        }
    }

    /// Every pool.
    pub fn all() -> impl Iterator<Item = Self> {
        let own = Operation::ALL.iter().filter(|op| op.plane() != Plane::Use);
        std::iter::once(Self::SymmetricCrypto).chain(own.map(|op| Self::Own(*op)))
    }

    /// `symmetric-crypto`, or the operation's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SymmetricCrypto => SYMMETRIC,
            Self::Own(operation) => operation.name(),
        }
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(pool) = Self::all().find(|pool| pool.name() == text) {
            return Ok(pool);
        }
        if let Some(operation) = Operation::ALL.iter().find(|op| op.name() == text) {
            let pool = Self::of(*operation);
            return Err(format!("{text} has no quota of its own: it draws on {pool}"));
        }
        Err(format!(
            "'{text}' is no pool: {SYMMETRIC}, or the name of an operation such as CreateKey or DescribeKey"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_draws_on_one_pool_whose_name_reads_back() {
        for operation in Operation::ALL {
            let pool = Pool::of(*operation);
            assert!(Pool::all().any(|one| one == pool));
            assert_eq!(pool.name().parse(), Ok(pool));
        }
        assert_eq!(Pool::of(Operation::GenerateRandom), Pool::SymmetricCrypto);
        assert_eq!(Pool::of(Operation::ListKeys), Pool::Own(Operation::ListKeys));
    }

    #[test]
    fn other_names_are_refused_with_what_would_be_right() {
        assert!("Encrypt".parse::<Pool>().unwrap_err().contains("symmetric-crypto"));
        assert!("encrypt".parse::<Pool>().unwrap_err().contains("CreateKey"));
    }
}
