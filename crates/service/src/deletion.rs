//! The end of a key: executed when its waiting period is over, and followed until no disk holds it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_audit::Value;
use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::{KeyId, KmsError, Timestamp, key_arn};
use keyward_raft::Member;
use keyward_state::{Command, State};

use crate::api::{DeletionStatus, GetKeyDeletionStatus, NodeDeletion, Response};
use crate::kms::{Kms, Serving};
use crate::resolve::Forms;

/// Deletions executed in one round at most: a round stays short.
const DELETIONS_A_ROUND: usize = 64;
/// How long a node may take to say how far it is.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);
/// Uses of keys that wait for their deletion are logged at most once in this time; all are counted.
const ALARM_EVERY: Duration = Duration::from_secs(1);

/// Makes it known that somebody still uses a key that waits for its deletion.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    next_ns: AtomicU64,
    unsaid: AtomicU64,
}

impl Alarm {
    pub(crate) fn used(&self, key: &str, by: &str, now: Duration) {
        metrics::counter!("keyward_pending_deletion_uses_total").increment(1);
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let next = self.next_ns.load(Ordering::Relaxed);
        let after = now_ns.saturating_add(u64::try_from(ALARM_EVERY.as_nanos()).unwrap_or(0));
        let mine = now_ns >= next
            && self
                .next_ns
                .compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if !mine {
            self.unsaid.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let unsaid = self.unsaid.swap(0, Ordering::Relaxed);
        tracing::warn!(
            key,
            by,
            unsaid,
            "somebody still uses a key that waits for its deletion: cancel it (`keyward key \
             cancel-deletion`) if the key is needed"
        );
    }
}

impl<E: Env> Kms<E> {
    /// Has keys go whose waiting period is over, by Region time and by a majority's own clocks.
    pub(crate) async fn execute_deletions(&self, state: &State) {
        let by_one_clock = on(Bug::DeletionByOneClock);
        let own_clock = Timestamp(self.node.env().wall_now_ms() + state.clock_offset_ms);
        let now = if by_one_clock { own_clock } else { self.node.region_now() };
        for (key, date) in state.deletions_due(now, DELETIONS_A_ROUND) {
            if !by_one_clock && !self.node.majority_past(date) {
                tracing::debug!(%key, "a deletion waits for a majority of clocks to pass its date");
                return;
            }
            match self.change(self.step_end(), Command::DeleteKey { key, date }).await {
                Ok(_) => {
                    tracing::info!(%key, "a key was deleted for good");
                    self.note_event(
                        "DeleteKey",
                        state,
                        key,
                        &[("deletionDate", Value::Date(date))],
                    );
                }
                Err(error) => tracing::warn!(%key, %error, "a deletion is tried again"),
            }
        }
    }

    /// Puts on record what Keyward did to a key by itself.
    pub(crate) fn note_event(
        &self,
        name: &str,
        state: &State,
        key: KeyId,
        details: &[keyward_audit::Pair<'_>],
    ) {
        let (Some(facts), Some(key)) = (&state.region, state.key(&key)) else { return };
        let arn = key_arn(&facts.region, key.account, key.id);
        self.audit.event(name, self.node.wall_now(), &arn, details);
    }

    /// Opened material of keys that are gone leaves this node's memory.
    pub(crate) fn evict_deleted(&self, state: &State) {
        let done = self.evicted.load(Ordering::Relaxed);
        for tombstone in state.deleted_after(done) {
            for material in &tombstone.materials {
                self.hsm.evict(material);
            }
            self.evicted.store(tombstone.number, Ordering::Relaxed);
        }
    }

    pub(crate) async fn get_key_deletion_status(
        &self,
        s: &Serving<'_>,
        request: &GetKeyDeletionStatus,
    ) -> Result<Response, KmsError> {
        let gone = key_id_of(&request.key_id)
            .and_then(|id| s.state.tombstone(&id))
            .filter(|tombstone| tombstone.account == s.principal.arn.account());
        let (key_arn, state, deletion_date, number) = match gone {
            Some(tombstone) => {
                self.permit(s)?;
                let arn = key_arn(s.region, tombstone.account, tombstone.key);
                (arn, None, Some(tombstone.due), Some(tombstone.number))
            }
            None => {
                let permitted = self.permitted_key(s, &request.key_id, "keyId", Forms::Key)?;
                (permitted.arn, Some(permitted.key.state), permitted.key.deletion_date, None)
            }
        };
        let members = self.node.members();
        let asked = members.iter().map(|member| self.node.status_of(member, STATUS_PATIENCE));
        let answers = futures_util::future::join_all(asked).await;
        let told = |(member, status): (&Member, Option<keyward_raft::NodeStatus>)| NodeDeletion {
            node: member.node,
            address: member.address.clone(),
            reachable: status.is_some(),
            gone: number.is_some_and(|number| status.is_some_and(|status| status.purged >= number)),
        };
        Ok(Response::DeletionStatus(Box::new(DeletionStatus {
            key_arn,
            state,
            deletion_date,
            deleted: gone.map(|tombstone| tombstone.deleted),
            nodes: members.iter().zip(answers).map(told).collect(),
        })))
    }
}

/// The id in a key id or key ARN.
fn key_id_of(text: &str) -> Option<KeyId> {
    text.rsplit_once(":key/").map_or(text, |(_, id)| id).parse().ok()
}
