//! Shrinks a failure: which of the things that went wrong does it need?

use crate::faults::{Fault, FaultKind, Spared};
use crate::scenario::{Options, Outcome, run};

/// Runs at most, of one seed.
const RUNS_MAX: usize = 150;

/// A failure that needs all that is left.
#[derive(Debug)]
pub struct Shrunken {
    /// What it does without.
    pub without: Spared,
    /// What is left, and what came of it.
    pub outcome: Outcome,
    /// Runs that it took.
    pub runs: usize,
}

/// A rule by its name: the capitals that a violation begins with.
fn rule(violation: &str) -> &str {
    let words = violation.split(' ').take_while(|word| word.chars().all(|c| !c.is_lowercase()));
    let length: usize = words.map(|word| word.len() + 1).sum();
    violation[..length.min(violation.len())].trim_end()
}

fn breaks_the_same(outcome: &Outcome, rules: &[String]) -> bool {
    outcome.violations.iter().any(|violation| rules.iter().any(|known| known == rule(violation)))
}

/// Leaves out what can be left out of a seed that breaks a rule, so that it still breaks the same one. `None`: the
/// seed breaks none. `progress` is told how many runs were made and how many faults are left.
pub fn shrink(
    seed: u64,
    options: &Options,
    mut progress: impl FnMut(usize, usize),
) -> Option<Shrunken> {
    let mut best = run(seed, options);
    if best.violations.is_empty() {
        return None;
    }
    let rules: Vec<String> = best.violations.iter().map(|text| rule(text).to_owned()).collect();
    let mut without = options.without.clone();
    let mut runs = 1;
    // First halves, then quarters, down to single ones: delta debugging (Zeller and Hildebrandt, 2002), by
    // complements alone.
    let mut pieces = 2;
    loop {
        let left = kinds(&best.faults);
        if left.is_empty() || runs >= RUNS_MAX {
            break;
        }
        let size = left.len().div_ceil(pieces.min(left.len()));
        let mut smaller = false;
        for piece in left.chunks(size) {
            if runs >= RUNS_MAX {
                break;
            }
            let mut tried = without.clone();
            tried.0.extend(piece.iter().copied());
            let outcome = run(seed, &Options { without: tried.clone(), ..options.clone() });
            runs += 1;
            if breaks_the_same(&outcome, &rules) {
                (without, best, smaller) = (tried, outcome, true);
            }
            progress(runs, kinds(&best.faults).len());
        }
        if !smaller && size == 1 {
            break;
        }
        if !smaller {
            pieces *= 2;
        }
    }
    Some(Shrunken { without, outcome: best, runs })
}

/// What went wrong, each kind once.
fn kinds(faults: &[Fault]) -> Vec<FaultKind> {
    let mut kinds: Vec<FaultKind> = faults.iter().map(|fault| fault.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_known_by_its_capitals() {
        assert_eq!(rule("STALE STATE of key 7 through node 2"), "STALE STATE");
        assert_eq!(rule("A LYING DISK IS TAKEN: node 3"), "A LYING DISK IS TAKEN:");
        assert_eq!(rule("unexpected"), "");
    }
}
