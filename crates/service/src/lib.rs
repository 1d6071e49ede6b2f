//! The operations of the key service, once. Every door translates its protocol into a [`Call`] and hands
//! it to the [`stack`]; the way of a call through it can be read in [`Kms::serve`].
//!
//! **Invariant:** no wire formats. A data-plane call writes no Raft entry, takes no global lock and waits
//! for no disk once its key is open; a control-plane call is exactly one Raft command (a rotation: two).

pub mod api;
mod audit;
mod authority;
mod authorize;
mod crypto;
mod deletion;
mod housekeeping;
mod joining;
mod keys;
mod kms;
mod multiplex;
mod operator;
mod outside;
mod peer;
mod quota;
mod regions;
mod resolve;
mod roots;
mod rotation;
mod snapshot;
mod stack;

pub use api::{Call, Caller, Issuer, Request, Response};
pub use audit::{Audit, Origin, Recorded, Trace};
pub use authority::{
    Authority, AuthorityError, Issued, NODE_URN, REGION_URN, Subject, signing_request,
};
pub use authorize::{Authorize, ByKind, Question};
pub use joining::{Invited, Joined};
pub use kms::Kms;
pub use multiplex::{Multiplex, Numbered, STREAM_CALLS_MAX};
pub use operator::{ClusterStatus, FoundingRequest, MemberStatus, open_authority};
pub use outside::{SeenAuthority, fingerprint};
pub use quota::{BucketFigures, BucketUsage, NodeShare, PlanLine, QuotaUsage, Quotas};
pub use regions::{Decision, RegionCard, RegionDelays, RegionsStatus, SeenLink};
pub use roots::{KeptRoot, RootCommand, RootInfo, RootKeeper, RootReply};
pub use snapshot::{Snapshotting, snapshot_refused};
pub use stack::{Deadline, Handler, Measure, Serve, Shed, Stack, stack};
