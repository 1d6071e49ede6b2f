//! One machine's wall clock is set wrong: a year ahead or behind, an hour, seconds. Another one's only when
//! nothing that the first one told counts any more: a minority of clocks is wrong at any time.

use std::sync::Arc;
use std::time::Duration;

use keyward_model::Timestamp;

use crate::client::Callers;
use crate::dice::Dice;
use crate::sleep;

const YEAR_MS: i64 = 365 * Timestamp::DAY_MS;
const HOUR_MS: i64 = 3_600_000;
/// By how much a clock is set wrong. The last ones: not enough for a leader to hand over, or just enough.
const WRONG_MS: &[i64] = &[YEAR_MS, YEAR_MS, -YEAR_MS, -YEAR_MS, HOUR_MS, -HOUR_MS, 9_000, -11_000];

/// Sets wall clocks wrong for that long.
pub async fn break_clocks(callers: Arc<Callers>, mut dice: Dice, duration: Duration) {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + duration;
    let mut wrong: Option<usize> = None;
    loop {
        sleep(dice.between_ms(200, 5000)).await;
        if cluster.world.now() >= end {
            return;
        }
        let leader = cluster.leader();
        let wanted = match leader {
            Some(leader) if dice.permille(500) => leader,
            _ => dice.pick(&cluster.members()),
        };
        let machine = match wrong {
            Some(wrong) if !cluster.walls.is_right(wrong) => wrong,
            _ => wanted,
        };
        wrong = Some(machine);
        // Right again, now and then, for long enough that another one's turn may come.
        if dice.permille(300) {
            cluster.walls.set_off(machine, 0);
            if dice.permille(300) {
                sleep(crate::walls::READINGS_LAST).await;
            }
            continue;
        }
        cluster.walls.set_off(machine, dice.pick(WRONG_MS));
        let counters = &mut callers.book.lock().counters;
        if leader == Some(machine) {
            counters.wrong_leaders += 1;
        } else {
            counters.wrong_followers += 1;
        }
    }
}
