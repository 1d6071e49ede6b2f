//! The node's side: it asks the leader when it runs dry, and does as the leader says.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyward_env::Env;
use keyward_model::NodeId;
use keyward_quota::{BucketId, Purse, Share};
use keyward_raft::LeaderId;
use keyward_state::{DiskMark, codec};
use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, BucketFigures};
use crate::kms::Kms;
use crate::peer::{AppRequest, AppResponse};

/// The leader is asked again after this at the earliest; after twice as long each time that shares stay as they are,
/// up to the second.
const ASK_EVERY: Duration = Duration::from_millis(20);
const ASK_EVERY_MAX: Duration = Duration::from_millis(160);
/// How long the leader may take: it may have to hear from all others first.
const ASK_PATIENCE: Duration = Duration::from_millis(500);
/// An answer of the leader that is on its way is waited for this long.
const TAKE_UP_PATIENCE: Duration = Duration::from_millis(50);
/// Between looks for tokens that nobody spends.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// Prepaid tokens are asked for so long ahead.
const PREPAY_MS: u64 = 250;

/// What nodes say to each other about quotas.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum QuotaRequest {
    /// To the leader: these are dry, or tokens of theirs are left over.
    /// Numbered, so that one that comes late or twice is not taken for the latest word.
    Ask { mark: DiskMark, number: u64, wants: Vec<Want> },
    /// From a leader that has won: what do you hold? Earlier leaders are not heeded any more.
    Report { leader: LeaderId },
    /// From the leader: how much is wanted of these?
    Peek { buckets: Vec<BucketId> },
    /// From the leader: hold no more of each than this. `after` is the number of its latest answer to an ask of the
    /// node, which may still be on its way.
    Lower { leader: LeaderId, number: u64, after: u64, parts: Vec<(BucketId, Share)> },
    /// What do you count?
    Figures,
}

/// Answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum QuotaAnswer {
    Told {
        leader: LeaderId,
        number: u64,
        gifts: Vec<(BucketId, u64, Gift)>,
    },
    Holding {
        mark: DiskMark,
        shares: Vec<(BucketId, Share)>,
    },
    /// Calls a second, in the order of the question.
    Wanted(Vec<u64>),
    /// What is left, and the thousandths of tokens that came free, in the order of the question.
    Lowered(Vec<(Share, u64)>),
    Figures(Vec<BucketFigures>),
    /// Not now, and why.
    Refused(String),
}

/// What a node wants of one bucket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Want {
    pub(super) bucket: BucketId,
    pub(super) definition: u64,
    /// What it holds, and the latest word of a leader that it has heeded by then.
    pub(super) holds: Share,
    pub(super) heeded: Option<(LeaderId, u64)>,
    /// Calls a second that come to it.
    pub(super) wanted: u64,
    /// Prepaid tokens wanted at once.
    pub(super) tokens: u64,
    /// Prepaid tokens that it gives back.
    pub(super) returned: u64,
}

/// What the leader gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Gift {
    /// From now on this share; and thousandths of tokens now.
    Share(Share, u64),
    /// Prepaid tokens, that last so many milliseconds.
    Tokens(u64, u64),
    /// Nothing, for so many milliseconds.
    Nothing(u64),
}

impl<E: Env> Kms<E> {
    /// Asks the leader whenever a bucket ran dry.
    pub(crate) async fn ask_for_shares(self: Arc<Self>) {
        let env = self.node.env().clone();
        let mut pause = ASK_EVERY;
        let mut tidied = env.boot_now();
        while !self.node.is_stopped() {
            env.timeout(TIDY_EVERY, self.quotas.ran_dry.notified()).await;
            let mut wants = self.wants();
            let now = env.boot_now();
            if now >= tidied + TIDY_EVERY {
                tidied = now;
                wants.extend(self.leftovers());
            }
            wants.extend(self.spent(&wants));
            if wants.is_empty() {
                continue;
            }
            self.quotas.asking.store(true, Ordering::SeqCst);
            let answer = self.ask_keeper(wants).await;
            self.quotas.asking.store(false, Ordering::SeqCst);
            self.quotas.answered.notify_waiters();
            let in_vain = match answer {
                Ok(in_vain) => in_vain,
                Err(why) => {
                    tracing::debug!(%why, "no shares of quotas");
                    false
                }
            };
            pause = if in_vain { (pause * 2).min(ASK_EVERY_MAX) } else { ASK_EVERY };
            env.sleep(pause).await;
            // Calls that waited for tokens have them by now.
            let now = env.boot_now();
            if self.quotas.filled.lock().values().any(|bucket| bucket.has_spent(now)) {
                self.quotas.ran_dry.notify_one();
            }
        }
    }

