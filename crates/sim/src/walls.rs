//! Wall clocks: one a machine, which may be set wrong and right again while everything runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::runtime::World;

/// What right wall clocks show when a world begins: 2027-01-15.
pub const WALL_START_MS: i64 = 1_800_000_000_000;
/// By how much a wall clock may be off and still count as right, in milliseconds.
pub const RIGHT_WITHIN_MS: i64 = 2_000;
/// A majority's readings count for ten seconds of the leader's clock, which may be 5 % slow.
pub const READINGS_LAST: Duration = Duration::from_millis(10_600);

#[derive(Debug)]
struct Wall {
    /// Its small, usual error.
    error_ms: i64,
    /// What it was set wrong by.
    off_ms: i64,
    /// What it was set wrong by before, and until when; the latest at the end.
    before: VecDeque<(Duration, i64)>,
}

#[derive(Debug)]
struct Inner {
    /// Time that nobody lived through: the machines were off.
    passed_ms: i64,
    walls: Vec<Wall>,
}

/// The wall clocks of all machines.
#[derive(Debug)]
pub struct Walls {
    world: Arc<World>,
    inner: Mutex<Inner>,
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

impl Walls {
    /// Clocks with these small errors, in milliseconds.
    #[must_use]
    pub fn new(world: Arc<World>, errors_ms: impl IntoIterator<Item = i64>) -> Arc<Self> {
        let walls = errors_ms
            .into_iter()
            .map(|error_ms| Wall { error_ms, off_ms: 0, before: VecDeque::new() })
            .collect();
        Arc::new(Self { world, inner: Mutex::new(Inner { passed_ms: 0, walls }) })
    }

    /// The time as it is, which no machine knows.
    #[must_use]
    pub fn true_ms(&self) -> i64 {
        WALL_START_MS + self.inner.lock().passed_ms + millis(self.world.now())
    }

    /// What a machine's clock shows.
    #[must_use]
    pub fn now_ms(&self, machine: usize) -> i64 {
        let true_ms = self.true_ms();
        let inner = self.inner.lock();
        true_ms + inner.walls[machine].error_ms + inner.walls[machine].off_ms
    }

    /// Sets a machine's clock wrong by so much; 0 sets it right.
    pub fn set_off(&self, machine: usize, off_ms: i64) {
        let now = self.world.now();
        let mut inner = self.inner.lock();
        let wall = &mut inner.walls[machine];
        wall.before.push_back((now, wall.off_ms));
        wall.off_ms = off_ms;
    }

    /// Time passes that only the clocks of these machines notice. The others stay behind.
    pub fn pass(&self, duration: Duration, notice: &[usize]) {
        self.inner.lock().passed_ms += millis(duration);
        let machines = self.inner.lock().walls.len();
        for machine in (0..machines).filter(|machine| !notice.contains(machine)) {
            let off_ms = self.inner.lock().walls[machine].off_ms;
            self.set_off(machine, off_ms - millis(duration));
        }
    }

    /// True once time has passed that the machines did not live through.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.inner.lock().passed_ms > 0
    }

    /// The most that a machine's clock was ahead of the time while readings of it may still count, in
    /// milliseconds.
    #[must_use]
    pub fn ahead_lately_ms(&self, machine: usize) -> i64 {
        let since = self.world.now().saturating_sub(READINGS_LAST);
        let inner = self.inner.lock();
        let wall = &inner.walls[machine];
        let lately = wall.before.iter().filter(|(until, _)| *until >= since).map(|(_, off)| *off);
        wall.error_ms + lately.chain([wall.off_ms]).max().unwrap_or(0)
    }

    /// True if the machine's clock is right, and was while readings of it may still count.
    #[must_use]
    pub fn is_right(&self, machine: usize) -> bool {
        let since = self.world.now().saturating_sub(READINGS_LAST);
        let inner = self.inner.lock();
        let wall = &inner.walls[machine];
        wall.off_ms == 0 && wall.before.iter().all(|(until, off)| *off == 0 || *until < since)
    }
}
