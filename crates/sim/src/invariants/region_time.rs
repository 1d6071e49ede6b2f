//! **Region time** (decision 0011) never runs ahead of what a majority of wall clocks shows, whatever one
//! clock shows; it never goes backwards in the log, and is the same on every node. A node that serves
//! judges by it, and not by its own clock.

use std::collections::BTreeMap;

use keyward_model::Timestamp;
use keyward_state::State;

use crate::book::Book;
use crate::cluster::Cluster;

/// A reading is run on for ten seconds by a clock that may be 5 % fast, and as much is lost by rounding, in
/// milliseconds.
const STAMP_SLACK_MS: i64 = 1_000;
/// A node counts from before it asked (2.5 s at the most for the answer), then runs on by a clock that may be
/// 5 % fast for as long as it hears nothing, in milliseconds.
const NODE_SLACK_MS: i64 = 8_000;
/// Region time stands still while it has only the readings of a clock that is behind and one other.
const BEHIND_MS_MAX: i64 = 120_000;

/// What was seen so far.
#[derive(Debug, Default)]
pub struct RegionTime {
    /// Time and offset by the index at which they were seen.
    stamps: BTreeMap<u64, (Timestamp, i64)>,
    /// The most by which two clocks were ahead of the time.
    ahead_ms: i64,
}

impl RegionTime {
    pub(super) fn look(&mut self, cluster: &Cluster, book: &mut Book) {
        let true_ms = cluster.walls.true_ms();
        if self.stamps.is_empty() {
            // The founder was alone at first.
            self.ahead_ms = cluster.walls.ahead_lately_ms(0);
        }
        let ahead_ms = |machine| cluster.walls.ahead_lately_ms(machine);
        let mut ahead: Vec<i64> = cluster.members().into_iter().map(ahead_ms).collect();
        ahead.sort_unstable();
        // Of two readings the earlier counts, of three the one in the middle; of five any three may be known.
        self.ahead_ms = self.ahead_ms.max(ahead[ahead.len() - 2]);
        let latest_ms = true_ms + self.ahead_ms;
        for index in cluster.machines() {
            let Some(running) = cluster.running(index) else { continue };
            let node = running.kms.node();
            let state = node.state();
            if state.region.is_none() {
                continue;
            }
            let stamped_ms = state.time.0 - state.clock_offset_ms;
            if stamped_ms > latest_ms + STAMP_SLACK_MS {
                let ahead_ms = stamped_ms - true_ms;
                book.violate(format!(
                    "REGION TIME ran ahead: entry {} on node {} is stamped {ahead_ms} ms ahead, and a majority \
                     of clocks was never more than {} ms ahead",
                    state.applied,
                    cluster.id(index),
                    self.ahead_ms
                ));
            }
            self.never_backwards(&state, book);
            // Wall time as the node takes it to be, once it serves.
            if node.admit_now().is_ok() {
                let off_ms = node.wall_now().0 - true_ms;
                let most_ms = self.ahead_ms + NODE_SLACK_MS;
                if off_ms > most_ms || (off_ms < -BEHIND_MS_MAX && !cluster.walls.has_passed()) {
                    book.violate(format!(
                        "A WRONG CLOCK DECIDES: node {} serves, and takes the time to be {off_ms} ms ahead \
                         of what it is",
                        cluster.id(index)
                    ));
                }
            }
        }
    }

    fn never_backwards(&mut self, state: &State, book: &mut Book) {
        let seen = (state.time, state.clock_offset_ms);
        let same = *self.stamps.entry(state.applied).or_insert(seen);
        let before = self.stamps.range(..state.applied).next_back().map(|(_, seen)| seen.0);
        let after = self.stamps.range(state.applied + 1..).next().map(|(_, seen)| seen.0);
        if same != seen
            || before.is_some_and(|before| before > state.time)
            || after.is_some_and(|after| after < state.time)
        {
            book.violate(format!(
                "REGION TIME went backwards: entry {} has {seen:?}, and had {same:?}; before it {before:?}, \
                 after it {after:?}",
                state.applied
            ));
        }
    }
}
