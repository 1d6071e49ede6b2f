//! A node's part of a rate, counted down by itself.
//!
//! The generic cell rate algorithm (ITU-T I.371, annex A): one number, the time at which the bucket would be full
//! again. A call moves it on by its cost, if that leaves it within the burst's reach. So admitting is one
//! compare-and-swap, refusing is none, and nothing ever has to refill anything.

mod cell;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use cell::RateCell;

/// A part of a quota, in whole tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Share {
    /// Calls a second.
    pub rate: u64,
    /// Calls at once.
    pub burst: u64,
}

impl Share {
    /// Nothing.
    pub const NONE: Self = Self { rate: 0, burst: 0 };

    /// True when it admits nothing.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.rate == 0 || self.burst == 0
    }

    /// The same part of a quota that went from `old` to `new`, rounded down. It never grows.
    #[must_use]
    pub fn scaled(self, old: Self, new: Self) -> Self {
        let scale = |part: u64, old: u64, new: u64| {
            if new >= old {
                return part;
            }
            let part = u128::from(part) * u128::from(new) / u128::from(old.max(1));
            u64::try_from(part).unwrap_or(0)
        };
        Self {
            rate: scale(self.rate, old.rate, new.rate),
            burst: scale(self.burst, old.burst, new.burst),
        }
    }
}

/// What came of asking a cell for tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// They are taken.
    Yes,
    /// Not enough are there; so long until they are, if nobody else takes them.
    Dry(Duration),
    /// The part has changed: look at the new cell.
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_secs(1000) + Duration::from_millis(ms)
    }

    fn admitted(cell: &RateCell, now: Duration) -> u64 {
        (0..1_000_000).take_while(|_| cell.take(1, now) == Taken::Yes).count() as u64
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let cell = RateCell::new(Share { rate: 1000, burst: 50 }, 50_000, at(0));
        assert_eq!(admitted(&cell, at(0)), 50);
        assert_eq!(admitted(&cell, at(10)), 9, "0.99 of the rate, whole tokens");
        let Taken::Dry(wait) = cell.take(1, at(10)) else { panic!("dry") };
        assert!(wait < Duration::from_micros(1100), "{wait:?}");
        assert_eq!(admitted(&cell, at(10_000)), 50, "never more than the burst");
    }

    #[test]
    fn an_empty_cell_fills_up() {
        let cell = RateCell::new(Share { rate: 100, burst: 100 }, 0, at(0));
        assert_eq!(admitted(&cell, at(0)), 0);
        assert_eq!(admitted(&cell, at(500)), 49);
        let left = cell.milli_tokens(at(510));
        assert!((1489..=1490).contains(&left), "{left}");
        assert_eq!(cell.close(at(510)), left);
        assert_eq!(cell.take(1, at(600)), Taken::Closed);
        cell.put_back(1);
        assert_eq!(cell.take(1, at(600)), Taken::Closed);
    }

    #[test]
    fn moves_lose_no_fraction_of_a_token() {
        let share = Share { rate: 40, burst: 40 };
        let mut cell = RateCell::new(share, 0, at(0));
        let mut sum = 0;
        for ms in 1..=1000 {
            let left = cell.close(at(ms));
            cell = RateCell::new(share, left, at(ms));
            sum += admitted(&cell, at(ms));
        }
        assert!((37..=39).contains(&sum), "{sum}");
    }

    #[test]
    fn nothing_admits_nothing_and_what_is_put_back_is_there() {
        let none = RateCell::new(Share::NONE, 5000, at(0));
        assert_eq!(none.take(1, at(9)), Taken::Dry(Duration::MAX));
        assert_eq!(none.close(at(9)), 0);
        let cell = RateCell::new(Share { rate: 50, burst: 2 }, 2000, at(0));
        assert_eq!(cell.take(2, at(0)), Taken::Yes);
        cell.put_back(1);
        assert_eq!(admitted(&cell, at(0)), 1);
        // Costs are taken whole or not at all.
        assert!(matches!(cell.take(3, at(5000)), Taken::Dry(_)));
    }

    #[test]
    fn a_cut_scales_parts_down_and_a_raise_does_not_scale_them_up() {
        let part = Share { rate: 33, burst: 34 };
        let (old, new) = (Share { rate: 100, burst: 100 }, Share { rate: 50, burst: 200 });
        assert_eq!(part.scaled(old, new), Share { rate: 16, burst: 34 });
    }

    proptest::proptest! {
        /// However calls, moves and pauses are mixed, no more is admitted than rate and burst allow.
        #[test]
        fn never_more_than_rate_and_burst(
            rate in 30_u64..100_000, burst in 30_u64..1000,
            steps in proptest::collection::vec((0_u64..50, 1_u64..400, proptest::bool::ANY), 1..100),
        ) {
            let share = Share { rate, burst };
            let mut cell = RateCell::new(share, burst * 1000, at(0));
            let (mut ms, mut sum) = (0, 0);
            for (pause, calls, moved) in steps {
                ms += pause;
                if moved {
                    let left = cell.close(at(ms));
                    cell = RateCell::new(share, left, at(ms));
                }
                sum += (0..calls).filter(|_| cell.take(1, at(ms)) == Taken::Yes).count() as u64;
                proptest::prop_assert!(sum <= burst + rate * ms / 1000 + 1);
            }
        }
    }
}
