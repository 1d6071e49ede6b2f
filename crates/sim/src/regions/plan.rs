//! What a seed decides about a run of several Regions before it begins.

use std::time::Duration;

use crate::dice::{Dice, Stream};
use crate::network::Weather;
use crate::plan::{Deletions, Plan};

/// Regions of a run.
pub const REGIONS: [&str; 3] = ["ap-south-1", "eu-west-1", "us-east-1"];

/// Delays of a calm way between Regions, in milliseconds.
const CALM_MS: &[u64] = &[5, 20, 20, 60];
/// Delays of one in chaos.
const CHAOS_MS: &[u64] = &[5, 20, 60, 60, 150, 300];

/// A run's settings.
#[derive(Debug)]
pub struct RegionsPlan {
    /// Each Region's seed and plan.
    pub regions: Vec<(u64, Plan)>,
    /// The ways between Regions while faults go on.
    pub weather: Weather,
    /// How often a ready task is put off, in a thousand.
    pub stall_permille: u64,
    /// Between changes of one caller, in milliseconds.
    pub pace_ms: (u64, u64),
    /// How long faults go on.
    pub faults: Duration,
    /// Whether operators promote Regions.
    pub promotions: bool,
    /// Whether a Region comes back with old disks.
    pub old_disks: bool,
    /// Whether callers of one Region call in others, and are shut out.
    pub roamers: bool,
    /// How often waiting periods come to their end.
    pub dates: u64,
}

impl RegionsPlan {
    /// Three Regions, of three nodes, three and one, in which nothing goes wrong.
    #[must_use]
    pub fn quiet(seed: u64) -> Self {
        let regions = [3, 3, 1].into_iter().zip(0u32..).map(|(nodes, number)| {
            let own = Dice::new(seed, Stream::Region(number)).word();
            let mut plan = Plan::new(own, None);
            plan.clocks.truncate(nodes);
            plan.deletions = Deletions::ClockAdvanced;
            (own, plan)
        });
        Self {
            regions: regions.collect(),
            weather: Weather::FAIR,
            stall_permille: 0,
            pace_ms: (1, 2),
            faults: Duration::ZERO,
            promotions: false,
            old_disks: false,
            roamers: false,
            dates: 0,
        }
    }

    /// The plan of that seed.
    #[must_use]
    pub fn new(seed: u64, faults: Option<Duration>) -> Self {
        let mut dice = Dice::new(seed, Stream::Plan);
        let chaos = dice.permille(500);
        let weather = Weather {
            loss_permille: dice.pick(&[0, 0, 20, 100]),
            twice_permille: dice.pick(&[0, 20]),
            delays_ms: if chaos { CHAOS_MS } else { CALM_MS },
        };
        // Most Regions are small: what Regions do to each other does not need many nodes.
        let regions = (0..REGIONS.len() as u32).map(|number| {
            let own = Dice::new(seed, Stream::Region(number)).word();
            let mut plan = Plan::new(own, faults);
            plan.clocks.truncate(dice.pick(&[1, 1, 2, 3]));
            // Dates come by moving clocks ahead, which Regions for development alone allow.
            plan.deletions = Deletions::ClockAdvanced;
            (own, plan)
        });
        Self {
            regions: regions.collect(),
            weather,
            stall_permille: dice.pick(&[0, 0, 2]),
            pace_ms: dice.pick(&[(40, 300), (100, 800)]),
            faults: faults.unwrap_or(Duration::from_secs(20 + dice.below(21))),
            promotions: dice.permille(400),
            old_disks: dice.permille(300),
            // Not drawn: the runs of other seeds are as they were before there were any.
            roamers: (5..=7).contains(&(seed % 10)),
            dates: dice.pick(&[0, 1, 2]),
        }
    }
}
