//! Several Regions at once: seeds that must break no rule, those that found something among them, and runs that must
//! repeat step for step.

use keyward_sim::regions::steps::{self, Joint, Victim};
use keyward_sim::{Counters, Options, run};

const SEEDS: u64 = 80;

/// Seeds that found something: a rotation completed while its key's primary was on offer (9, 60, 218), a key that waited for
/// a last primary whose own was gone (72), a promoted Region that took its own replica for one to be made (109), a link that
/// one key stopped for good (301), a replica made anew that did not answer an offer (548), a replica that two primaries had
/// asked for (744).
const FOUND: [u64; 5] = [109, 218, 301, 548, 744];

fn options() -> Options {
    Options { regions: true, ..Options::default() }
}

#[test]
fn no_seed_breaks_a_rule_between_regions() {
    let mut sum = Counters::default();
    let mut broken = String::new();
    for seed in (0..SEEDS).chain(FOUND) {
        let outcome = run(seed, &options());
        sum.add(&outcome.counters);
        if !outcome.violations.is_empty() {
            let violations = outcome.violations.join("\n  ");
            broken += &format!(
                "\nreplay: cargo run -p keyward-sim -- --seed {seed} --regions\n  {violations}"
            );
        }
    }
    assert!(broken.is_empty(), "{broken}");
    // A run in which nothing happens would prove nothing.
    assert!(sum.acknowledged > 30 * SEEDS && sum.calls > 1000 * SEEDS, "{sum:?}");
    assert!(sum.replicated > 4 * SEEDS && sum.moved > SEEDS && sum.rotated > 5 * SEEDS, "{sum:?}");
    assert!(sum.opened_elsewhere > 300 * SEEDS, "{sum:?}");
    assert!(sum.kills + sum.power_cuts > 4 * SEEDS && sum.region_stops > SEEDS, "{sum:?}");
    assert!(sum.roads_cut > 3 * SEEDS && sum.promoted > 15, "{sum:?}");
    assert!(sum.replicas_gone > SEEDS / 3 && sum.old_copies > 10, "{sum:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace_of_all_regions() {
    for seed in [1, 301] {
        assert_eq!(run(seed, &options()), run(seed, &options()), "two runs of seed {seed}");
    }
    let (a, b) = (run(1, &options()), run(2, &options()));
    assert_ne!(a.trace_hash, b.trace_hash, "seeds decide");
}

/// Of all messages that are delivered while an operation goes on, after one in so many a leader dies.
/// `KEYWARD_SIM_STRIDE=1` takes every one.
fn stride() -> u64 {
    let asked = std::env::var("KEYWARD_SIM_STRIDE").ok();
    asked.and_then(|text| text.parse().ok()).filter(|stride| *stride > 0).unwrap_or(9)
}

#[test]
fn a_leader_may_die_at_every_step_of_what_concerns_two_regions() {
    let (mut broken, mut runs) = (String::new(), 0);
    for joint in Joint::ALL {
        let quiet = steps::run(1, joint, None);
        assert!(quiet.violations.is_empty() && quiet.acknowledged, "{joint:?}: {quiet:?}");
        let (mut acknowledged, mut refused) = (0, 0);
        for here in [true, false] {
            let mut after = 1;
            while after <= quiet.messages {
                let victim = Victim { here, after };
                let ended = steps::run(1, joint, Some(victim));
                if !ended.violations.is_empty() {
                    broken += &format!("\n{joint:?} {victim:?}: {}", ended.violations.join("\n  "));
                }
                if ended.acknowledged {
                    acknowledged += 1
                } else {
                    refused += 1
                }
                (after, runs) = (after + stride(), runs + 1);
            }
        }
        println!(
            "{joint:?}: {} messages, {acknowledged} acknowledged, {refused} not",
            quiet.messages
        );
        assert!(acknowledged > 0, "{joint:?} never works out");
    }
    println!("{runs} runs");
    assert!(broken.is_empty(), "{broken}");
}
