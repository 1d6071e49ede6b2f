//! Keyward's vocabulary, on the lowest floor: identifiers and ARNs, key metadata, the table of key
//! states and operations, limits, and the catalogue of errors.
//!
//! **Invariant:** no I/O, no async, no clocks, no randomness, no cryptography. Everything here is data
//! and pure functions over data.

mod error;
mod ids;
pub mod limits;
mod operation;
mod text;

pub use error::{ErrorCode, KmsError, Throttle};
pub use ids::{
    AccountId, AliasName, DomainKeyId, KeyArn, KeyId, KeyMaterialId, NodeId, PARTITION,
    ParseIdError, PrincipalArn, Region, Timestamp, alias_arn, key_arn,
};
pub use operation::{KeyState, Operation, Plane, check_state};
pub use text::Text;
