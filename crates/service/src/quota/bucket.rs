//! One limit for one account or principal, as this node counts it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyward_env::sabotage::{Bug, on};
use keyward_model::KmsError;
use keyward_quota::{
    BucketId, Limit, Purse, Quota, QuotaName, RateCell, Scope, Share, Taken, Window,
};
use keyward_raft::LeaderId;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::told::Told;

/// How much is wanted is measured over at least this.
const MEASURE_OVER: Duration = Duration::from_millis(20);
/// A call that waits for the leader's word looks again after this: the question may have got lost.
const LOOK_AGAIN: Duration = Duration::from_millis(60);
/// A node that was given nothing asks again after this.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Why a bucket refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dry {
    /// Try again after this.
    pub(super) wait: Duration,
    /// The node has nothing to spend and has not been told that there is nothing: the leader may have some.
    pub(super) cold: bool,
    /// The leader may have more.
    pub(super) ask: bool,
}

/// What is counted down.
enum Gate {
    /// A part of a rate, and the lease epoch that it was given in.
    Shared { cell: RateCell, epoch: u64 },
    /// Tokens that the leader handed out.
    Prepaid(Purse),
}

/// The bucket's limit, and this node's part of it. Replaced as a whole.
pub(super) struct Part {
    pub(super) told: Arc<Told>,
    pub(super) limit: Limit,
    /// Tells this definition of the bucket from earlier and later ones.
    pub(super) definition: u64,
    /// The revision of all quotas that it was looked up in.
    as_of: u64,
    gate: Gate,
}

impl Part {
    pub(super) fn whole(&self) -> Share {
        Share { rate: self.limit.limit, burst: self.limit.burst }
    }
}

struct Slow {
    /// The latest word of a leader that was heeded.
    number: Option<(LeaderId, u64)>,
    measured: Duration,
    ended_then: u64,
    /// What was wanted when it was last measured, in calls a second.
    rate: u64,
}

/// A bucket of this node.
pub(super) struct Bucket {
    pub(super) id: BucketId,
    part: ArcSwap<Part>,
    admitted: AtomicU64,
    refused: AtomicU64,
    /// Calls that wait for the leader's word.
    waiting: AtomicU64,
    /// Until then the leader has nothing, in nanoseconds.
    nothing_until: AtomicU64,
    /// The leader is about to be asked for more.
    pub(super) wanted_more: AtomicBool,
    slow: Mutex<Slow>,
    /// The leader has said something.
    pub(super) told: Notify,
}

/// Counts a call that waits.
pub(super) struct Waiting<'a>(&'a Bucket);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A bucket's numbers on this node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BucketFigures {
    /// Which.
    pub bucket: BucketId,
    /// The quota that defines it.
    pub quota: QuotaName,
    /// Its limit.
    pub limit: Limit,
    /// The part that this node holds; none of prepaid ones.
    pub share: Share,
    /// Tokens that it could spend now.
    pub tokens: u64,
    /// Calls admitted since the node started.
    pub admitted: u64,
    /// Calls refused since the node started.
    pub refused: u64,
}

/// Tells one definition of a bucket from all others: an account's or principal's own quota and the general one may
/// have been set at once.
pub(super) fn definition(quota: &Quota) -> u64 {
    let own = matches!(quota.name.scope, Scope::Account(_) | Scope::Principal(_));
    quota.revision << 1 | u64::from(own)
}

fn gate(limit: &Limit, share: Share, milli_tokens: u64, epoch: u64, now: Duration) -> Gate {
    if limit.is_prepaid() {
        Gate::Prepaid(Purse::default())
    } else {
        Gate::Shared { cell: RateCell::new(share, milli_tokens, now), epoch }
    }
}

impl Bucket {
    pub(super) fn new(
        id: BucketId,
        quota: &Quota,
        limit: Limit,
        as_of: u64,
        now: Duration,
    ) -> Self {
        let part = Part {
            told: Told::new(&id, quota, &limit),
            limit,
            definition: definition(quota),
            as_of,
            gate: gate(&limit, Share::NONE, 0, 0, now),
        };
        Self {
            id,
            part: ArcSwap::from_pointee(part),
            admitted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            nothing_until: AtomicU64::new(0),
            wanted_more: AtomicBool::new(false),
            slow: Mutex::new(Slow { number: None, measured: now, ended_then: 0, rate: 0 }),
            told: Notify::new(),
        }
    }

    pub(super) fn part(&self) -> Arc<Part> {
        self.part.load_full()
    }

    // --- Calls.

