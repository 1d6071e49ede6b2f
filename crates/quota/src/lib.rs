//! Request quotas, pure: what one is, AWS's published figures, the buckets that admit calls, and the arithmetic
//! by which the nodes of a Region share one quota (DESIGN section 6). No I/O and no clock: time is passed in.
//!
//! * [`Quota`] is a definition, replicated: whose calls, which calls, how many in a second, a minute or a day.
//! * A *bucket* ([`BucketId`]) is one limit of one quota, for one account or principal.
//! * Large buckets of a second are **shared**: each node holds a part of rate and burst ([`Share`]) and counts it
//!   down by itself in a [`RateCell`], one atomic operation a call. All parts add up to at most the whole.
//! * Small ones, and those of a minute or a day, are **prepaid**: the leader keeps a [`Ledger`] and hands out
//!   whole tokens, which a node keeps in a [`Purse`].

mod definition;
mod divide;
mod ledger;
mod pool;
mod profile;
mod purse;
mod rate;

/// What the lock-free cells are made of. `tests/loom.rs` puts loom's in its place.
mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}

pub use definition::{
    BucketId, Covers, Holder, Limit, Quota, QuotaError, QuotaName, Scope, Window,
};
pub use divide::{divide, share_out};
pub use ledger::{Given, Ledger, WindowUse};
pub use pool::Pool;
pub use profile::{PROFILES_AS_OF, Profile, ProfileError};
pub use purse::Purse;
pub use rate::{RateCell, Share, Taken};
