//! The leader's side: who holds how much of what.
//!
//! **Invariant:** of each shared bucket, what the nodes hold and what is kept here add up to at most the whole. So a
//! share is counted as its holder's from before the message that gives it leaves, and until the holder has said that
//! it let go of it, has restarted, or can hold no lease any more. After an election nothing is given away before
//! every node that may hold a lease has said what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::NodeId;
use keyward_quota::{BucketId, Given, Ledger, Limit, RateCell, Share, WindowUse};
use keyward_raft::LeaderId;
use keyward_state::{Command, DiskMark, State};
use parking_lot::Mutex;

use super::books::Term;
use super::bucket::definition;
use super::shares::{Gift, QuotaAnswer, QuotaRequest, Want};
use crate::kms::Kms;
use crate::peer::{AppRequest, AppResponse};

/// How long a node may take to do as the leader says.
const TELL_PATIENCE: Duration = Duration::from_millis(150);
/// What a node said it wants counts for so long.
const WANTED_FOR: Duration = Duration::from_millis(150);
/// Before the books of a bucket are kept in the other way, everybody must count by the new definition; awaited for so
/// long each time that somebody asks.
const TURN_PATIENCE: Duration = Duration::from_millis(30);
/// A leader opens its books within this.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between records of what is used up of long windows.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// The leader's books; empty on other nodes.
#[derive(Default)]
pub(super) struct Keeper {
    term: Mutex<Option<Term>>,
    /// Buckets are divided one after the other.
    dividing: tokio::sync::Mutex<()>,
}

impl Keeper {
    /// Runs `read` on the books of that term.
    fn in_term<T>(&self, leader: LeaderId, read: impl FnOnce(&mut Term) -> T) -> Result<T, String> {
        match &mut *self.term.lock() {
            Some(term) if term.leader == leader => Ok(read(term)),
            _ => Err("this node leads no more".to_owned()),
        }
    }
}

impl<E: Env> Kms<E> {
    /// The term that this node leads; its books are opened when it has just won.
    async fn open_books(self: &Arc<Self>) -> Result<LeaderId, String> {
        let (leader, holders) = self
            .node
            .leading()
            .zip(self.node.possible_holders())
            // While its own lease lasts, no other node can have won.
            .filter(|_| self.node.still_serving())
            .ok_or("this node does not lead")?;
        let now = self.node.env().boot_now();
        let me = self.node.id();
        let fresh = {
            let mut term = self.quotas.keeper.term.lock();
            let fresh = term.as_ref().is_none_or(|term| term.leader != leader);
            if fresh {
                *term = Some(Term::new(leader, holders.clone(), now));
            }
            fresh
        };
        if fresh {
            // Its own shares are void (it has been without a lease), and no earlier leader is heeded.
            self.answer_keeper(QuotaRequest::Report { leader }).await;
        }
        let unheard = self.quotas.keeper.in_term(leader, |term| {
            term.forget_the_gone(me, &holders, now);
            let unheard = term.unheard.iter().copied();
            unheard.filter(|node| !term.is_silent(*node, now)).collect()
        })?;
        self.hear(leader, unheard).await?;
        Ok(leader)
    }

    /// Has nodes say what they hold. Those that don't answer are asked again with the next call.
    async fn hear(
        self: &Arc<Self>,
        leader: LeaderId,
        nodes: BTreeSet<NodeId>,
    ) -> Result<(), String> {
        let asked = nodes.iter().map(|node| self.tell(*node, QuotaRequest::Report { leader }));
        let answers = futures_util::future::join_all(asked).await;
        let (state, now) = (self.node.state(), self.node.env().boot_now());
        for (node, answer) in nodes.into_iter().zip(answers) {
            self.quotas.keeper.in_term(leader, |t| t.note_silence(node, answer.is_some(), now))?;
            let Some(QuotaAnswer::Holding { mark, shares }) = answer else { continue };
            self.quotas.keeper.in_term(leader, |term| {
                if !term.unheard.remove(&node) {
                    return;
                }
                term.asked.entry(node).or_insert((mark, 0));
                for (id, share) in shares {
                    // One that no quota defines any more will have nothing to give.
                    let Some((definition, limit)) = defined(&state, &id) else { continue };
                    term.pie(&id, definition, &limit, now).hold(node, share, now);
                }
                term.look_whether_complete(now);
            })?;
        }
        Ok(())
    }

