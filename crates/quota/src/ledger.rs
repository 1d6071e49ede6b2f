//! The leader's side of prepaid quotas: a pool of whole tokens, handed out on demand.

use std::collections::BTreeMap;
use std::time::Duration;

use keyward_model::NodeId;
use serde::{Deserialize, Serialize};

use crate::definition::{Limit, Window};

/// Handed-out tokens of a rate end after this. Until then they count against the burst, so that tokens which are
/// saved up on nodes and tokens saved up here never add up to more.
const RATE_TOKENS_LAST: Duration = Duration::from_millis(500);
/// Handed-out tokens of a window end after this, or with it; what is left comes back.
const WINDOW_TOKENS_LAST: Duration = Duration::from_secs(5);
/// Thousandths of a token.
const MILLI: u64 = 1000;

/// What was handed out of one window, as replicated state keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WindowUse {
    /// Which window: its number since 1970.
    pub window: u64,
    /// Tokens.
    pub used: u64,
}

/// Tokens that were handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Given {
    /// So many, for so long.
    Tokens(u64, Duration),
    /// None; so long until there are some.
    Dry(Duration),
}

/// The tokens of one bucket that are not handed out yet.
#[derive(Clone, Debug)]
pub enum Ledger {
    /// A rate, refilled all the time.
    Rate {
        /// Thousandths of tokens that are there.
        level: u64,
        /// As of then.
        as_of: Duration,
        /// Handed out and perhaps not spent yet, by node: how many, and when they end.
        outstanding: BTreeMap<NodeId, (Duration, u64)>,
    },
    /// A window, counted up.
    Counted(WindowUse),
}

impl Ledger {
    /// A ledger that begins empty: what an earlier leader handed out may still be spent. Windows go on from what
    /// replicated state remembers.
    #[must_use]
    pub fn new(limit: &Limit, remembered: Option<WindowUse>, now: Duration) -> Self {
        match limit.window {
            Window::Second => Self::Rate { level: 0, as_of: now, outstanding: BTreeMap::new() },
            Window::Minute | Window::Day => Self::Counted(remembered.unwrap_or_default()),
        }
    }

    /// Hands out up to `wanted` tokens to a node that has none left, with a clock of this machine and Region time in
    /// milliseconds. So many `nodes` may want some: nobody gets so much that others run dry early.
    pub fn give(
        &mut self,
        limit: &Limit,
        node: NodeId,
        wanted: u64,
        nodes: u64,
        now: Duration,
        region_ms: i64,
    ) -> Given {
        match self {
            Self::Rate { level, as_of, outstanding } => {
                let mut held = settle(limit, level, as_of, outstanding, now);
                // It has spent what it had.
                let spent = outstanding.remove(&node).map_or(0, |(_, tokens)| tokens);
                held -= spent;
                let tokens = wanted.min(*level / MILLI);
                if tokens == 0 {
                    let missing = u128::from(MILLI - *level % MILLI);
                    let wait = missing * 100_000_000 / u128::from(limit.limit * 99);
                    let mut wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
                    if held >= limit.burst {
                        // All of the burst is out: not before the first of it ends.
                        let first = outstanding.values().map(|(end, _)| *end).min();
                        wait += first.unwrap_or(now).saturating_sub(now);
                    }
                    return Given::Dry(wait);
                }
                *level -= tokens * MILLI;
                outstanding.insert(node, (now + RATE_TOKENS_LAST, tokens));
                Given::Tokens(tokens, RATE_TOKENS_LAST)
            }
            Self::Counted(count) => {
                let length = limit.window.seconds() * 1000;
                let ms = u64::try_from(region_ms).unwrap_or(0);
                let window = ms / length;
                if window > count.window {
                    *count = WindowUse { window, used: 0 };
                }
                let until_next = Duration::from_millis(length - ms % length);
                let left = limit.limit.saturating_sub(count.used);
                let fair = left.div_ceil(2 * nodes.max(1));
                let tokens = wanted.min(fair);
                if tokens == 0 {
                    return Given::Dry(until_next);
                }
                count.used += tokens;
                Given::Tokens(tokens, WINDOW_TOKENS_LAST.min(until_next))
            }
        }
    }

