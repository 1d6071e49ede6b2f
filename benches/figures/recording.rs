//! What the audit trail costs a call: two servers on the same data, one with a trail and one without, are called in
//! turn with 64 calls in flight; and one call at a time.

use crate::servers::{Called, IN_FLIGHT, Kind, WINDOWS, difference, median, verdict};
use crate::support::{Region, create_key};

/// The most that a record may cost, in microseconds of CPU.
const BAR_US: f64 = 4.0;

/// Windows in pairs, the order within a pair changing; the median of the pairs' differences.
pub async fn cost() {
    let mut region = Region::start(1);
    region.wait_serving(1).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    region.stop(1);
    let servers = [
        Called::start(&region, Kind::Unrecorded, 1, &key).await,
        Called::start(&region, Kind::Recorded, 2, &key).await,
    ];
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let (mut alone_without, mut alone_with) = (Vec::new(), Vec::new());
    for pair in 0..WINDOWS {
        for turn in 0..2 {
            let recorded = (pair + turn) % 2 == 1;
            let server = &servers[usize::from(recorded)];
            let ((cost, _), alone) = (server.window().await, server.alone().await);
            if recorded {
                with.push(cost)
            } else {
                without.push(cost)
            }
            if recorded { alone_with.push(alone) } else { alone_without.push(alone) }
        }
    }
    let (record, low, high) = difference(&with, &without);
    println!(
        "CPU an Encrypt, {IN_FLIGHT} in flight: {:.1} us recorded, {:.1} us not (medians of {WINDOWS} windows each)",
        median(with),
        median(without)
    );
    println!(
        "  a record costs {record:.1} us, 96 % interval {low:.1} to {high:.1} (bar: at most {BAR_US} us, {})",
        verdict(low, high, BAR_US)
    );
    println!(
        "  one call at a time takes {:.0} us recorded, {:.0} us not (medians)",
        median(alone_with),
        median(alone_without)
    );
}
