//! The replicated state of a Region: commands and a pure `apply`, the tables, queries over an immutable
//! snapshot, and the small [`Store`] that it all rests on.
//!
//! **Invariant:** no clocks, no randomness, no threads, no network. `apply` is a function of (state,
//! command) alone: time and randomness ride inside the command. A row in the store and its value in
//! memory change through one call.

mod apply;
mod by_id;
pub mod codec;
mod command;
mod essentials;
mod mem;
mod multi_region;
mod rows;
mod state;
mod store;

pub use apply::{Restoring, apply, restore};
pub use command::{Command, CommandId, Envelope, Founding, Outcome, Reply};
pub use essentials::Essentials;
pub use keyward_hsm::SealedToken;
pub use mem::{DiskFaults, MemStore};
pub use multi_region::{
    ChangeToken, Cursor, Epoch, First, Here, HistoryId, KeyView, MultiRegionKey, Offer, OfferId,
    PeerRegion, Reconciliation, RegionKey, Related, Shared, Told, Version,
};
pub use rows::{
    Alias, CertificateRecord, DiskMark, DomainKey, Fingerprint, ForeignPrincipal, Invitation,
    InvitationId, Key, Kinds, Material, OutsideAuthority, Principal, Purpose, RegionFacts, Root,
    Rotation, RotationKind, Shut, Timers, Tombstone,
};
pub use state::{Fed, Listed, Page, State};
pub use store::{Batch, Change, Checkpoint, Install, Look, Moment, Store, Table, Visit};
