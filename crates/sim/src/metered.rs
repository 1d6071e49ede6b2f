//! Callers with quotas, who ask for more than they may: each has one limit, of another kind. An operator changes one of
//! them now and then. In the end, with nothing broken, they get what they may.
//!
//! What they may at most is checked in `invariants/quotas.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_check::Meter;
use keyward_model::{ErrorCode, KmsError, Operation};
use keyward_quota::{Covers, Limit, Pool, Quota, QuotaName, Scope};
use keyward_service::api::{CreateKey, DescribeKey, GenerateRandom, UpdateKeyDescription};
use keyward_service::{Call, Caller, Request, Response};
use parking_lot::Mutex;

use crate::client::Callers;
use crate::cluster::{Cluster, Death, metered, operator};
use crate::dice::Dice;
use crate::plan::Metering;
use crate::runtime::{Group, HARNESS};
use crate::sleep;

/// How long an operator's call may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one of their calls may take.
const CALL_PATIENCE: Duration = Duration::from_millis(1000);
/// After this a change of a quota that got lost on its way takes effect no more: processes stand still for 6 s at most,
/// messages are 1.5 s late.
const SETTLED: Duration = Duration::from_secs(10);
/// One node gets the whole rate within this (DESIGN section 6).
const WHOLE_WITHIN: Duration = Duration::from_millis(400);
/// Over how long it is measured that they get what they may.
const MEASURED: Duration = Duration::from_secs(2);
/// A call is refused once the burst is spent: at 1.5 times the rate that takes two seconds.
const BURST_SPENT: Duration = Duration::from_millis(2100);
/// Of what was offered and may be admitted, the part that is, in thousandths.
const ADMITTED_PERMILLE: u64 = 950;

/// What the calls of a principal are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// GenerateRandom, with a share of the rate on each node.
    Shared,
    /// GenerateRandom, too few to be shared.
    Small,
    /// UpdateKeyDescription.
    Change,
    /// DescribeKey, so many a minute.
    Minute,
}

const KINDS: [Kind; 4] = [Kind::Shared, Kind::Small, Kind::Change, Kind::Minute];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Shared => "a shared quota",
            Self::Small => "a small quota",
            Self::Change => "a quota of changes",
            Self::Minute => "a quota a minute",
        }
    }

    const fn pool(self) -> Pool {
        match self {
            Self::Shared | Self::Small => Pool::SymmetricCrypto,
            Self::Change => Pool::Own(Operation::UpdateKeyDescription),
            Self::Minute => Pool::Own(Operation::DescribeKey),
        }
    }

    const fn limit(self, metering: &Metering) -> Limit {
        match self {
            Self::Shared => metering.shared,
            Self::Small => metering.small,
            Self::Change => metering.changes,
            Self::Minute => metering.minute,
        }
    }
}

/// The callers with quotas of one run.
pub struct MeteredCallers {
    callers: Arc<Callers>,
    who: Vec<Arc<Caller>>,
    /// What each of them has with each process: a node keeps with a connection what it counts.
    connections: Mutex<BTreeMap<(Group, usize), Arc<Caller>>>,
    /// A key of their own, which no other caller looks at.
    key: String,
    ended: AtomicBool,
}

fn quota(kind: Kind, who: &Caller, limit: Limit) -> Result<Quota, String> {
    let scope = Scope::Principal(who.principal.clone());
    let name = QuotaName { scope, covers: Covers::Pool(kind.pool()) };
    Quota::new(name, vec![limit]).map_err(|why| why.to_string())
}

async fn put(cluster: &Cluster, index: usize, quota: Quota) -> Result<(), String> {
    let put = move |kms: Arc<keyward_service::Kms<crate::env::SimEnv>>| async move {
        kms.put_quota(&operator(), quota, PATIENCE).await
    };
    cluster.operate(index, put).await.map(drop)
}

impl MeteredCallers {
    /// Makes their principals, quotas and key, with nothing broken.
    ///
    /// # Errors
    /// What could not be made.
    pub async fn set_up(callers: &Arc<Callers>, metering: &Metering) -> Result<Arc<Self>, String> {
        let cluster = &callers.cluster;
        let mut who = Vec::new();
        for (number, kind) in (0..).zip(KINDS) {
            let caller = metered(number);
            let arn = caller.principal.to_string();
            let create = move |kms: Arc<keyward_service::Kms<crate::env::SimEnv>>| async move {
                let kinds = ["administrator".to_owned(), "user".to_owned()];
                kms.create_principal(&operator(), &arn, &kinds, None, None, PATIENCE).await
            };
            cluster.operate(0, create).await?;
            let limit = kind.limit(metering);
            let quota = quota(kind, &caller, limit)?;
            put(cluster, 0, quota.clone()).await?;
            let meter = Meter::new(kind.name(), limit, cluster.world.now());
            let mut meters = callers.invariants.meters();
            meters.meters.push(meter);
            meters.names.push(quota.name);
            drop(meters);
            who.push(caller);
        }
        let key = match callers.ask(0, CreateKey::default().into()).await {
            Some(Ok(Response::Key(metadata))) => metadata.key_id,
            other => return Err(format!("no key: {other:?}")),
        };
        let ended = AtomicBool::new(false);
        let connections = Mutex::default();
        Ok(Arc::new(Self { callers: Arc::clone(callers), who, connections, key, ended }))
    }

