//! What a seed decides about a run before it begins: clocks, weather, paces.

use std::time::Duration;

use keyward_quota::{Limit, Window};
use keyward_raft::SnapshotPace;
use keyward_state::{Purpose, Timers};

use crate::cluster::FOUNDERS;
use crate::dice::{Dice, Stream};
use crate::network::Weather;
use crate::runtime::Clock;

/// Delays of a calm network, in milliseconds.
const CALM_MS: &[u64] = &[1, 1, 2, 5, 10];
/// Delays of a network in chaos.
const CHAOS_MS: &[u64] = &[1, 1, 2, 5, 20, 60, 300, 1500];

/// How keys come to their deletion dates in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletions {
    /// No key is scheduled for deletion.
    None,
    /// Keys are, and their dates do not come.
    Waiting,
    /// A Region for development whose operator moves its clock ahead.
    ClockAdvanced,
    /// All machines are without power for longer than a waiting period. One clock may not notice.
    LongNight,
}

/// A run's settings.
#[derive(Debug)]
pub struct Plan {
    /// Each node's clock, and by how much its wall clock is off, in milliseconds.
    pub clocks: Vec<(Clock, i64)>,
    /// The network while faults go on.
    pub weather: Weather,
    /// How often a ready task is put off, in a thousand.
    pub stall_permille: u64,
    /// Between control commands of one client, in milliseconds.
    pub pace_ms: (u64, u64),
    /// How long faults go on.
    pub faults: Duration,
    /// The Region's timers.
    pub timers: Timers,
    /// Whether one machine's wall clock is set wrong, now and then, by up to a year.
    pub wrong_walls: bool,
    /// How keys come to their deletion dates.
    pub deletions: Deletions,
    /// Whether disks lie and nodes are replaced.
    pub lying_disks: bool,
    /// Whether roots are away, and are added, removed and rotated.
    pub root_faults: bool,
    /// The quotas of callers who ask for more than they may, if there are any.
    pub metering: Option<Metering>,
    /// Whether disks of audit trails break.
    pub audit_faults: bool,
    /// Whether disks are full now and then, or fail to sync.
    pub disk_faults: bool,
    /// How often nodes make snapshots.
    pub snapshots: SnapshotPace,
    /// Whether hand-overs go wrong at the worst moment.
    pub hand_over_faults: bool,
    /// Whether callers send what they may over streams.
    pub streams: bool,
    /// Whether streams break, and are closed, now and then.
    pub stream_faults: bool,
    /// How many members leave again once all machines have come into use; none: the Region has three machines and stays
    /// as it is.
    pub growing: Option<u32>,
}

/// Machines of a Region that grows.
const GROWN: usize = 5;
/// Things break for so much longer there.
const GROWING_SECONDS: u64 = 10;

/// Quotas, one a caller.
#[derive(Clone, Copy, Debug)]
pub struct Metering {
    /// Cryptographic calls, so many that nodes share the rate.
    pub shared: Limit,
    /// Cryptographic calls, too few for that.
    pub small: Limit,
    /// UpdateKeyDescription.
    pub changes: Limit,
    /// DescribeKey, by the minute.
    pub minute: Limit,
    /// An operator cuts and raises them.
    pub quota_changes: bool,
}

impl Metering {
    /// Quotas of a scene, which asks for the shared one alone.
    pub(crate) const fn staged() -> Self {
        const fn a_second(limit: u64, burst: u64) -> Limit {
            Limit { window: Window::Second, limit, burst }
        }
        Self {
            shared: a_second(100, 30),
            small: a_second(10, 10),
            changes: a_second(4, 4),
            minute: Limit { window: Window::Minute, limit: 60, burst: 0 },
            quota_changes: false,
        }
    }

    fn new(dice: &mut Dice) -> Self {
        let a_second = |limit, burst| Limit { window: Window::Second, limit, burst };
        let shared = dice.pick(&[40, 40, 60, 90, 150]);
        let small = 2 + dice.below(26);
        let changes = 2 + dice.below(4);
        Self {
            shared: a_second(shared, dice.pick(&[shared, 30])),
            small: a_second(small, dice.pick(&[small, small.div_ceil(3)])),
            changes: a_second(changes, changes),
            minute: Limit { window: Window::Minute, limit: 40 + dice.below(100), burst: 0 },
            quota_changes: dice.permille(500),
        }
    }
}

