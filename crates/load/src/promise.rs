//! What quotas promise, beside what was admitted under them.

use std::collections::BTreeMap;
use std::time::Duration;

use keyward_proto::v1;
use serde::Serialize;

use crate::watch::Observation;

/// At one and a half times its rate offered, a quota has to admit at least so much of it.
const CROWDED: f64 = 1.5;
const ADMITTED_MIN: f64 = 0.95;
/// Shorter looks say little of a rate.
const LASTS_MIN: Duration = Duration::from_secs(2);

/// Whether a quota kept what it promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// Not more than it allows, and, where more was wanted than it allows, not much less.
    Kept,
    /// More than it allows.
    Over,
    /// Less than 95 % of it, although at least 1.5 times as much was wanted.
    Under,
    /// A node's count is missing, or began anew.
    Unknown,
}

impl Verdict {
    /// In words.
    #[must_use]
    pub fn says(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Over => "OVER: more was admitted than it allows",
            Self::Under => {
                "UNDER: less than 95 % was admitted, although 1.5 times as much was wanted"
            }
            Self::Unknown => "unknown: a node's count is missing or began anew",
        }
    }
}

/// One limit of one holder while a load ran. Calls of everybody count, not the load's alone.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Promise {
    /// Whose calls it counts: `account 111122223333` or `principal arn:...`.
    pub holder: String,
    /// Which of them.
    pub covers: String,
    /// Calls in a window.
    pub limit: u64,
    /// `second`, `minute` or `day`.
    pub window: String,
    /// Calls at once after a quiet while; limits of a second only.
    pub burst: Option<u64>,
    /// For how long it was looked at.
    pub seconds: f64,
    /// Calls that drew on it.
    pub wanted: u64,
    /// Those that it admitted.
    pub admitted: u64,
    /// The most that it allows in that time.
    pub allows: u64,
    /// Whether it kept its promise.
    pub verdict: Verdict,
    /// Calls admitted a second, at each look: seconds from the start, and the rate.
    pub course: Vec<(f64, f64)>,
}

type Place = (String, String, String);

fn place(bucket: &v1::BucketUsage) -> Place {
    let covers = bucket.quota.as_ref().map(|name| name.covers.clone()).unwrap_or_default();
    let window = bucket.limit.as_ref().map(|limit| limit.window.clone()).unwrap_or_default();
    (bucket.holder.clone(), covers, window)
}

/// What each node has counted: admitted and refused.
fn counts(bucket: &v1::BucketUsage) -> BTreeMap<u64, (u64, u64)> {
    bucket.nodes.iter().map(|node| (node.node_id, (node.admitted, node.refused))).collect()
}

/// What was counted between two looks; none if a node's count is missing or began anew.
fn between(before: Option<&v1::BucketUsage>, after: &v1::BucketUsage) -> Option<(u64, u64)> {
    let before = before.map(counts).unwrap_or_default();
    let after = counts(after);
    if before.keys().any(|node| !after.contains_key(node)) {
        return None;
    }
    let mut sum = (0, 0);
    for (node, (admitted, refused)) in after {
        let (admitted_before, refused_before) = before.get(&node).copied().unwrap_or_default();
        sum.0 += admitted.checked_sub(admitted_before)?;
        sum.1 += refused.checked_sub(refused_before)?;
    }
    Some(sum)
}

fn find<'a>(look: &'a Observation, at: &Place) -> Option<&'a v1::BucketUsage> {
    look.buckets.iter().find(|bucket| place(bucket) == *at)
}

/// Windows of that length that a stretch can touch: one more than fits.
fn windows(stretch: Duration, window: Duration) -> u64 {
    let full = stretch.as_secs_f64() / window.as_secs_f64();
    full as u64 + 2
}