    /// They call, each in its own way, and the operator changes their quotas, until [`Self::end`].
    pub fn start(self: &Arc<Self>, seed: &mut Dice, metering: &Metering) {
        let world = &self.callers.cluster.world;
        for kind in KINDS {
            let dice = seed.fork();
            drop(world.spawn_in(HARNESS, Arc::clone(self).ask_for_more(kind, dice)));
        }
        if metering.quota_changes {
            drop(world.spawn_in(HARNESS, Arc::clone(self).change_quotas(seed.fork())));
        }
    }

    /// No more calls.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Calls in runs of some seconds, at 1.5 to 3 times the rate, on one node or on all.
    async fn ask_for_more(self: Arc<Self>, kind: Kind, mut dice: Dice) {
        let cluster = &self.callers.cluster;
        let world = &cluster.world;
        loop {
            let limit = self.callers.invariants.meters().meters[kind as usize].limit();
            let a_second = match kind {
                Kind::Minute => (limit.limit / 15).max(2),
                _ => limit.limit,
            };
            let offered = a_second * (1500 + dice.below(1500)) / 1000 + 1;
            let alone = dice.permille(500).then(|| dice.pick(&cluster.members()));
            let until = world.now() + dice.between_ms(500, 4000);
            while world.now() < until {
                if self.ended.load(Ordering::Relaxed) {
                    return;
                }
                let index = alone.unwrap_or_else(|| dice.pick(&cluster.members()));
                // Fewer calls pile up at a process that stands still.
                if !self.callers.cluster.is_frozen(index) {
                    self.call(kind, index);
                }
                let mean_us = 1_000_000 / offered;
                sleep(Duration::from_micros(mean_us / 2 + dice.below(mean_us))).await;
            }
            sleep(dice.between_ms(200, 4000)).await;
        }
    }

    fn request(&self, kind: Kind) -> Request {
        match kind {
            Kind::Shared | Kind::Small => GenerateRandom { number_of_bytes: Some(16) }.into(),
            Kind::Change => {
                let description = "metered".to_owned();
                UpdateKeyDescription { key_id: self.key.clone(), description }.into()
            }
            Kind::Minute => DescribeKey { key_id: self.key.clone() }.into(),
        }
    }

    fn connection(&self, kind: Kind, group: Group) -> Arc<Caller> {
        let number = kind as usize;
        let mut connections = self.connections.lock();
        let made = || metered(u8::try_from(number).unwrap_or(u8::MAX));
        Arc::clone(connections.entry((group, number)).or_insert_with(made))
    }

    /// One call on that node, in a task of its own.
    fn call(self: &Arc<Self>, kind: Kind, index: usize) {
        let Some(running) = self.callers.cluster.running(index) else { return };
        let this = Arc::clone(self);
        drop(self.callers.cluster.world.spawn_in(running.group, async move {
            let began = this.callers.cluster.world.now();
            let caller = this.connection(kind, running.group);
            let call = Call::new(caller, this.request(kind), CALL_PATIENCE);
            let of = Arc::clone(&this);
            let note = move |result| {
                of.note(kind, &result, (began, of.callers.cluster.world.now()));
            };
            this.callers.send((index, &running), call, note).await
        }));
    }

    fn note(
        &self,
        kind: Kind,
        result: &Result<Response, KmsError>,
        (began, ended): (Duration, Duration),
    ) {
        let mut meters = self.callers.invariants.meters();
        let meter = &mut meters.meters[kind as usize];
        let wrong = match result {
            Ok(_) => {
                meter.admit(began, ended);
                None
            }
            Err(error) if error.code == ErrorCode::ThrottlingException => {
                meter.refuse(began, ended, error.throttle.as_deref()).err()
            }
            // Before or after it was counted.
            Err(error) if error.code == ErrorCode::DependencyTimeoutException => None,
            Err(error) => Some(format!("an unexpected error: {error:?}")),
        };
        drop(meters);
        if let Some(why) = wrong {
            self.callers.book.lock().violate(format!("A WRONG REFUSAL of {}: {why}", kind.name()));
        }
    }

    // --- The operator.

    /// Cuts and raises the quotas by the second, one at a time.
    async fn change_quotas(self: Arc<Self>, mut dice: Dice) {
        loop {
            sleep(dice.between_ms(2000, 9000)).await;
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let kind = dice.pick(&[Kind::Shared, Kind::Shared, Kind::Small]);
            let before = self.callers.invariants.meters().meters[kind as usize].limit();
            let part = dice.pick(&[300, 500, 800, 1500, 2500]);
            let limit = (before.limit * part / 1000).clamp(2, 200);
            let burst = (before.burst * part / 1000).clamp(limit.div_ceil(20), 200);
            let limit = Limit { limit, burst, ..before };
            if !self.redefine(kind, limit).await {
                sleep(SETTLED).await;
            }
        }
    }

