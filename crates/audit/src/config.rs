//! How a trail is kept.

use std::path::PathBuf;

use keyward_model::{NodeId, Region};
use serde::{Deserialize, Serialize};

/// Bytes of a segment, unless the configuration says otherwise: small enough to move about, large enough
/// that rolling is rare.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;
/// The smallest segment that a configuration may ask for.
pub const SEGMENT_BYTES_MIN: u64 = 4096;

/// How a trail is kept.
#[derive(Clone, Debug)]
pub struct TrailConfig {
    /// The folder for the segments. One trail has it for itself.
    pub folder: PathBuf,
    /// The node whose trail it is: part of every record.
    pub node: NodeId,
    /// Its Region: part of the records that the trail writes by itself.
    pub region: Region,
    /// Bytes that a segment takes from the disk at once, and holds. Only what is handed over in one write
    /// and is larger than that makes a segment larger. Raised to [`SEGMENT_BYTES_MIN`].
    pub segment_bytes: u64,
    /// When records are synced.
    pub sync: SyncMode,
    /// How long segments are kept.
    pub keep: Keep,
}

impl TrailConfig {
    /// A trail in `folder` as it is kept by default: segments of 64 MiB, synced within 100 ms, kept for
    /// ever.
    #[must_use]
    pub fn new(folder: PathBuf, node: NodeId, region: Region) -> Self {
        Self {
            folder,
            node,
            region,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            sync: SyncMode::default(),
            keep: Keep::default(),
        }
    }
}

/// When records are synced to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// Within 100 ms. An answer leaves once its record is with the operating system: it survives the
    /// death of the process, and a power cut may take the last 100 ms.
    #[default]
    Soon,
    /// Before the answer leaves.
    Always,
}

/// How long segments are kept. Whole segments are removed, oldest first, never the one that is written;
/// each removal is itself on record. By default all are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// Bytes on disk that all segments together may have.
    pub bytes: Option<u64>,
    /// Days that a record is kept at least; a segment goes when all of its records are older. By this
    /// node's wall clock.
    pub days: Option<u32>,
}
