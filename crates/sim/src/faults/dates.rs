//! Deletion dates come: the clock of a Region for development is moved ahead, or all machines are without
//! power for longer than a waiting period, and one clock may not notice.

use std::sync::Arc;
use std::time::Duration;

use keyward_model::Timestamp;

use crate::client::{Callers, WINDOW_DAYS};
use crate::cluster::{Death, operator};
use crate::dice::Dice;
use crate::plan::Deletions;
use crate::sleep;

/// Longer than a waiting period, shorter than the certificates of callers hold.
const STEP_MS: i64 = (WINDOW_DAYS as i64 + 1) * Timestamp::DAY_MS;
const PATIENCE: Duration = Duration::from_secs(3);

/// Has dates come while faults go on, once or twice.
pub async fn reach_dates(
    callers: Arc<Callers>,
    mut dice: Dice,
    deletions: Deletions,
    duration: Duration,
) {
    let seconds = duration.as_secs().max(10);
    for _ in 0..=dice.below(2) {
        sleep(dice.between_ms(200 * seconds, 450 * seconds)).await;
        match deletions {
            Deletions::None | Deletions::Waiting => return,
            Deletions::ClockAdvanced => advance(&callers, &mut dice).await,
            Deletions::LongNight => return night(&callers, &mut dice).await,
        }
    }
}

/// An operator moves the clock ahead, through any node.
async fn advance(callers: &Callers, dice: &mut Dice) {
    for _ in 0..5 {
        let index = dice.pick(&callers.cluster.members());
        let moved = callers
            .cluster
            .operate(
                index,
                |kms| async move { kms.advance_clock(&operator(), STEP_MS, PATIENCE).await },
            )
            .await;
        if moved.is_ok() {
            callers.book.lock().counters.dates_reached += 1;
            return;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// No machine has power for longer than a waiting period.
async fn night(callers: &Callers, dice: &mut Dice) {
    let cluster = &callers.cluster;
    let stuck = if dice.permille(500) { Some(dice.pick(&cluster.members())) } else { None };
    for index in cluster.machines() {
        cluster.kill(index, Death::PowerCut);
    }
    let notice: Vec<usize> = (0..cluster.size()).filter(|index| Some(*index) != stuck).collect();
    let night = Duration::from_millis(STEP_MS.unsigned_abs());
    cluster.walls.pass(night, &notice);
    callers.book.lock().counters.dates_reached += 1;
    for index in cluster.machines() {
        sleep(dice.between_ms(10, 600)).await;
        if cluster.group(index).is_none() {
            cluster.boot(index);
        }
    }
}