/// Holds what was seen against every limit that calls drew on meanwhile.
#[must_use]
pub fn promises(seen: &[Observation], began: Duration) -> Vec<Promise> {
    let (Some(first), Some(last)) = (seen.first(), seen.last()) else { return Vec::new() };
    let stretch = last.at.saturating_sub(first.at);
    if stretch < LASTS_MIN {
        return Vec::new();
    }
    let missing = !first.missing_nodes.is_empty() || !last.missing_nodes.is_empty();
    let mut promises = Vec::new();
    for bucket in &last.buckets {
        let Some(limit) = &bucket.limit else { continue };
        let at = place(bucket);
        let sum = between(find(first, &at), bucket).filter(|_| !missing);
        let (admitted, refused) = sum.unwrap_or_default();
        let wanted = admitted + refused;
        if wanted == 0 && sum.is_some() {
            continue;
        }
        let seconds = stretch.as_secs_f64();
        let rate = limit.limit as f64;
        let (allows, expects) = match limit.window.as_str() {
            "second" => {
                // What lies between two looks at a node is known to about a tenth of a second.
                let at_most = rate * (seconds + 0.1) + limit.burst.unwrap_or(limit.limit) as f64;
                (at_most as u64, rate * seconds)
            }
            "minute" => (limit.limit * windows(stretch, Duration::from_secs(60)), f64::INFINITY),
            _ => (limit.limit * windows(stretch, Duration::from_secs(86_400)), f64::INFINITY),
        };
        let crowded = wanted as f64 >= CROWDED * expects;
        let verdict = match sum {
            None => Verdict::Unknown,
            Some(_) if admitted > allows => Verdict::Over,
            Some(_) if crowded && (admitted as f64) < ADMITTED_MIN * expects => Verdict::Under,
            Some(_) => Verdict::Kept,
        };
        let course = seen.windows(2).filter_map(|pair| {
            let (before, after) = (&pair[0], &pair[1]);
            let (admitted, _) = between(find(before, &at), find(after, &at)?)?;
            let lasted = after.at.saturating_sub(before.at).as_secs_f64().max(1e-3);
            Some((after.at.saturating_sub(began).as_secs_f64(), admitted as f64 / lasted))
        });
        promises.push(Promise {
            course: course.collect(),
            holder: at.0,
            covers: at.1,
            window: at.2,
            limit: limit.limit,
            burst: limit.burst,
            seconds,
            wanted,
            admitted,
            allows,
            verdict,
        });
    }
    promises
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: u64, window: &str, counts: &[(u64, u64)]) -> Observation {
        let nodes =
            counts.iter().enumerate().map(|(node, (admitted, refused))| v1::NodeQuotaUsage {
                node_id: node as u64 + 1,
                admitted: *admitted,
                refused: *refused,
                ..v1::NodeQuotaUsage::default()
            });
        let bucket = v1::BucketUsage {
            holder: "account 111122223333".to_owned(),
            quota: Some(v1::QuotaName { covers: "all".to_owned(), ..v1::QuotaName::default() }),
            limit: Some(v1::QuotaLimit { window: window.to_owned(), limit: 100, burst: None }),
            nodes: nodes.collect(),
            ..v1::BucketUsage::default()
        };
        Observation { at: Duration::from_secs(at), buckets: vec![bucket], ..Observation::default() }
    }

    fn verdict(window: &str, from: &[(u64, u64)], to: &[(u64, u64)]) -> Verdict {
        let seen = [look(10, window, from), look(20, window, to)];
        promises(&seen, Duration::from_secs(10))[0].verdict
    }

    #[test]
    fn a_quota_keeps_both_sides_of_its_promise() {
        // 100 a second for ten seconds: 1000 and a burst of 100 at most, at least 950 when 1500 are wanted.
        let from = [(5, 5), (7, 0)];
        assert_eq!(verdict("second", &from, &[(505, 505), (507, 0)]), Verdict::Kept);
        assert_eq!(verdict("second", &from, &[(705, 505), (507, 0)]), Verdict::Over);
        assert_eq!(verdict("second", &from, &[(405, 705), (507, 0)]), Verdict::Under);
        assert_eq!(
            verdict("second", &from, &[(405, 5), (507, 0)]),
            Verdict::Kept,
            "no more was wanted"
        );
        assert_eq!(verdict("minute", &from, &[(105, 800), (107, 0)]), Verdict::Kept);
        assert_eq!(verdict("minute", &from, &[(105, 800), (208, 0)]), Verdict::Over);
    }

    #[test]
    fn counts_that_began_anew_or_are_missing_prove_nothing() {
        assert_eq!(verdict("second", &[(500, 0), (7, 0)], &[(5, 0), (700, 0)]), Verdict::Unknown);
        assert_eq!(verdict("second", &[(5, 0), (7, 0)], &[(500, 0)]), Verdict::Unknown);
        let mut seen = [look(10, "second", &[(0, 0)]), look(20, "second", &[(500, 0)])];
        assert_eq!(promises(&seen, Duration::ZERO)[0].course, [(20.0, 50.0)]);
        seen[1].missing_nodes.push(2);
        assert_eq!(promises(&seen, Duration::ZERO)[0].verdict, Verdict::Unknown);
        seen[1].at = Duration::from_secs(11);
        assert!(promises(&seen, Duration::ZERO).is_empty(), "too short a look");
    }
}
