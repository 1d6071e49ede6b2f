//! Keyward's audit trail: one CloudTrail-shaped record for every call, refused ones too, handed to the
//! operating system before the call is answered.
//!
//! # Where to start
//! [`Trail`] is what the service holds: [`Trail::append`] takes a [`Record`] and gives a [`Ticket`], and a
//! call is answered when its ticket is done. [`read`] and [`follow`] are what people look with.
//! `ring.rs` and `segment.rs` describe the files, `writer.rs` what happens when a disk fails; decision 0008 says why.
//!
//! # What this crate does not know
//! Who may do what, what a key is, and how calls come in. It has no dependency on the HSM and no type
//! that holds a secret, so a record can hold none.
//!
//! # Invariants
//! * A ticket that is done without an error means that the record is in a file that the death of the process
//!   leaves whole (the ring, then a segment), or on disk where the configuration says so.
//! * Sequence numbers have no gap and no number twice, over restarts and failures too. What is missing is
//!   therefore seen by every reader.
//! * No async thread waits for a disk: what blocks goes through [`keyward_env::Env::blocking`].
//! * After a failed write or sync a segment is never written or synced again.

mod config;
mod error;
mod files;
mod json;
mod mapped;
mod read;
mod record;
mod recovery;
mod retention;
mod ring;
mod segment;
pub mod testing;
mod trail;
mod walk;
mod writer;
mod written;

pub use config::{Keep, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN, SyncMode, TrailConfig};
pub use error::{AuditError, Damage, ReadError};
pub use files::{Files, MappedFile, RealFiles, SegmentFile};
pub use json::{Pair, Value};
pub use read::{Entry, Filter, Follower, Order, Reader, follow, read};
pub use record::{Identity, Kind, RECORD_BYTES_MAX, Record, Source, error_code};
pub use recovery::{Cut, Recovery};
pub use retention::REMOVAL_EVENT;
pub use segment::Flaw;
pub use trail::{Health, Ticket, Trail};
pub use written::{Actor, Client, Tls};