    /// The node has spent all that it was handed: from here on it counts against the burst no more.
    pub fn spent(&mut self, limit: &Limit, node: NodeId, now: Duration) {
        if let Self::Rate { level, as_of, outstanding } = self {
            settle(limit, level, as_of, outstanding, now);
            outstanding.remove(&node);
        }
    }

    /// Tokens of the present window come back unspent.
    pub fn take_back(&mut self, limit: &Limit, tokens: u64, region_ms: i64) {
        if let Self::Counted(count) = self {
            let length = limit.window.seconds() * 1000;
            if u64::try_from(region_ms).unwrap_or(0) / length == count.window {
                count.used = count.used.saturating_sub(tokens);
            }
        }
    }

    /// What replicated state should remember.
    #[must_use]
    pub fn window_use(&self) -> Option<WindowUse> {
        match self {
            Self::Rate { .. } => None,
            Self::Counted(count) => Some(*count),
        }
    }
}

/// Takes account of what came back until now, and of tokens that have ended. Returns how many are out.
fn settle(
    limit: &Limit,
    level: &mut u64,
    as_of: &mut Duration,
    outstanding: &mut BTreeMap<NodeId, (Duration, u64)>,
    now: Duration,
) -> u64 {
    // In order, up to each end: while tokens are out, nothing is saved up in their place.
    let mut held: u64 = outstanding.values().map(|(_, tokens)| *tokens).sum();
    let mut ends: Vec<(Duration, u64)> = outstanding.values().copied().collect();
    ends.sort_unstable();
    for (end, tokens) in ends.into_iter().take_while(|(end, _)| *end <= now) {
        refill(limit, held, level, as_of, end);
        held -= tokens;
    }
    outstanding.retain(|_, (end, _)| *end > now);
    refill(limit, held, level, as_of, now);
    held
}