    /// Prepaid tokens that have been spent, but for those that are asked for anyway: where the burst is small, nobody
    /// else is given any before the leader knows.
    fn spent(&self, wants: &[Want]) -> Vec<Want> {
        let now = self.node.env().boot_now();
        let mut filled = self.quotas.filled.lock();
        wants.iter().for_each(|want| drop(filled.remove(&want.bucket)));
        let spent: Vec<_> =
            filled.values().filter(|bucket| bucket.has_spent(now)).cloned().collect();
        spent.iter().for_each(|bucket| drop(filled.remove(&bucket.id)));
        drop(filled);
        // What a call that another bucket refused put back meanwhile goes too.
        spent.iter().map(|bucket| self.want_of(bucket, 0, 0, bucket.leftover(now))).collect()
    }

    /// What ran dry since the last time.
    fn wants(&self) -> Vec<Want> {
        let dry = std::mem::take(&mut *self.quotas.dry.lock());
        let now = self.node.env().boot_now();
        dry.into_values()
            .filter(|bucket| {
                bucket.wanted_more.store(false, Ordering::Release);
                // Prepaid tokens that nobody waits for any more would lie here while others want them.
                !bucket.part().limit.is_prepaid() || bucket.is_waited_for()
            })
            .map(|bucket| {
                let wanted = bucket.wanted(now).max(1);
                let tokens = (wanted * PREPAY_MS / 1000).clamp(1, Purse::MOST);
                self.want_of(&bucket, wanted, tokens, bucket.leftover(now))
            })
            .collect()
    }

    fn want_of(&self, bucket: &Bucket, wanted: u64, tokens: u64, returned: u64) -> Want {
        // Read before what it holds: a word that comes in between must not seem to be in it.
        let heeded = bucket.heeded();
        Want {
            bucket: bucket.id.clone(),
            definition: bucket.part().definition,
            heeded,
            holds: bucket.share(self.node.lease_epoch()),
            wanted,
            tokens,
            returned,
        }
    }

    /// Prepaid tokens that nobody has spent for a while go back. Buckets that no quota defines any more go too.
    fn leftovers(&self) -> Vec<Want> {
        let state = self.node.state();
        let defined = |id: &BucketId| {
            state
                .quota_of(id)
                .is_some_and(|quota| quota.limits.iter().any(|limit| limit.window == id.window))
        };
        self.quotas.buckets.lock().retain(|id, _| defined(id));
        let now = self.node.env().boot_now();
        let mut wants = Vec::new();
        for bucket in self.quotas.known() {
            if bucket.part().limit.is_prepaid() && bucket.is_idle() {
                let returned = bucket.leftover(now);
                if returned > 0 {
                    wants.push(self.want_of(&bucket, 0, 0, returned));
                }
            }
            bucket.wanted(now);
        }
        wants
    }