    /// Takes a token. The lease epoch is looked at after it was taken: a share is void once there was no lease.
    pub(super) fn take(&self, now: Duration, epoch_now: impl Fn() -> u64) -> Result<(), Dry> {
        loop {
            let part = self.part.load();
            match &part.gate {
                Gate::Shared { cell, epoch } => match cell.take(1, now) {
                    Taken::Yes if *epoch == epoch_now() => return Ok(()),
                    Taken::Yes => return Err(Self::cold()),
                    Taken::Dry(_) if *epoch != epoch_now() => return Err(Self::cold()),
                    Taken::Dry(wait) => return Err(self.dry(wait, cell.share().is_none(), now)),
                    // The new one is put in place under this lock.
                    Taken::Closed => drop(self.slow.lock()),
                },
                Gate::Prepaid(purse) if purse.take(1, now) => return Ok(()),
                Gate::Prepaid(_) => return Err(self.dry(Duration::MAX, true, now)),
            }
        }
    }

    /// Another bucket refused the call.
    pub(super) fn put_back(&self) {
        match &self.part.load().gate {
            Gate::Shared { cell, .. } => cell.put_back(1),
            Gate::Prepaid(purse) => purse.put_back(1),
        }
    }

    /// A call goes on to be served.
    pub(super) fn admitted(&self) {
        self.admitted.fetch_add(1, Ordering::Relaxed);
    }

    /// A call is refused for want of tokens here.
    pub(super) fn refuse(&self, dry: Dry) -> KmsError {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let part = self.part.load();
        part.told.refusal(&part.limit, dry.wait)
    }