/// What comes back until `to`, up to what the burst leaves. 1 % less than the rate, which covers a clock that runs
/// 1 % fast.
fn refill(limit: &Limit, held: u64, level: &mut u64, as_of: &mut Duration, to: Duration) {
    let most = limit.burst.saturating_sub(held) * MILLI;
    let elapsed = to.saturating_sub(*as_of).as_nanos();
    let gained = elapsed * u128::from(limit.limit * 99) / 100_000_000;
    let gained = u64::try_from(gained).unwrap_or(u64::MAX);
    // Too short a time to gain anything stays on the account.
    if gained > 0 {
        *level = level.saturating_add(gained);
        *as_of = to;
    }
    *level = (*level).min(most);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(1_000_000 + ms)
    }

    #[test]
    fn a_rate_begins_empty_and_never_saves_up_more_than_its_burst() {
        let limit = Limit { window: Window::Second, limit: 10, burst: 5 };
        let tokens = |tokens| Given::Tokens(tokens, RATE_TOKENS_LAST);
        let mut ledger = Ledger::new(&limit, None, at(0));
        let Given::Dry(wait) = ledger.give(&limit, 1, 1, 3, at(0), 0) else { panic!("empty") };
        assert!((100..103).contains(&wait.as_millis()), "{wait:?}");
        assert_eq!(ledger.give(&limit, 1, 2, 3, at(102), 0), tokens(1));
        // Ten seconds later the burst is there and no more.
        assert_eq!(ledger.give(&limit, 1, 9, 3, at(10_000), 0), tokens(5));
        // While that may still be unspent, nothing is saved up for others.
        let Given::Dry(wait) = ledger.give(&limit, 2, 9, 3, at(10_300), 0) else { panic!("held") };
        assert!(wait >= Duration::from_millis(100), "{wait:?}");
        assert_eq!(ledger.give(&limit, 2, 9, 3, at(10_700), 0), tokens(1));
        // A node that asks again has spent it.
        assert!(matches!(ledger.give(&limit, 2, 9, 3, at(10_700), 0), Given::Dry(_)));
        assert_eq!(ledger.give(&limit, 2, 9, 3, at(10_920), 0), tokens(3));
    }

    #[test]
    fn a_token_that_was_spent_counts_against_the_burst_no_more() {
        let limit = Limit { window: Window::Second, limit: 4, burst: 1 };
        let one = Given::Tokens(1, RATE_TOKENS_LAST);
        let mut ledger = Ledger::new(&limit, None, at(0));
        assert_eq!(ledger.give(&limit, 1, 1, 3, at(1000), 0), one);
        // It is out: nothing is saved up for another node.
        assert!(matches!(ledger.give(&limit, 2, 1, 3, at(1400), 0), Given::Dry(_)));
        ledger.spent(&limit, 1, at(1400));
        assert!(matches!(ledger.give(&limit, 2, 1, 3, at(1600), 0), Given::Dry(_)));
        assert_eq!(ledger.give(&limit, 2, 1, 3, at(1660), 0), one);
    }

    #[test]
    fn one_node_gets_the_whole_rate_though_the_burst_is_small() {
        let limit = Limit { window: Window::Second, limit: 100, burst: 10 };
        let mut ledger = Ledger::new(&limit, None, at(0));
        let mut sum = 0;
        for ms in (0..10_000).step_by(20) {
            if let Given::Tokens(tokens, _) = ledger.give(&limit, 1, 25, 3, at(ms), 0) {
                sum += tokens;
            }
        }
        assert!((975..=993).contains(&sum), "{sum}");
    }

    #[test]
    fn a_window_is_used_up_and_the_next_one_is_whole() {
        let limit = Limit { window: Window::Minute, limit: 100, burst: 0 };
        let mut ledger = Ledger::new(&limit, None, at(0));
        let mut sum = 0;
        let spent = loop {
            match ledger.give(&limit, 1, 60, 3, at(0), 61_000) {
                Given::Tokens(tokens, _) => sum += tokens,
                Given::Dry(wait) => break wait,
            }
        };
        assert_eq!((sum, spent), (100, Duration::from_secs(59)));
        assert_eq!(ledger.window_use(), Some(WindowUse { window: 1, used: 100 }));
        ledger.take_back(&limit, 7, 119_999);
        assert!(matches!(ledger.give(&limit, 1, 60, 1, at(0), 119_000), Given::Tokens(4, _)));
        assert!(matches!(ledger.give(&limit, 1, 1, 1, at(0), 120_000), Given::Tokens(1, _)));
        ledger.take_back(&limit, 50, 119_999);
        assert_eq!(ledger.window_use(), Some(WindowUse { window: 2, used: 1 }));
        // A new leader goes on from what is remembered.
        let mut next = Ledger::new(&limit, Some(WindowUse { window: 2, used: 99 }), at(0));
        assert!(matches!(next.give(&limit, 1, 60, 3, at(0), 121_000), Given::Tokens(1, _)));
        assert!(matches!(next.give(&limit, 1, 60, 3, at(0), 121_000), Given::Dry(_)));
    }

    proptest::proptest! {
        /// What nodes spend in any stretch of time, even if they spend it as late as they can, is at most rate and
        /// burst.
        #[test]
        fn never_more_than_rate_and_burst(
            rate in 1_u64..200, burst in 1_u64..100,
            steps in proptest::collection::vec((0_u64..400, 1_u64..50, 1_u64..4), 1..80),
        ) {
            let limit = Limit { window: Window::Second, limit: rate, burst };
            let mut ledger = Ledger::new(&limit, None, at(0));
            let mut held = BTreeMap::<NodeId, (u64, u64)>::new();
            let (mut ms, mut spent) = (0, Vec::new());
            for (pause, wanted, node) in steps {
                ms += pause;
                // Those that end are spent in the last moment; the node that asks spends all before it does.
                let lasts = RATE_TOKENS_LAST.as_millis() as u64;
                held.retain(|holder, (given, tokens)| {
                    let ends = *given + lasts;
                    let spends = (*holder == node).then_some(ms.min(ends)).or((ends <= ms).then_some(ends));
                    spent.extend(spends.map(|at| (at, *tokens)));
                    spends.is_none()
                });
                if let Given::Tokens(tokens, _) = ledger.give(&limit, node, wanted, 3, at(ms), 0) {
                    held.insert(node, (ms, tokens));
                }
            }
            spent.sort_unstable();
            for from in 0..spent.len() {
                let mut sum = 0;
                for (at, tokens) in &spent[from..] {
                    sum += tokens;
                    let took = at - spent[from].0;
                    proptest::prop_assert!(sum <= burst + rate * took / 1000 + 1);
                }
            }
        }
    }
}
