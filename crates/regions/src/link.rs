//! What a node knows of its Region's links: in memory, learned anew by each leader.

use std::collections::BTreeMap;
use std::time::Duration;

use keyward_model::Region;
use keyward_state::{Cursor, State};
use parking_lot::Mutex;

/// Changes that are counted as unshipped at most: more are as bad.
const UNSHIPPED_MAX: usize = 100_000;

/// One link, as this node last saw it.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// When the other Region last answered a pull, by this node's clock since boot.
    pub heard: Option<Duration>,
    /// Why it did not answer the last time.
    pub failing: Option<String>,
    /// How far its feed went then.
    pub head: u64,
    /// Its time then, in milliseconds.
    pub now_ms: i64,
    /// When it last pulled here.
    pub pulled: Option<Duration>,
    /// How far it has taken over this Region's feed, and fenced it.
    pub taken: Cursor,
    /// How far its feed went when it was first heard.
    pub first_head: Option<u64>,
    /// All that it knew then is here.
    pub caught_up: bool,
}

/// All links of this node's Region.
#[derive(Debug, Default)]
pub struct Links {
    links: Mutex<BTreeMap<Region, Link>>,
}

/// A link, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The other Region.
    pub region: Region,
    /// Milliseconds since it last answered; none if it has not since this leader leads.
    pub heard_ms: Option<u64>,
    /// Milliseconds since it last pulled here.
    pub pulled_ms: Option<u64>,
    /// Why it does not answer.
    pub failing: Option<String>,
    /// Changes there that are not here yet.
    pub behind: u64,
    /// The age of what is here of it, in milliseconds; none while there is nothing to take over.
    pub behind_ms: Option<u64>,
    /// Changes here that are not there yet, as far as is known: lost if this Region vanished now. At most 100,000 are counted.
    pub unshipped: u64,
    /// The age of the oldest of them, in milliseconds.
    pub unshipped_ms: Option<u64>,
}

impl LinkStatus {
    /// How late the link is, whichever way; none if that Region has not answered yet.
    #[must_use]
    pub fn lateness(&self) -> Option<Duration> {
        let heard = self.heard_ms?;
        let late = [self.behind_ms, self.unshipped_ms].into_iter().flatten().fold(heard, u64::max);
        Some(Duration::from_millis(late))
    }
}

impl Links {
    /// Looks at one link.
    #[must_use]
    pub fn of(&self, region: &Region) -> Link {
        self.links.lock().get(region).cloned().unwrap_or_default()
    }

    /// Notes something about one.
    pub fn note(&self, region: &Region, change: impl FnOnce(&mut Link)) {
        change(self.links.lock().entry(region.clone()).or_default());
    }

    /// Whether this Region has what any other one knew after it had started.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        self.links.lock().values().any(|link| link.caught_up)
    }

    /// Whether a Region has taken over, and fenced, this Region's change of that number.
    #[must_use]
    pub fn has_taken(&self, region: &Region, state: &State, change: u64) -> bool {
        let links = self.links.lock();
        let taken = links.get(region).map(|link| link.taken);
        taken.is_some_and(|taken| taken.history == state.history_id() && taken.index >= change)
    }

    /// How every link of `state` is at `now`, by this node's clock since boot and the Region's time.
    #[must_use]
    pub fn status(&self, state: &State, now: Duration, region_now_ms: i64) -> Vec<LinkStatus> {
        let since = |at: Option<Duration>| {
            at.map(|at| u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX))
        };
        let age = |ms: i64| u64::try_from(ms.max(0)).unwrap_or(0);
        let status = |peer: &std::sync::Arc<keyward_state::PeerRegion>| {
            let link = self.of(&peer.region);
            let taken = match link.taken.history == state.history_id() {
                true => link.taken.index,
                false => 0,
            };
            let mut unshipped = state.feed_after(taken).take(UNSHIPPED_MAX);
            let oldest = unshipped.next();
            let behind = link.head.saturating_sub(peer.cursor.index);
            LinkStatus {
                region: peer.region.clone(),
                heard_ms: since(link.heard),
                pulled_ms: since(link.pulled),
                failing: link.failing,
                behind,
                behind_ms: (behind > 0).then(|| age(link.now_ms - peer.cursor.made.0)),
                unshipped: unshipped.count() as u64 + u64::from(oldest.is_some()),
                unshipped_ms: oldest.map(|row| age(region_now_ms - row.changed().1.0)),
            }
        };
        state.peer_regions().map(status).collect()
    }
}