    /// Asks the leader, which may be this node. True if all that came of it is that shares stay as they are.
    async fn ask_keeper(self: &Arc<Self>, wants: Vec<Want>) -> Result<bool, String> {
        let epoch = self.node.lease_epoch();
        let mark = self.node.disk_mark();
        let number = self.quotas.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = if self.node.leading().is_some() {
            self.answer_ask(self.node.id(), mark, number, wants).await
        } else {
            let request = AppRequest::Quota(QuotaRequest::Ask { mark, number, wants });
            let bytes = self.node.ask_leader_app(codec::encode(&request), ASK_PATIENCE).await?;
            match codec::decode(&bytes).map_err(|e| e.to_string())? {
                AppResponse::Quota(answer) => answer,
                _ => return Err("an answer of another kind".to_owned()),
            }
        };
        let QuotaAnswer::Told { leader, number, gifts } = answer else {
            return Err(format!("the leader gave nothing: {answer:?}"));
        };
        let (state, now) = (self.node.state(), self.node.env().boot_now());
        // Held until all is taken up: a later leader is told everything, or this is not taken.
        let heeded = self.quotas.heeds.lock();
        if heeded.is_some_and(|heeded| leader < heeded) {
            return Err("a later leader is heeded".to_owned());
        }
        let (mut same, mut other) = (false, false);
        for (id, definition, gift) in gifts {
            let Some(bucket) = self.quotas.bucket(&state, id, now) else { continue };
            match gift {
                Gift::Share(share, milli_tokens) => {
                    let changed = share != bucket.share(epoch);
                    (same, other) = (same || !changed, other || changed);
                    bucket.raise((leader, number), definition, share, milli_tokens, epoch, now);
                }
                Gift::Tokens(tokens, lasts) => {
                    other = true;
                    bucket.fill(definition, tokens, Duration::from_millis(lasts), now);
                    self.quotas.filled.lock().insert(bucket.id.clone(), bucket);
                }
                // When it will have some is known: nobody asks before.
                Gift::Nothing(wait) => {
                    other = true;
                    bucket.nothing(Duration::from_millis(wait), now);
                }
            }
        }
        self.quotas.heard.store(number, Ordering::SeqCst);
        Ok(same && !other)
    }

    /// Answers another node about quotas.
    pub(crate) async fn answer_quota(
        self: &Arc<Self>,
        from: NodeId,
        request: QuotaRequest,
    ) -> QuotaAnswer {
        match request {
            QuotaRequest::Ask { mark, number, wants } => {
                self.answer_ask(from, mark, number, wants).await
            }
            other => self.answer_keeper(other).await,
        }
    }

    /// What the leader gave before is taken up before anything is let go of: it would be lost otherwise, with the
    /// tokens that came with it.
    async fn take_up(&self, after: u64) {
        let (quotas, env) = (&self.quotas, self.node.env());
        let end = env.boot_now() + TAKE_UP_PATIENCE;
        loop {
            let answered = quotas.answered.notified();
            let is_due =
                quotas.asking.load(Ordering::SeqCst) && quotas.heard.load(Ordering::SeqCst) < after;
            let left = end.saturating_sub(env.boot_now());
            if !is_due || left.is_zero() {
                return;
            }
            env.timeout(left, answered).await;
        }
    }

    /// Does as the leader says.
    pub(super) async fn answer_keeper(&self, request: QuotaRequest) -> QuotaAnswer {
        let quotas = &self.quotas;
        let (epoch, now) = (self.node.lease_epoch(), self.node.env().boot_now());
        let stale = || QuotaAnswer::Refused("a later leader is heeded".to_owned());
        match request {
            QuotaRequest::Ask { .. } => QuotaAnswer::Refused("that is for the leader".to_owned()),
            QuotaRequest::Report { leader } => {
                // From here on nothing that an earlier leader gives is taken, so the answer is all there is.
                let mut heeded = quotas.heeds.lock();
                if heeded.is_some_and(|heeded| leader < heeded) {
                    return stale();
                }
                *heeded = Some(leader);
                quotas.heard.store(0, Ordering::SeqCst);
                let held = quotas.known().into_iter().filter_map(|bucket| {
                    let share = bucket.share(epoch);
                    (share != Share::NONE).then(|| (bucket.id.clone(), share))
                });
                QuotaAnswer::Holding { mark: self.node.disk_mark(), shares: held.collect() }
            }
            QuotaRequest::Peek { buckets } => {
                let wanted = |id| quotas.known_bucket(id).map_or(0, |bucket| bucket.wanted(now));
                QuotaAnswer::Wanted(buckets.iter().map(wanted).collect())
            }
            QuotaRequest::Lower { leader, number, after, parts } => {
                self.take_up(after).await;
                let (epoch, now) = (self.node.lease_epoch(), self.node.env().boot_now());
                if quotas.heeds.lock().is_some_and(|heeded| leader < heeded) {
                    return stale();
                }
                let lower = |(id, to): &(BucketId, Share)| match quotas.known_bucket(id) {
                    Some(bucket) => bucket.lower((leader, number), *to, epoch, now),
                    None => (Share::NONE, 0),
                };
                QuotaAnswer::Lowered(parts.iter().map(lower).collect())
            }
            QuotaRequest::Figures => QuotaAnswer::Figures(quotas.figures(now)),
        }
    }
}