    /// Says something about quotas to a node, which may be this one.
    async fn tell(&self, node: NodeId, request: QuotaRequest) -> Option<QuotaAnswer> {
        if node == self.node.id() {
            return Some(self.answer_keeper(request).await);
        }
        let address = self.node.members().into_iter().find(|m| m.node == node)?.address;
        let request = AppRequest::Quota(request);
        match self.ask_peer(node, &address, &request, TELL_PATIENCE).await {
            Ok(AppResponse::Quota(answer)) => Some(answer),
            _ => None,
        }
    }

    /// A node has run dry. It gets what can be spared, of what nobody holds and of what others hold and don't need.
    pub(super) async fn answer_ask(
        self: &Arc<Self>,
        from: NodeId,
        mark: DiskMark,
        number: u64,
        wants: Vec<Want>,
    ) -> QuotaAnswer {
        let one_at_a_time = self.quotas.keeper.dividing.lock().await;
        let told = self.give(from, mark, number, wants).await;
        drop(one_at_a_time);
        told.unwrap_or_else(QuotaAnswer::Refused)
    }

    async fn give(
        self: &Arc<Self>,
        from: NodeId,
        mark: DiskMark,
        number: u64,
        wants: Vec<Want>,
    ) -> Result<QuotaAnswer, String> {
        let leader = self.open_books().await?;
        let keeper = &self.quotas.keeper;
        let now = self.node.env().boot_now();
        keeper.in_term(leader, |term| {
            if term.unheard.contains(&from) {
                return Err("say first what you hold".to_owned());
            }
            let latest = term.asked.entry(from).or_insert((mark, 0));
            // An earlier start of that node, or an ask that came late or twice.
            let old = latest.0 != mark && mark.counter < latest.0.counter;
            if old || (latest.0 == mark && number <= latest.1) {
                return Err("a later ask was answered".to_owned());
            }
            if latest.0 != mark {
                for pie in term.pies.values_mut() {
                    if pie.forget(from) {
                        pie.settle(0, now);
                    }
                }
            }
            term.asked.insert(from, (mark, number));
            Ok(())
        })??;
        let state = self.node.state();
        let (mut shared, mut gifts) = (Vec::new(), Vec::new());
        for want in wants {
            match defined(&state, &want.bucket) {
                Some((definition, limit)) if definition == want.definition => {
                    if keeper.in_term(leader, |term| term.must_turn(&want.bucket, &limit))? {
                        if self.node.fence_all(TURN_PATIENCE).await.is_err() {
                            continue;
                        }
                        let now = self.node.env().boot_now();
                        keeper.in_term(leader, |term| {
                            term.turn(&want.bucket, definition, &limit, now);
                        })?;
                    }
                    if limit.is_prepaid() {
                        gifts.extend(self.prepay(leader, from, &state, &want, &limit)?);
                    } else if want.wanted > 0 {
                        shared.push((want, limit));
                    }
                }
                // The node's state is older or newer than the leader's: it asks again.
                _ => {}
            }
        }
        if !shared.is_empty() {
            self.call_in(leader, from, &shared).await?;
            gifts.extend(self.share(leader, from, shared)?);
        }
        let number = keeper.in_term(leader, |term| {
            term.number += 1;
            term.told.insert(from, term.number);
            term.number
        })?;
        Ok(QuotaAnswer::Told { leader, number, gifts })
    }

