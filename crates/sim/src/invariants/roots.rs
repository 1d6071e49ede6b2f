//! **Roots** (decision 0007): a root that is not registered has no copy of a domain key, so one that was removed
//! opens nothing any more; a node that votes has a root; and a call whose keys are open is not refused
//! because of a root within its grace.

use std::time::Duration;

use keyward_state::State;

use crate::book::Book;
use crate::cluster::{Cluster, ROOT_GRACE, Running};

/// Nodes count the grace on clocks that are up to 5 % fast.
const GRACE_MIN: Duration = ROOT_GRACE.saturating_sub(Duration::from_millis(450));
/// A root that is good again is known to be after a probe, which may have to wait for another one.
const KNOWN_AFTER: Duration = Duration::from_secs(6);

pub(super) fn look(cluster: &Cluster, book: &mut Book) {
    for index in cluster.machines() {
        let Some(running) = cluster.running(index) else { continue };
        let state = running.kms.node().state();
        if let Some(root) = stray_copy(&state) {
            let node = cluster.id(index);
            book.violate(format!("A REMOVED ROOT OPENS a domain key on node {node}: {root}"));
        }
        let voters = running.kms.node().members();
        for member in voters.iter().filter(|member| member.voter) {
            // Its own configuration is older than its state in a node that is catching up.
            let known = cluster.id(index) == member.node && running.kms.node().admit_now().is_ok();
            if known && state.roots_of(member.node).next().is_none() {
                book.violate(format!("THE LAST ROOT of node {} is gone", member.node));
            }
        }
    }
}

fn stray_copy(state: &State) -> Option<String> {
    let copies = state.domain_keys.values().flat_map(|key| &key.sealed.copies);
    let stray = copies.into_iter().find(|copy| !state.roots.contains_key(&copy.root));
    stray.map(|copy| copy.root.to_string())
}

fn all_open(running: &Running) -> bool {
    let state = running.kms.node().state();
    state.domain_keys.keys().all(|id| running.kms.hsm().has_domain_key(*id))
}

/// What a call had when it began.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    at: Duration,
    /// Every domain key was open: no root is needed within the grace, unless another one has come since.
    open: bool,
    /// For how long no root had answered.
    silent: Duration,
}

impl Began {
    /// A call begins on that node.
    #[must_use]
    pub fn now(cluster: &Cluster, index: usize, running: &Running) -> Self {
        let (at, open) = (cluster.world.now(), all_open(running));
        Self { at, open, silent: cluster.roots_silent_for(index) }
    }

    /// Why the node may not refuse the call for want of a root.
    pub fn may_refuse(&self, cluster: &Cluster, index: usize) -> Result<(), String> {
        let silent = self.silent.max(cluster.roots_silent_for(index));
        if self.open && cluster.running(index).as_ref().is_some_and(all_open) && silent < GRACE_MIN
        {
            return Err(format!("its keys were open, and a root answered {silent:?} ago"));
        }
        if cluster.cabinet(index).good_since(self.at.saturating_sub(KNOWN_AFTER))
            && silent < GRACE_MIN
        {
            return Err("its roots are all well".to_owned());
        }
        Ok(())
    }
}
