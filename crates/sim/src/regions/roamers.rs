//! Callers who roam: each is made in one Region and calls in all, while operators of any Region shut them out and let
//! them in again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_model::ErrorCode;
use keyward_service::api::GenerateRandom;

use super::{Regions, SETUP_PATIENCE};
use crate::cluster::{operator, roamer};
use crate::dice::Dice;
use crate::runtime::HARNESS;
use crate::sleep;

/// One is made in each Region.
pub(super) const ROAMERS: usize = 3;
/// An operator's call of unknown outcome has taken effect after this, if ever.
const UNKNOWN_FOR: Duration = Duration::from_secs(15);
/// In the end each gets in within this in every Region.
const LET_IN_WITHIN: Duration = Duration::from_secs(30);

/// Who is shut out where, as far as operators can be sure.
#[derive(Debug, Default)]
pub struct Doors {
    /// Lettings-in of each that may still take effect.
    pending: [u32; ROAMERS],
    /// Lettings-in of each that have begun.
    begun: [u64; ROAMERS],
    /// (Region, roamer): shut out there, and nobody who knew of it has begun to let him in since.
    out: BTreeSet<(usize, usize)>,
}

impl Regions {
    /// Makes them, before anything breaks.
    pub(super) async fn make_roamers(&self) -> Result<(), String> {
        for (number, cluster) in self.clusters.iter().enumerate() {
            let arn = roamer(number).principal.to_string();
            let made = cluster.operate(0, move |kms| async move {
                let who = operator();
                let kinds = ["user".to_owned()];
                kms.create_principal(&who, &arn, &kinds, None, None, SETUP_PATIENCE).await
            });
            made.await?;
        }
        Ok(())
    }

    /// An operator of that Region shuts one out, or lets him in. True once it was acknowledged.
    async fn switch(self: &Arc<Self>, region: usize, number: usize, out: bool) -> bool {
        let Some(node) = self.some_node(region) else { return false };
        let before = {
            let doors = &mut self.ledger.lock().doors;
            if !out {
                doors.begun[number] += 1;
                doors.pending[number] += 1;
                doors.out.retain(|(_, other)| *other != number);
            }
            (doors.begun[number], doors.pending[number])
        };
        let arn = roamer(number).principal.to_string();
        let patience = Duration::from_millis(self.throw(|dice| dice.pick(&[1000, 4000])));
        let switched = self.clusters[region].operate(node, move |kms| async move {
            kms.set_principal_disabled(&operator(), &arn, out, patience).await
        });
        let done = switched.await.is_ok();
        let mut ledger = self.ledger.lock();
        let after = (ledger.doors.begun[number], ledger.doors.pending[number]);
        match (out, done) {
            (true, true) => {
                ledger.counters.shut_out += 1;
                if before == after && after.1 == 0 {
                    ledger.doors.out.insert((region, number));
                }
            }
            (true, false) => {}
            (false, true) => ledger.doors.pending[number] -= 1,
            (false, false) => {
                let this = Arc::clone(self);
                drop(self.world.spawn_in(HARNESS, async move {
                    sleep(UNKNOWN_FOR).await;
                    this.ledger.lock().doors.pending[number] -= 1;
                }));
            }
        }
        done
    }

    /// One of them calls in that Region. True if he got in.
    async fn roam(&self, region: usize, number: usize) -> bool {
        let is_out = || self.ledger.lock().doors.out.contains(&(region, number));
        let was_out = is_out();
        let request = GenerateRandom { number_of_bytes: Some(8) };
        let patience = Duration::from_millis(1000);
        let answer = self.ask_as(&roamer(number), region, request.into(), patience).await;
        let got_in = matches!(answer, Some(Ok(_)));
        let name = self.name(region);
        let mut ledger = self.ledger.lock();
        ledger.counters.roamed += u64::from(got_in);
        // What a Region with old disks has forgotten it hears from others.
        let knows = ledger.counters.old_copies == 0;
        let still_out = ledger.doors.out.contains(&(region, number));
        if got_in && was_out && still_out && knows {
            ledger.violate(format!("A CALLER WHO IS SHUT OUT GOT IN: roamer {number} in {name}"));
        }
        if let Some(Err(error)) = answer
            && error.code == ErrorCode::KMSInternalException
        {
            ledger.violate(format!("AN UNEXPECTED ERROR: roamer {number} in {name}: {error:?}"));
        }
        got_in
    }

    /// In the end everybody is let in by one Region, as soon as that knows who has shut him out, and gets in in all.
    pub(super) async fn all_roamers_get_in(self: &Arc<Self>) {
        let end = self.world.now() + LET_IN_WITHIN;
        for number in 0..ROAMERS {
            let host = ROAMERS - 1 - number;
            for region in 0..self.clusters.len() {
                while !(self.switch(host, number, false).await && self.roam(region, number).await) {
                    if self.world.now() > end {
                        let (host, name) = (self.name(host), self.name(region));
                        return self.violate(format!(
                            "ROAMER {number} DOES NOT GET IN in {name}: {host} lets him in"
                        ));
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// Operators shut them out and let them in all the time.
pub(super) async fn keep_doors(regions: Arc<Regions>, mut dice: Dice, ended: Arc<AtomicBool>) {
    while !ended.load(Ordering::Relaxed) {
        sleep(dice.between_ms(200, 1500)).await;
        let (region, number) = (dice.index(regions.clusters.len()), dice.index(ROAMERS));
        regions.switch(region, number, dice.permille(550)).await;
    }
}

/// They call all the time.
pub(super) async fn roam(regions: Arc<Regions>, mut dice: Dice, ended: Arc<AtomicBool>) {
    while !ended.load(Ordering::Relaxed) {
        sleep(dice.between_ms(10, 50)).await;
        regions.roam(dice.index(regions.clusters.len()), dice.index(ROAMERS)).await;
    }
}
