//! Callers who hang up in the middle, and callers who close their streams and wait for what is under way.

use std::sync::Arc;
use std::time::Duration;

use crate::client::Callers;
use crate::dice::Dice;
use crate::sleep;
use crate::streams::End;

/// Ends streams for that long, one at a time. The next call of that caller opens another one.
pub async fn end_streams(callers: Arc<Callers>, mut dice: Dice, duration: Duration) {
    let world = &callers.cluster.world;
    let end = world.now() + duration;
    loop {
        sleep(dice.between_ms(20, 800)).await;
        if world.now() >= end {
            return;
        }
        let how = if dice.permille(600) { End::Broken } else { End::Closed };
        if callers.streams.end_one(&mut dice, how) {
            let counters = &mut callers.book.lock().counters;
            match how {
                End::Broken => counters.streams_broken += 1,
                End::Closed => counters.streams_closed += 1,
            }
        }
    }
}