    /// A call waits here, as long as what is returned lives.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn ended(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed) + self.refused.load(Ordering::Relaxed)
    }

    fn dry(&self, wait: Duration, nothing: bool, now: Duration) -> Dry {
        let until = Duration::from_nanos(self.nothing_until.load(Ordering::Relaxed));
        let until = until.saturating_sub(now);
        if nothing && until.is_zero() {
            return Self::cold();
        }
        Dry { wait: if nothing { until } else { wait }, cold: false, ask: !nothing }
    }

    /// Nothing to spend, and the leader has not been asked.
    fn cold() -> Dry {
        Dry { wait: LOOK_AGAIN, cold: true, ask: true }
    }

    // --- Changes of the part. One at a time, under the lock.

    /// Puts a new part in place of the old one, which takes no more calls. `change` gets the old share, if it still
    /// counts, and its thousandths of tokens.
    fn replace(&self, now: Duration, epoch: u64, change: impl FnOnce(&Part, Share, u64) -> Part) {
        let old = self.part.load_full();
        let (share, left) = match &old.gate {
            Gate::Shared { cell, epoch: given } => {
                let left = cell.close(now);
                if *given == epoch { (cell.share(), left) } else { (Share::NONE, 0) }
            }
            Gate::Prepaid(_) => (Share::NONE, 0),
        };
        self.part.store(Arc::new(change(&old, share, left)));
    }

    /// The quota was changed: a smaller one cuts this node's part at once, in proportion. A larger one waits for
    /// the leader.
    pub(super) fn redefine(&self, quota: &Quota, limit: Limit, as_of: u64, now: Duration) {
        let newer = |part: &Part| as_of > part.as_of && definition(quota) != part.definition;
        if !newer(&self.part.load()) {
            return;
        }
        let _one_at_a_time = self.slow.lock();
        let part = self.part.load_full();
        if !newer(&part) {
            return;
        }
        self.nothing_until.store(0, Ordering::Relaxed);
        let given = match &part.gate {
            Gate::Shared { epoch, .. } => *epoch,
            Gate::Prepaid(_) => 0,
        };
        self.replace(now, given, |old, share, left| {
            let whole = Share { rate: limit.limit, burst: limit.burst };
            let share = share.scaled(old.whole(), whole);
            Part {
                told: Told::new(&self.id, quota, &limit),
                limit,
                definition: definition(quota),
                as_of,
                gate: gate(&limit, share, left.min(share.burst * 1000), given, now),
            }
        });
    }

    /// Whether a word of a leader is newer than all that was heeded.
    fn heed(slow: &mut Slow, number: (LeaderId, u64)) -> bool {
        let newer = slow.number.is_none_or(|heeded| number > heeded);
        if newer {
            slow.number = Some(number);
        }
        newer
    }

    /// The latest word of a leader that was heeded.
    pub(super) fn heeded(&self) -> Option<(LeaderId, u64)> {
        self.slow.lock().number
    }

    /// The leader gives a larger share, and tokens with it.
    pub(super) fn raise(
        &self,
        number: (LeaderId, u64),
        definition: u64,
        to: Share,
        milli_tokens: u64,
        epoch: u64,
        now: Duration,
    ) {
        let mut slow = self.slow.lock();
        let fills = on(Bug::RestartedBucketFull) && slow.number.is_none();
        let milli_tokens = if fills { to.burst * 1000 } else { milli_tokens };
        if !Self::heed(&mut slow, number) {
            return;
        }
        let part = self.part.load_full();
        if part.definition != definition || part.limit.is_prepaid() {
            return;
        }
        if to.is_none() {
            self.nothing_for(ASK_AGAIN, now);
        }
        self.replace(now, epoch, |old, _, left| Part {
            told: Arc::clone(&old.told),
            limit: old.limit,
            definition,
            as_of: old.as_of,
            gate: gate(&old.limit, to, (left + milli_tokens).min(to.burst * 1000), epoch, now),
        });
        drop(slow);
        self.told.notify_waiters();
    }

    /// The leader takes back what is above `to`. Returns what is left, and the thousandths of tokens that no longer
    /// fit.
    pub(super) fn lower(
        &self,
        number: (LeaderId, u64),
        to: Share,
        epoch: u64,
        now: Duration,
    ) -> (Share, u64) {
        let mut slow = self.slow.lock();
        if !Self::heed(&mut slow, number) || self.part.load().limit.is_prepaid() {
            return (self.share(epoch), 0);
        }
        let mut result = (Share::NONE, 0);
        self.replace(now, epoch, |old, share, left| {
            let share = Share { rate: share.rate.min(to.rate), burst: share.burst.min(to.burst) };
            let kept = left.min(share.burst * 1000);
            result = (share, left - kept);
            Part {
                told: Arc::clone(&old.told),
                limit: old.limit,
                definition: old.definition,
                as_of: old.as_of,
                gate: gate(&old.limit, share, kept, epoch, now),
            }
        });
        result
    }

    /// The leader hands out tokens that last for a while.
    pub(super) fn fill(&self, definition: u64, tokens: u64, lasts: Duration, now: Duration) {
        let part = self.part.load_full();
        if part.definition == definition
            && let Gate::Prepaid(purse) = &part.gate
        {
            purse.fill(tokens, now + lasts);
        }
        self.told.notify_waiters();
    }

    /// The leader has nothing for so long.
    pub(super) fn nothing(&self, wait: Duration, now: Duration) {
        self.nothing_for(wait, now);
        self.told.notify_waiters();
    }

    fn nothing_for(&self, wait: Duration, now: Duration) {
        let until = u64::try_from(now.saturating_add(wait).as_nanos()).unwrap_or(u64::MAX);
        self.nothing_until.store(until, Ordering::Relaxed);
    }

    // --- What is told to the leader.

    /// The share, as far as it counts.
    pub(super) fn share(&self, epoch_now: u64) -> Share {
        match &self.part.load().gate {
            Gate::Shared { cell, epoch } if *epoch == epoch_now => cell.share(),
            _ => Share::NONE,
        }
    }

    /// Prepaid tokens that are taken out, to be given back.
    pub(super) fn leftover(&self, now: Duration) -> u64 {
        match &self.part.load().gate {
            Gate::Prepaid(purse) => purse.empty(now),
            Gate::Shared { .. } => 0,
        }
    }

    /// True when no prepaid tokens of a rate are left.
    pub(super) fn has_spent(&self, now: Duration) -> bool {
        let part = self.part.load();
        let Gate::Prepaid(purse) = &part.gate else { return false };
        part.limit.window == Window::Second && purse.tokens(now) == 0
    }

    /// How many calls a second were offered since it was last measured.
    pub(super) fn wanted(&self, now: Duration) -> u64 {
        let mut slow = self.slow.lock();
        let ended = self.ended();
        let offered = ended + self.waiting.load(Ordering::Relaxed);
        let over = now.saturating_sub(slow.measured);
        if over >= MEASURE_OVER || slow.rate == 0 {
            let calls = u128::from(offered.saturating_sub(slow.ended_then)) * 1_000_000_000;
            let rate = calls / over.max(MEASURE_OVER).as_nanos();
            slow.rate = u64::try_from(rate).unwrap_or(u64::MAX);
            (slow.measured, slow.ended_then) = (now, ended);
        }
        slow.rate
    }

    pub(super) fn is_idle(&self) -> bool {
        self.slow.lock().ended_then == self.ended()
    }

    pub(super) fn figures(&self, now: Duration) -> BucketFigures {
        let part = self.part.load();
        let (share, tokens) = match &part.gate {
            Gate::Shared { cell, .. } => (cell.share(), cell.milli_tokens(now) / 1000),
            Gate::Prepaid(purse) => (Share::NONE, purse.tokens(now)),
        };
        BucketFigures {
            bucket: self.id.clone(),
            quota: part.told.name().clone(),
            limit: part.limit,
            share,
            tokens,
            admitted: self.admitted.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}