    /// Hands out prepaid tokens.
    fn prepay(
        &self,
        leader: LeaderId,
        from: NodeId,
        state: &State,
        want: &Want,
        limit: &Limit,
    ) -> Result<Option<(BucketId, u64, Gift)>, String> {
        let region_ms = self.node.wall_now().0;
        let now = self.node.env().boot_now();
        let nodes = self.node.members().len() as u64;
        self.quotas.keeper.in_term(leader, |term| {
            let remembered = state.quota_use(&want.bucket);
            // A quota that was changed begins empty, as after an election: tokens may be out.
            let since = term.since;
            let (known, kept, ledger) =
                term.ledgers.entry(want.bucket.clone()).or_insert_with(|| {
                    (want.definition, *limit, Ledger::new(limit, remembered, since))
                });
            if *known != want.definition {
                let used = ledger.window_use().or(remembered);
                (*known, *kept, *ledger) = (want.definition, *limit, Ledger::new(limit, used, now));
            }
            ledger.take_back(limit, want.returned, region_ms);
            if want.tokens == 0 {
                ledger.spent(limit, from, now);
                return None;
            }
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let gift = match ledger.give(limit, from, want.tokens, nodes, now, region_ms) {
                Given::Tokens(tokens, lasts) => Gift::Tokens(tokens, millis(lasts)),
                Given::Dry(wait) => Gift::Nothing(millis(wait).max(1)),
            };
            Some((want.bucket.clone(), want.definition, gift))
        })
    }

    /// Where what nobody holds is not enough: asks the others how much they want, and has those that hold more
    /// than their part let go of it.
    async fn call_in(
        self: &Arc<Self>,
        leader: LeaderId,
        from: NodeId,
        wants: &[(Want, Limit)],
    ) -> Result<(), String> {
        let keeper = &self.quotas.keeper;
        let now = self.node.env().boot_now();
        let mut asked: BTreeMap<NodeId, Vec<BucketId>> = BTreeMap::new();
        keeper.in_term(leader, |term| {
            for (want, limit) in wants {
                let pie = term.pie(&want.bucket, want.definition, limit, now);
                pie.heard(from, want, leader, now);
                pie.wanted.insert(from, (want.wanted, now));
                let unknown = |node: &&NodeId| {
                    let said = pie.wanted.get(*node);
                    **node != from && said.is_none_or(|(_, at)| now >= *at + WANTED_FOR)
                };
                for node in pie.held.keys().filter(unknown) {
                    asked.entry(*node).or_default().push(want.bucket.clone());
                }
            }
            asked.retain(|node, _| !term.is_silent(*node, now));
        })?;
        let peeks = asked.iter().map(|(node, buckets)| {
            self.tell(*node, QuotaRequest::Peek { buckets: buckets.clone() })
        });
        let answers = futures_util::future::join_all(peeks).await;
        let now = self.node.env().boot_now();
        // Who is to hold at most what.
        let mut lower: BTreeMap<NodeId, Vec<(BucketId, Share)>> = BTreeMap::new();
        let (number, told) = keeper.in_term(leader, |term| {
            for ((node, buckets), answer) in asked.iter().zip(answers) {
                term.note_silence(*node, answer.is_some(), now);
                let Some(QuotaAnswer::Wanted(wanted)) = answer else { continue };
                for (id, wanted) in buckets.iter().zip(wanted) {
                    if let Some(pie) = term.pies.get_mut(id) {
                        pie.wanted.insert(*node, (wanted, now));
                    }
                }
            }
            for (want, _) in wants {
                let Some(pie) = term.pies.get(&want.bucket) else { continue };
                for (node, part) in pie.parts() {
                    let held = pie.held.get(&node).copied().unwrap_or_default();
                    let over = held.rate > part.rate || held.burst > part.burst;
                    if node != from && over && !term.is_silent(node, now) {
                        lower.entry(node).or_default().push((want.bucket.clone(), part));
                    }
                }
            }
            for (node, (id, part)) in
                lower.iter().flat_map(|(n, parts)| parts.iter().map(move |p| (n, p)))
            {
                if on(Bug::SharesRaisedFirst)
                    && let Some(pie) = term.pies.get_mut(id)
                {
                    pie.hold(*node, *part, now);
                }
            }
            term.number += 1;
            (term.number, term.told.clone())
        })?;
        if on(Bug::SharesRaisedFirst) {
            let this = Arc::clone(self);
            self.node.env().spawn(async move {
                for (node, parts) in lower {
                    let after = told.get(&node).copied().unwrap_or(0);
                    let lower = QuotaRequest::Lower { leader, number, after, parts };
                    drop(this.tell(node, lower).await);
                }
            });
            return Ok(());
        }
        let orders = lower.iter().map(|(node, parts)| {
            let after = told.get(node).copied().unwrap_or(0);
            self.tell(*node, QuotaRequest::Lower { leader, number, after, parts: parts.clone() })
        });
        let answers = futures_util::future::join_all(orders).await;
        let now = self.node.env().boot_now();
        keeper.in_term(leader, |term| {
            for ((node, parts), answer) in lower.iter().zip(answers) {
                term.note_silence(*node, answer.is_some(), now);
                let Some(QuotaAnswer::Lowered(left)) = answer else { continue };
                for ((id, _), (share, milli_tokens)) in parts.iter().zip(left) {
                    if let Some(pie) = term.pies.get_mut(id) {
                        pie.held.insert(*node, share);
                        pie.lowered.insert(*node, number);
                        pie.settle(milli_tokens, now);
                    }
                }
            }
        })
    }

