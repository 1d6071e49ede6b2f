//! The roots at hand: what opens a snapshot.

use std::path::Path;
use std::sync::Arc;

use keyward_env::{Env, RealEnv};
use keyward_hsm::{ArenaConfig, FileOpener, Hsm, HsmConfig, HsmError, RootId};
use keyward_snapshot::{Header, SnapshotError};
use keyward_state::State;

use super::NodeOf;
use super::refusal::Refusal;
use crate::config::Config;
use crate::error::Failure;
use crate::roots::{self, AtHand};

/// An HSM on the roots at hand.
pub struct Hand {
    pub hsm: Arc<Hsm>,
    /// The node's own roots that are open. The first is who it is to others.
    pub own: Vec<RootId>,
    /// What could not be opened, and why.
    pub absent: Vec<String>,
}

impl Hand {
    /// Opens the roots of the node, and those of others. Nothing is made, unless `make` says that the node's own may be.
    pub async fn open(config: &Config, node: &NodeOf, make: bool) -> Result<Self, Failure> {
        keyward_hsm::harden_process().map_err(Failure::from_error)?;
        let (own, node) = (config.clone(), node.clone());
        let AtHand { own, others, absent } = RealEnv
            .blocking(move || roots::at_hand(&own, &node.roots_of, &node.share, make))
            .await?;
        let ids = own.iter().map(|root| root.identity().clone()).collect();
        let mut all = own.into_iter().chain(others);
        let Some(first) = all.next() else {
            return Err(Failure::new(format!("no root is at hand:\n  {}", absent.join("\n  ")))
                .next("set [root] in the configuration, or name another node's: --roots-of FILE"));
        };
        let arena =
            ArenaConfig { allow_unlocked: config.hsm.allow_unlocked, ..ArenaConfig::default() };
        let settings = HsmConfig { cache_max_entries: config.hsm.cache_max_entries, arena };
        let hsm = Hsm::new(first, RealEnv.entropy(), &settings).map_err(Failure::from_error)?;
        for root in all {
            match hsm.add_root(root) {
                Ok(()) | Err(HsmError::RootPresent(_)) => {}
                Err(error) => return Err(Failure::from_error(error)),
            }
        }
        Ok(Self { hsm, own: ids, absent })
    }

    /// Opens the key of a file.
    pub async fn opener(&self, header: &Header) -> Result<FileOpener, Refusal> {
        let domain_key = header.domain_key()?;
        match self.hsm.open_domain_key(&domain_key).await {
            Ok(()) => {}
            Err(HsmError::NoCopyForRoot { .. }) => return Err(self.no_root(header)),
            Err(error) => {
                let id = domain_key.id.to_string();
                return Err(Refusal::DomainKey { id, why: error.to_string() });
            }
        }
        let opened = self.hsm.open_file_key(&header.file_key()?);
        opened.map_err(|error| SnapshotError::Hsm(error).into())
    }

    fn no_root(&self, header: &Header) -> Refusal {
        let wanted = header.sealed_for.iter().map(|copy| {
            let owner = header.roots.iter().find(|root| root.root == copy.root);
            match owner {
                Some(owner) => format!("{} (node {})", copy.root, owner.node),
                None => copy.root.to_string(),
            }
        });
        let open = self.hsm.roots().into_iter().map(|status| status.id.to_string());
        let at_hand: Vec<String> = open.chain(self.absent.iter().cloned()).collect();
        Refusal::NoRoot {
            wanted: wanted.collect::<Vec<_>>().join(", "),
            at_hand: at_hand.join("; "),
        }
    }

    /// Opens every domain key of a state.
    pub async fn open_domain_keys(hsm: &Hsm, state: &State) -> Result<(), Refusal> {
        for key in state.domain_keys.values() {
            hsm.open_domain_key(&key.sealed).await.map_err(|error| Refusal::DomainKey {
                id: key.sealed.id.to_string(),
                why: error.to_string(),
            })?;
        }
        Ok(())
    }
}

/// The name of a file in a message.
pub fn named(path: &Path) -> String {
    path.display().to_string()
}

/// Whether a root of the node is among those that are open.
pub fn opens(hsm: &Hsm, header: &Header) -> Vec<RootId> {
    let open: Vec<RootId> = hsm.roots().into_iter().map(|status| status.id).collect();
    header
        .sealed_for
        .iter()
        .map(|copy| &copy.root)
        .filter(|id| open.contains(id))
        .cloned()
        .collect()
}
