//! How the parts of a quota are reckoned.

use std::collections::BTreeMap;

use keyward_model::NodeId;

use crate::rate::Share;

/// Splits `total` whole tokens in proportion to what is wanted. Whoever wants anything gets at least one, as long
/// as there are enough; who wants nothing gets nothing. The parts add up to `total`, or to 0 if nobody wants
/// anything.
#[must_use]
pub fn divide(total: u64, wanted: &BTreeMap<NodeId, u64>) -> BTreeMap<NodeId, u64> {
    let sum: u128 = wanted.values().map(|want| u128::from(*want)).sum();
    let some = wanted.values().filter(|want| **want > 0).count() as u64;
    if sum == 0 {
        return wanted.keys().map(|node| (*node, 0)).collect();
    }
    // One each first; the rest in proportion, and what rounding leaves to those who want most.
    let each = u64::from(total >= some);
    let rest = total - each * some;
    let part = |want: u64| {
        let part = u128::from(rest) * u128::from(want) / sum;
        u64::try_from(part).unwrap_or(rest) + if want > 0 { each } else { 0 }
    };
    let mut parts: BTreeMap<NodeId, u64> =
        wanted.iter().map(|(node, want)| (*node, part(*want))).collect();
    let mut left = total - parts.values().sum::<u64>();
    let mut by_want: Vec<(&NodeId, &u64)> = wanted.iter().filter(|(_, want)| **want > 0).collect();
    by_want.sort_by_key(|(node, want)| (std::cmp::Reverse(**want), **node));
    for (node, _) in by_want.iter().cycle() {
        if left == 0 {
            break;
        }
        *parts.entry(**node).or_default() += 1;
        left -= 1;
    }
    parts
}

/// Splits a share in proportion to what is wanted, rate and burst alike.
#[must_use]
pub fn share_out(total: Share, wanted: &BTreeMap<NodeId, u64>) -> BTreeMap<NodeId, Share> {
    let rates = divide(total.rate, wanted);
    let bursts = divide(total.burst, wanted);
    rates
        .into_iter()
        .map(|(node, rate)| {
            let burst = bursts.get(&node).copied().unwrap_or(0);
            (node, Share { rate, burst })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(total: u64, wanted: &[u64]) -> Vec<u64> {
        let wanted = (1..).zip(wanted.iter().copied()).collect();
        divide(total, &wanted).into_values().collect()
    }

    #[test]
    fn parts_follow_what_is_wanted() {
        assert_eq!(parts(100, &[0, 7, 0]), [0, 100, 0]);
        assert_eq!(parts(100, &[1, 1, 1]), [34, 33, 33]);
        assert_eq!(parts(100, &[900, 100, 0]), [90, 10, 0]);
        assert_eq!(parts(100, &[1_000_000, 1, 1]), [98, 1, 1]);
        assert_eq!(parts(100, &[0, 0, 0]), [0, 0, 0]);
        assert_eq!(parts(2, &[5, 9, 1]), [0, 2, 0]);
    }

    proptest::proptest! {
        #[test]
        fn parts_add_up(total in 0_u64..1_000_000, wanted in proptest::collection::vec(0_u64..u64::MAX / 8, 1..8)) {
            let found = parts(total, &wanted);
            let any = wanted.iter().any(|want| *want > 0);
            proptest::prop_assert_eq!(found.iter().sum::<u64>(), if any { total } else { 0 });
            for (part, want) in found.iter().zip(&wanted) {
                proptest::prop_assert!(*want > 0 || *part == 0);
                if total >= wanted.len() as u64 {
                    proptest::prop_assert!(*want == 0 || *part > 0);
                }
            }
        }
    }
}