    /// Gives the node that asks its part, as far as nobody else holds it.
    fn share(
        &self,
        leader: LeaderId,
        from: NodeId,
        wants: Vec<(Want, Limit)>,
    ) -> Result<Vec<(BucketId, u64, Gift)>, String> {
        let now = self.node.env().boot_now();
        self.quotas.keeper.in_term(leader, |term| {
            let complete = term.complete.is_some();
            let mut gifts = Vec::new();
            for (want, _) in wants {
                let Some(pie) = term.pies.get_mut(&want.bucket) else { continue };
                let part = pie.parts().remove(&from).unwrap_or_default();
                let holds = pie.held.get(&from).copied().unwrap_or_default();
                // Before everybody was heard, what nobody is known to hold may be somebody's.
                let free = if complete { pie.free() } else { Share::NONE };
                let share = Share {
                    rate: holds.rate.max(part.rate.min(holds.rate + free.rate)),
                    burst: holds.burst.max(part.burst.min(holds.burst + free.burst)),
                };
                let tokens = pie.rest.close(now);
                pie.held.insert(from, share);
                let given = tokens.min(share.burst.saturating_sub(holds.burst) * 1000);
                pie.rest = RateCell::new(Share::NONE, 0, now);
                pie.settle(tokens - given, now);
                gifts.push((want.bucket, want.definition, Gift::Share(share, given)));
            }
            gifts
        })
    }

    /// While this node leads: keeps the books open, and puts on record what is used up of long windows.
    pub(crate) async fn keep_quotas(self: Arc<Self>) {
        let env = self.node.env().clone();
        let mut recorded: BTreeMap<BucketId, WindowUse> = BTreeMap::new();
        let mut looked = env.boot_now();
        while !self.node.is_stopped() {
            env.sleep(LOOK_EVERY).await;
            if self.node.leading().is_none() {
                continue;
            }
            // Opened at once, and not with the first ask: what nobody holds fills up from here on.
            let one_at_a_time = self.quotas.keeper.dividing.lock().await;
            let opened = self.open_books().await;
            drop(one_at_a_time);
            let Ok(leader) = opened else { continue };
            if env.boot_now() < looked + RECORD_EVERY {
                continue;
            }
            looked = env.boot_now();
            let uses = |term: &mut Term| -> Vec<(BucketId, WindowUse)> {
                let used = term.ledgers.iter();
                let used = used.filter_map(|(id, (_, _, ledger))| Some((id, ledger.window_use()?)));
                used.filter(|(id, used)| recorded.get(*id) != Some(used))
                    .map(|(id, used)| (id.clone(), used))
                    .collect()
            };
            let Ok(used) = self.quotas.keeper.in_term(leader, uses) else { continue };
            if used.is_empty() {
                continue;
            }
            let deadline = env.boot_now() + RECORD_EVERY * 2;
            match self.change(deadline, Command::NoteQuotaUse { used: used.clone() }).await {
                Ok(_) => recorded.extend(used),
                Err(error) => tracing::debug!(%error, "use of quotas is recorded in a moment"),
            }
        }
    }
}

/// How the state defines a bucket.
fn defined(state: &State, id: &BucketId) -> Option<(u64, Limit)> {
    let quota = state.quota_of(id)?;
    let limit = quota.limits.iter().find(|limit| limit.window == id.window)?;
    Some((definition(quota), *limit))
}
