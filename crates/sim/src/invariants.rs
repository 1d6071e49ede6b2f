//! What must hold all the time: looked at every few milliseconds of simulated time, on every node that is
//! up; as answers leave; and in the end. One rule a file.

pub mod acknowledged;
mod audit;
pub mod bad_input;
pub mod ciphertexts;
mod deletion_dates;
mod gone_from_disks;
mod gone_in_a_region;
mod linearizability;
mod material_everywhere;
pub mod never_opens;
mod no_resurrection;
pub mod no_secrets;
mod one_primary;
mod one_vote;
mod permissions;
mod quotas;
mod region_time;
mod regions;
pub mod regions_agree;
mod roots;

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::book::Book;
use crate::client::Callers;
use crate::cluster::Cluster;

pub use audit::Trails;
use deletion_dates::DeletionDates;
use gone_from_disks::GoneFromDisks;
pub use linearizability::{Commands, Under};
use no_resurrection::NoResurrection;
use one_vote::OneVote;
pub use permissions::Seen;
pub use quotas::Meters;
use region_time::RegionTime;
pub use regions::RegionRules;
pub use roots::Began;

/// Between looks.
const LOOK: Duration = Duration::from_millis(20);

/// All rules that are looked at all the time.
#[derive(Default)]
pub struct Invariants {
    rules: Mutex<Rules>,
    meters: Mutex<Meters>,
    trails: Mutex<Trails>,
}

#[derive(Debug, Default)]
struct Rules {
    region_time: RegionTime,
    deletion_dates: DeletionDates,
    no_resurrection: NoResurrection,
    gone_from_disks: GoneFromDisks,
    one_vote: OneVote,
    quotas: bad_input::Quotas,
}

impl Invariants {
    /// What callers with quotas were admitted.
    pub fn meters(&self) -> MutexGuard<'_, Meters> {
        self.meters.lock()
    }

    /// What was answered, and its records.
    pub fn trails(&self) -> MutexGuard<'_, Trails> {
        self.trails.lock()
    }

    /// What must hold of all records in the end. Returns those of machine `index`.
    pub fn look_at_trails(&self, cluster: &Cluster, index: usize, book: &mut Book) -> Vec<u8> {
        let mut records = Vec::new();
        self.trails().look_in_the_end(
            |index| cluster.audit_disk(index),
            book,
            |machine, line| {
                if machine == index {
                    records.extend_from_slice(line.as_bytes());
                }
            },
        );
        records
    }

    /// What has no place in rows, records and errors is not there. One machine is looked at, with its records.
    pub fn look_for_secrets(
        &self,
        cluster: &Cluster,
        (index, records): (usize, Vec<u8>),
        book: &mut Book,
    ) {
        let mut places = cluster.rows(index);
        places.push((format!("the audit records of node {}", cluster.id(index)), records));
        let drawn = cluster.drawn();
        no_secrets::look(drawn.iter().map(<[u8; 32]>::as_slice), &places, book);
    }

    /// Looks at every node now.
    pub fn look(&self, cluster: &Cluster, book: &mut Book) {
        let mut rules = self.rules.lock();
        rules.region_time.look(cluster, book);
        rules.deletion_dates.look(cluster, book);
        rules.no_resurrection.look(cluster, book);
        rules.gone_from_disks.look(cluster, book);
        rules.one_vote.look(cluster, book);
        roots::look(cluster, book);
        let mut meters = self.meters();
        meters.look(cluster);
        rules.quotas.look(cluster, &meters, book);
    }

    /// Looks for keys that have gone meanwhile.
    pub fn look_for_the_gone(&self, cluster: &Cluster, book: &mut Book) {
        let mut rules = self.rules.lock();
        rules.deletion_dates.look(cluster, book);
        rules.no_resurrection.look(cluster, book);
    }

    /// What must hold of everything that was admitted.
    pub fn look_at_quotas(&self, cluster: &Cluster, book: &mut Book) {
        self.meters().look_in_the_end(cluster, book);
    }

    /// What must hold once every node has said that nothing of deleted keys is left.
    pub fn look_in_the_end(&self, cluster: &Cluster, book: &mut Book) {
        self.look(cluster, book);
        self.rules.lock().gone_from_disks.look_in_the_end(cluster, book);
    }
}

/// Looks all the time.
pub async fn watch(callers: std::sync::Arc<Callers>) {
    loop {
        callers.invariants.look(&callers.cluster, &mut callers.book.lock());
        crate::sleep(LOOK).await;
    }
}
