//! What must hold all the time: looked at every few milliseconds of simulated time, on every node that is
//! up. One rule a file. (What callers are told is checked where they are told it: `book.rs`, `check.rs`.)

mod region_time;

use std::time::Duration;

use parking_lot::Mutex;

use crate::book::Book;
use crate::client::Callers;
use crate::cluster::Cluster;

use region_time::RegionTime;

/// Between looks.
const LOOK: Duration = Duration::from_millis(20);

/// All rules that are looked at all the time.
#[derive(Debug, Default)]
pub struct Invariants(Mutex<Rules>);

#[derive(Debug, Default)]
struct Rules {
    region_time: RegionTime,
}

impl Invariants {
    /// Looks at every node now.
    pub fn look(&self, cluster: &Cluster, book: &mut Book) {
        let mut rules = self.0.lock();
        rules.region_time.look(cluster, book);
    }
}

/// Looks all the time.
pub async fn watch(callers: std::sync::Arc<Callers>) {
    loop {
        callers.invariants.look(&callers.cluster, &mut callers.book.lock());
        crate::sleep(LOOK).await;
    }
}
