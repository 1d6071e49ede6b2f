//! What can be wrong with a snapshot.

use std::io;

use keyward_hsm::HsmError;
use thiserror::Error;

use crate::FORMAT;

/// Why a snapshot is not written, not believed, or not restored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// It does not begin as one.
    #[error("this is no snapshot of Keyward: `keyward snapshot save` makes one")]
    NotASnapshot,
    /// Written by a later version of Keyward, in another format.
    #[error(
        "a snapshot of format {found}; this build reads format {FORMAT} only: use the keyward that wrote it, or a later one"
    )]
    NewerFormat {
        /// What it is written in.
        found: u8,
    },
    /// Written by a later version of Keyward, with rows of another schema.
    #[error(
        "a snapshot with rows of schema {found}, written by keyward {by}; this build knows schema {known} only: use that \
         version or a later one"
    )]
    NewerSchema {
        /// The schema of its rows.
        found: u8,
        /// The one that this build knows.
        known: u8,
        /// The version that wrote it.
        by: String,
    },
    /// It ends before its end.
    #[error(
        "the snapshot is truncated: it ends after {bytes} bytes, within {within}; take another copy of it, and look \
         whether the disk or the transfer was cut off"
    )]
    Truncated {
        /// How long it is.
        bytes: u64,
        /// Where it ends.
        within: &'static str,
    },
    /// Its header was changed.
    #[error("the snapshot's header was altered: {why}; take another copy of it")]
    Header {
        /// How that shows.
        why: String,
    },
    /// A chunk was changed, moved, or is of another file.
    #[error(
        "chunk {number} of the snapshot, at byte {at}, does not open: it was altered, is of another file, or is not in its \
         place; take another copy"
    )]
    Chunk {
        /// Which, from 0 on.
        number: u64,
        /// Where it begins.
        at: u64,
    },
    /// What is behind the last chunk was changed.
    #[error(
        "the end of the snapshot, behind byte {at}, was altered: {why}; take another copy of it"
    )]
    Trailer {
        /// Where it begins.
        at: u64,
        /// How that shows.
        why: &'static str,
    },
    /// Not signed by that authority.
    #[error(
        "the snapshot is not signed by the authority of Region {region} that was given: {why}. It is of another Region of \
         that name, or was altered"
    )]
    Signature {
        /// The Region that it says it is of.
        region: String,
        /// How that shows.
        why: &'static str,
    },
    /// What opens in it is not what a Region's state is made of.
    #[error("the snapshot's rows do not fit together: {0}")]
    Rows(String),
    /// The HSM refused.
    #[error(transparent)]
    Hsm(#[from] HsmError),
    /// The disk, or the other end of a stream.
    #[error("the snapshot could not be read or written: {0}")]
    Io(#[from] io::Error),
}
