//! Request quotas, enforced by every node from its own memory (DESIGN section 6; `docs/decisions/0012-quotas.md`).
//!
//! * [`bucket`]: one limit for one account or principal, as this node counts it: a share of a rate, or prepaid tokens.
//! * [`told`]: what its refusals say.
//! * [`plan`]: which buckets a caller's operation draws on; kept with the connection.
//! * [`shares`]: the node's side of moving shares: it asks when it runs dry, and does as the leader says.
//! * [`keeper`]: the leader's side: who holds how much of what. All parts of a bucket add up to at most the whole.
//! * [`operate`]: what operators set, list and see.
//!
//! A node's shares rest on its serving lease: they are void as soon as it has been without one
//! ([`Node::lease_epoch`](keyward_raft::Node::lease_epoch)), which is also when the leader gives them to others.

mod books;
mod bucket;
mod keeper;
mod operate;
mod plan;
mod shares;
mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyward_env::Env;
use keyward_model::{AccountId, KmsError, Operation};
use keyward_quota::{BucketId, Holder};
use keyward_raft::LeaderId;
use keyward_state::State;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::api::Caller;
use crate::kms::Kms;
pub use bucket::BucketFigures;
use bucket::{Bucket, Dry};
use keeper::Keeper;
pub use operate::{BucketUsage, NodeShare, PlanLine, QuotaUsage};
use plan::Plan;
pub(crate) use plan::PlanSlot;
pub(crate) use shares::{QuotaAnswer, QuotaRequest};

/// A call that is the first to draw on a bucket here waits this long for the node's share, rather than be refused.
const COLD_PATIENCE: Duration = Duration::from_millis(250);
/// The same while no leader is known: an election takes about a second.
const LEADERLESS_PATIENCE: Duration = Duration::from_millis(1500);
/// Once the node has its share, such a call waits so long for the first token at most.
const FIRST_TOKEN: Duration = Duration::from_millis(25);

/// The quotas as one node counts them.
#[derive(Default)]
pub struct Quotas {
    /// Every bucket that calls have drawn on here.
    buckets: Mutex<BTreeMap<BucketId, Arc<Bucket>>>,
    /// Buckets that ran dry since the leader was last asked.
    dry: Mutex<BTreeMap<BucketId, Arc<Bucket>>>,
    /// Buckets with prepaid tokens that the leader counts as out.
    filled: Mutex<BTreeMap<BucketId, Arc<Bucket>>>,
    /// Something is in `dry`.
    ran_dry: Notify,
    /// The latest leader that this node has told all its shares. Earlier ones are not listened to any more.
    heeds: Mutex<Option<LeaderId>>,
    /// How often the leader was asked.
    asked: AtomicU64,
    /// An ask is under way.
    asking: AtomicBool,
    /// The number of that leader's latest answer to an ask of this node that was taken up.
    heard: AtomicU64,
    /// An ask has ended.
    answered: Notify,
    keeper: Keeper,
}

impl Quotas {
    /// The bucket of that id, as the state defines it; none if no quota does.
    fn bucket(&self, state: &State, id: BucketId, now: Duration) -> Option<Arc<Bucket>> {
        let quota = state.quota_of(&id)?;
        let limit = quota.limits.iter().find(|limit| limit.window == id.window)?;
        let as_of = state.quotas_revision;
        let mut buckets = self.buckets.lock();
        let bucket = buckets
            .entry(id.clone())
            .or_insert_with(|| Arc::new(Bucket::new(id, quota, *limit, as_of, now)));
        bucket.redefine(quota, *limit, as_of, now);
        Some(Arc::clone(bucket))
    }

    fn known(&self) -> Vec<Arc<Bucket>> {
        self.buckets.lock().values().cloned().collect()
    }

    fn known_bucket(&self, id: &BucketId) -> Option<Arc<Bucket>> {
        self.buckets.lock().get(id).cloned()
    }

    /// Has the leader asked for more, soon. A bucket that is in line takes no lock.
    fn want(&self, bucket: &Arc<Bucket>) {
        if bucket.wanted_more.swap(true, Ordering::AcqRel) {
            return;
        }
        self.dry.lock().entry(bucket.id.clone()).or_insert_with(|| Arc::clone(bucket));
        self.ran_dry.notify_one();
    }

