//! Everything that can go wrong here, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::record::RECORD_BYTES_MAX;
use crate::segment::Flaw;

/// Why a record could not be handed over. The call that it is for must not be answered as if it could.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The disk, or the quota on it, is full.
    #[error(
        "the audit trail cannot be written: no space for {}: free some, or lower audit.keep; the node \
         tries again by itself", path.display()
    )]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// The system refused a file operation.
    #[error(
        "the audit trail cannot be written: cannot {what} {}: {source}; see to the disk and the folder; \
         the node tries again by itself", path.display()
    )]
    File {
        /// The operation.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The disk does not keep up.
    #[error(
        "the audit trail has {bytes} bytes waiting for the disk and takes no more: try again in a moment"
    )]
    Busy {
        /// What waits.
        bytes: u64,
    },
    /// A record that is larger than any may be.
    #[error("a record of {bytes} bytes was refused: {RECORD_BYTES_MAX} are the most")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The trail was closed: the node is stopping.
    #[error("the audit trail is closed: this node is stopping; ask another one")]
    Closed,
}

impl AuditError {
    /// True for an error that says that the trail as a whole cannot be written.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::DiskFull { .. } | Self::File { .. })
    }

    pub(crate) fn file(what: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::File { what, path, source: Arc::new(source) },
        }
    }
}

/// Where a segment is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}, byte {offset}: {flaw}", file.display())]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where the damage begins, in bytes from the start of the file.
    pub offset: u64,
    /// What is wrong.
    pub flaw: Flaw,
}

/// What reading can run into.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Bytes that are no record, or records that are not there. Reading goes on behind them.
    #[error("the audit trail is damaged: {0}; compare with a backup of the folder")]
    Damaged(#[from] Damage),
    /// The system refused a file operation. Reading ends.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl ReadError {
    pub(crate) fn file(what: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { what, path, source }
    }
}
