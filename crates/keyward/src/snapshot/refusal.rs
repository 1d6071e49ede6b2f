//! Why a snapshot is not restored.

use keyward_model::{KeyId, NodeId, Region};
use keyward_snapshot::SnapshotError;
use thiserror::Error;

use crate::error::Failure;

/// What is wrong, and what would be right.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the snapshot is of Region {found}, and {config} is for {expected}")]
    OtherRegion { found: String, expected: Region, config: String },
    #[error(
        "the snapshot's Region has another authority than {file}: it is another Region of that name, or that file is of \
         another one"
    )]
    OtherAuthority { file: String },
    #[error(
        "none of the roots at hand opens the snapshot. It opens with: {wanted}. At hand: {at_hand}"
    )]
    NoRoot { wanted: String, at_hand: String },
    #[error("domain key {id} does not open with the roots at hand: {why}")]
    DomainKey { id: String, why: String },
    #[error("{folder} is not empty ({holds}): it belongs to a node, living or lost")]
    NotEmpty { folder: String, holds: String },
    #[error(
        "the configuration names a node id, node.id = {0}, which the Region had before the backup or may have had"
    )]
    NamesAnId(NodeId),
    #[error("Region {region} lives: {nodes}")]
    Lives { region: String, nodes: String },
    #[error("{source_of_deletions}: {why}")]
    Later { source_of_deletions: String, why: String },
    #[error(
        "{0} was not deleted after the backup, as far as --tombstones tells: there is nothing to resurrect"
    )]
    NotDeleted(KeyId),
    #[error(
        "{0} is a multi-Region key: other Regions know that it is gone, and it would go again. Its primary's Region brings \
         a replica back (`keyward key replicate`)"
    )]
    MultiRegion(KeyId),
    #[error("{what}: {why}")]
    Place { what: String, why: String },
}

impl Refusal {
    /// What to do next.
    fn next(&self) -> Option<&'static str> {
        Some(match self {
            Self::OtherRegion { .. } => {
                "name the configuration of a node of that Region: --config FILE"
            }
            Self::OtherAuthority { .. } => {
                "for another machine's first node, move that file away: the authority is in the snapshot"
            }
            Self::NoRoot { .. } => {
                "bring one of them: set [root] in the configuration, or name another node's configuration: --roots-of FILE"
            }
            Self::DomainKey { .. } => "bring the root of another node, too: --roots-of FILE",
            Self::NotEmpty { .. } => {
                "if that node is lost: move the folder away (mv DIR DIR.lost), and have what was deleted later looked for \
                 in it: --tombstones DIR.lost"
            }
            Self::NamesAnId(_) => {
                "take node.id out: the restored node gets an id that no node ever had"
            }
            Self::Lives { .. } => {
                "if its nodes are to be given up, stop them first (systemctl stop keyward). If they cannot be stopped: \
                 --over-a-living-region. What they acknowledged since the backup is then lost to the restored Region, \
                 and until they are stopped there are two Regions of one name, whose keys go different ways"
            }
            Self::NotDeleted(_) => "leave that --resurrect out; without it the list is shown",
            Self::Snapshot(_) | Self::Later { .. } | Self::MultiRegion(_) | Self::Place { .. } => {
                return None;
            }
        })
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let next = refusal.next();
        let failure = Self::from_error(refusal);
        match next {
            Some(next) => failure.next(next),
            None => failure,
        }
    }
}

/// The disk said no.
pub fn cannot(
    what: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> Refusal {
    let what = format!("cannot {what} {}", path.display());
    move |why| Refusal::Place { what, why: why.to_string() }
}