impl Plan {
    /// The plan of that seed.
    #[must_use]
    pub fn new(seed: u64, faults: Option<Duration>) -> Self {
        let mut dice = Dice::new(seed, Stream::Plan);
        let rate_max_ppm = dice.pick(&[100, 20_000, 50_000, 50_000]);
        let clock = |dice: &mut Dice| {
            let rate_ppm = dice.below(2 * rate_max_ppm + 1) as i64 - rate_max_ppm as i64;
            let offset = dice.between_ms(60_000, 1_000_000_000);
            let wall_offset_ms = dice.below(4000) as i64 - 2000;
            (Clock::new(rate_ppm, offset), wall_offset_ms)
        };
        let mut clocks: Vec<_> = (0..FOUNDERS).map(|_| clock(&mut dice)).collect();
        let mut members = Dice::new(seed, Stream::Members);
        let growing = members.permille(150).then(|| members.pick(&[0, 0, 1, 2]));
        if growing.is_some() {
            clocks.resize_with(GROWN, || clock(&mut members));
        }
        let chaos = dice.permille(500);
        let weather = Weather {
            loss_permille: dice.pick(&[0, 0, 20, 100]),
            twice_permille: dice.pick(&[0, 10]),
            delays_ms: if chaos { CHAOS_MS } else { CALM_MS },
        };
        let deletions = dice.pick(&[
            Deletions::None,
            Deletions::None,
            Deletions::None,
            Deletions::Waiting,
            Deletions::ClockAdvanced,
            Deletions::LongNight,
        ]);
        let seconds = 20 + dice.below(21) + if growing.is_some() { GROWING_SECONDS } else { 0 };
        let stall_permille = dice.pick(&[0, 0, 2, 10]);
        let pace_ms = dice.pick(&[(60, 600), (200, 1500)]);
        let timers = if dice.permille(250) { Timers::QUICK } else { Timers::DEFAULT };
        // A majority is right at any time: after the long night one clock may be behind already.
        let wrong_walls = deletions != Deletions::LongNight && dice.permille(400);
        let (lying_disks, root_faults) = (dice.permille(300), dice.permille(300));
        let audit_faults = dice.permille(300);
        let metering = dice.permille(400).then(|| Metering::new(&mut dice));
        let mut of_streams = Dice::new(seed, Stream::Streams);
        let streams = of_streams.permille(250);
        Self {
            clocks,
            weather,
            stall_permille,
            pace_ms,
            faults: faults.unwrap_or(Duration::from_secs(seconds)),
            timers,
            wrong_walls,
            deletions,
            lying_disks,
            root_faults,
            metering,
            audit_faults,
            disk_faults: dice.permille(300),
            snapshots: dice.pick(&[
                SnapshotPace::default(),
                SnapshotPace { every: 100, kept: 40 },
                SnapshotPace { every: 25, kept: 5 },
                SnapshotPace { every: 25, kept: 0 },
            ]),
            growing,
            hand_over_faults: Dice::new(seed, Stream::HandOvers).permille(300),
            streams,
            stream_faults: streams && of_streams.permille(500),
        }
    }

    /// Nothing goes wrong by itself: for a scene. The clocks are good ones, and the seed's.
    #[must_use]
    pub(crate) fn calm(seed: u64, machines: usize) -> Self {
        let mut dice = Dice::new(seed, Stream::Plan);
        let clocks = (0..machines).map(|_| {
            let rate_ppm = dice.below(201) as i64 - 100;
            (Clock::new(rate_ppm, dice.between_ms(60_000, 1_000_000_000)), 0)
        });
        Self {
            clocks: clocks.collect(),
            weather: Weather::FAIR,
            stall_permille: 0,
            pace_ms: (60, 600),
            faults: Duration::ZERO,
            timers: Timers::DEFAULT,
            wrong_walls: false,
            deletions: Deletions::None,
            lying_disks: false,
            root_faults: false,
            metering: None,
            audit_faults: false,
            disk_faults: false,
            snapshots: SnapshotPace::default(),
            growing: None,
            hand_over_faults: false,
            streams: false,
            stream_faults: false,
        }
    }

    /// What the Region is founded for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        match self.deletions {
            Deletions::ClockAdvanced => Purpose::Dev,
            _ => Purpose::Production,
        }
    }
}