    /// Sets a quota, through any node, until it is acknowledged. True if that was the first try.
    async fn redefine(&self, kind: Kind, limit: Limit) -> bool {
        let cluster = &self.callers.cluster;
        let now = || cluster.world.now();
        self.callers.invariants.meters().meters[kind as usize].define(limit, now());
        for number in 0_usize.. {
            let index = self.callers.throw(|dice| dice.pick(&cluster.members()));
            let put = match quota(kind, &self.who[kind as usize], limit) {
                Ok(quota) => put(cluster, index, quota).await,
                Err(why) => {
                    self.callers.book.lock().violate(format!("A QUOTA makes no sense: {why}"));
                    return false;
                }
            };
            if put.is_ok() {
                self.callers.invariants.meters().meters[kind as usize].defined(now());
                return number == 0;
            }
            sleep(Duration::from_millis(100)).await;
        }
        unreachable!("tries are not counted out")
    }

    // --- What they get, with nothing broken.

    /// At 1.5 times what they may, they get at least 95 % of it: on one node alone within 400 ms, and so do they spread
    /// over all; and when a node is lost, within its lease and 400 ms.
    pub async fn must_get_what_they_may(self: &Arc<Self>, dice: &mut Dice) {
        let kind = dice.pick(&[Kind::Shared, Kind::Shared, Kind::Small]);
        let all = self.callers.cluster.members();
        let alone = dice.pick(&all);
        while !self.callers.invariants.meters().meters[kind as usize].is_settled() {
            sleep(Duration::from_millis(100)).await;
        }
        match dice.below(3) {
            0 => self.measure(kind, &[alone], WHOLE_WITHIN, "one node alone").await,
            1 => self.measure(kind, &all, WHOLE_WITHIN, "all nodes").await,
            _ => self.measure_without_one(kind, alone).await,
        }
    }

    async fn measure_without_one(self: &Arc<Self>, kind: Kind, lost: usize) {
        let cluster = &self.callers.cluster;
        let all = cluster.members();
        self.offer(kind, &all, BURST_SPENT).await;
        cluster.kill(lost, Death::Kill);
        let rest: Vec<usize> = all.into_iter().filter(|index| *index != lost).collect();
        let ttl = Duration::from_millis(cluster.timers().lease_ttl_ms);
        self.measure(kind, &rest, ttl + WHOLE_WITHIN, "the others of a lost node").await;
        // Whoever had killed it before may have started it again.
        if cluster.group(lost).is_none() {
            cluster.boot(lost);
        }
        crate::ending::must_heal(&self.callers).await;
    }

    /// Offers 1.5 times the rate, first for as long as `within`, and until the burst is spent; then what is admitted is
    /// counted.
    async fn measure(self: &Arc<Self>, kind: Kind, nodes: &[usize], within: Duration, what: &str) {
        let admitted = || self.callers.invariants.meters().meters[kind as usize].admitted();
        self.offer(kind, nodes, within.max(BURST_SPENT)).await;
        let before = admitted();
        self.offer(kind, nodes, MEASURED).await;
        let got = admitted() - before;
        let cluster = &self.callers.cluster;
        let rate = self.callers.invariants.meters().meters[kind as usize].limit().limit;
        // Slow clocks admit as much less.
        let clock_ppm = 1_000_000 - u64::try_from(cluster.slowest_ppm()).unwrap_or(0);
        let seconds = MEASURED.as_secs();
        let least = rate * seconds * ADMITTED_PERMILLE / 1000 * clock_ppm / 1_000_000;
        // Whole calls, at both ends.
        if got + 1 < least {
            let nodes = cluster.describe();
            self.callers.book.lock().violate(format!(
                "LESS THAN THE QUOTA: {got} calls in {seconds} s on {what}, of {} of {rate} a second; {nodes}",
                kind.name()
            ));
        }
        self.callers.book.lock().counters.measured += 1;
    }

    /// 1.5 times the shared rate, evenly, on these nodes in turn.
    pub(crate) async fn offer_shared(self: &Arc<Self>, nodes: &[usize], lasts: Duration) {
        self.offer(Kind::Shared, nodes, lasts).await;
    }

    /// 1.5 times the rate, evenly, on these nodes in turn.
    async fn offer(self: &Arc<Self>, kind: Kind, nodes: &[usize], lasts: Duration) {
        let world = &self.callers.cluster.world;
        let rate = self.callers.invariants.meters().meters[kind as usize].limit().limit;
        let pause = Duration::from_micros(1_000_000 * 2 / (3 * rate));
        let until = world.now() + lasts;
        for turn in 0.. {
            if world.now() >= until {
                return;
            }
            self.call(kind, nodes[turn % nodes.len()]);
            sleep(pause).await;
        }
    }
}