    /// What this node counts, bucket by bucket.
    #[must_use]
    pub fn figures(&self, now: Duration) -> Vec<BucketFigures> {
        self.known().iter().map(|bucket| bucket.figures(now)).collect()
    }
}

impl<E: Env> Kms<E> {
    /// Counts the call against every quota that it draws on, or refuses it.
    pub(crate) async fn throttle(
        &self,
        state: &State,
        caller: &Caller,
        operation: Operation,
        now: Duration,
        deadline: Duration,
    ) -> Result<(), KmsError> {
        let plan = caller.plan.get(state, &caller.principal);
        let buckets = plan.buckets(operation, || self.buckets_of(state, &plan, operation, now));
        match self.take(buckets, now) {
            Ok(()) => Ok(()),
            Err(dry) => self.throttle_soon(buckets, dry, now, deadline).await,
        }
    }

    /// Charges an account for what another Region's call has made here, as AWS charges such calls. Nothing waits for it and
    /// nothing is refused: what the account has not got any more it does not owe.
    pub(crate) async fn charge(&self, account: AccountId, operation: Operation, calls: u32) {
        let env = self.node.env();
        let state = self.node.state();
        let now = env.boot_now();
        let buckets: Vec<_> = plan::ids([Holder::Account(account)], operation)
            .filter_map(|id| self.quotas.bucket(&state, id, now))
            .collect();
        for _ in 0..calls {
            if let Err(dry) = self.take(&buckets, env.boot_now()) {
                // The leader's answer is waited for where this node has had none of it yet.
                let deadline = env.boot_now() + COLD_PATIENCE;
                let refused = self.throttle_soon(&buckets, dry, env.boot_now(), deadline).await;
                if refused.is_err() {
                    return;
                }
            }
        }
    }

    /// One token from each bucket, or none from any. One atomic operation a bucket.
    fn take<'a>(
        &self,
        buckets: &'a [Arc<Bucket>],
        now: Duration,
    ) -> Result<(), (&'a Arc<Bucket>, Dry)> {
        for (index, bucket) in buckets.iter().enumerate() {
            if let Err(dry) = bucket.take(now, || self.node.lease_epoch()) {
                buckets[..index].iter().for_each(|taken| taken.put_back());
                return Err((bucket, dry));
            }
        }
        buckets.iter().for_each(|bucket| bucket.admitted());
        Ok(())
    }

    /// A bucket is dry. The leader is asked for more; meanwhile the call is refused, unless the node never had
    /// anything to spend: then it waits for a moment.
    async fn throttle_soon(
        &self,
        buckets: &[Arc<Bucket>],
        first: (&Arc<Bucket>, Dry),
        began: Duration,
        deadline: Duration,
    ) -> Result<(), KmsError> {
        let env = self.node.env();
        let (mut bucket, mut dry) = first;
        let mut cold = false;
        loop {
            // Counted before the leader is asked: for nobody, nothing is asked.
            let waiting = dry.cold.then(|| bucket.wait());
            let told = bucket.told.notified();
            if dry.ask {
                self.quotas.want(bucket);
            }
            cold |= dry.cold;
            let refused = if dry.cold {
                let patience = match self.node.leader_id() {
                    Some(_) => COLD_PATIENCE,
                    None => LEADERLESS_PATIENCE,
                };
                env.boot_now() >= deadline.min(began + patience)
            } else {
                !cold || dry.wait > FIRST_TOKEN
            };
            if refused {
                return Err(bucket.refuse(dry));
            }
            env.timeout(dry.wait, told).await;
            drop(waiting);
            match self.take(buckets, env.boot_now()) {
                Ok(()) => return Ok(()),
                Err(next) => (bucket, dry) = next,
            }
        }
    }

    /// The buckets that one of the plan's operations draws on.
    fn buckets_of(
        &self,
        state: &State,
        plan: &Plan,
        operation: Operation,
        now: Duration,
    ) -> Box<[Arc<Bucket>]> {
        plan.ids(operation).filter_map(|id| self.quotas.bucket(state, id, now)).collect()
    }
}
