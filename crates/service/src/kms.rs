//! The key service. The way of every call can be read in [`Kms::serve`], from top to bottom:
//! admit (lease and fence) > authenticate > throttle > shape > resolve key > authorize > execute (memory, or one
//! Raft command) > look at the lease again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use keyward_env::sabotage::{Bug, on};
use keyward_env::{Entropy, Env};
use keyward_hsm::{BackingKey, Hsm};
use keyward_model::{
    DomainKeyId, ErrorCode, KeyState, KmsError, Operation, Plane, Region, Timestamp, check_state,
};
use keyward_raft::{Node, NotServing, ProposeError};
use keyward_state::{Command, Envelope, Key, Material, Principal, Reply, State};

use crate::api::{Call, Request, Response};
use crate::audit::Audit;
use crate::authorize::{Authorize, ByKind, Question, authenticate, note_refusal};
use crate::deletion::Alarm;
use crate::quota::Quotas;
use crate::regions::RegionLinks;
use crate::resolve::{Forms, View};
use crate::roots::RootKeeper;

/// How long a data-plane call waits at most for a lease or a fence where waiting helps.
const ADMIT_PATIENCE: Duration = Duration::from_secs(3);

/// The key service of one node.
pub struct Kms<E: Env> {
    pub(crate) node: Arc<Node<E>>,
    pub(crate) hsm: Arc<Hsm>,
    pub(crate) entropy: Arc<dyn Entropy>,
    authorizer: Arc<dyn Authorize>,
    /// The node runs for good, and not just to join.
    pub(crate) for_good: bool,
    /// Where everything is on record.
    pub(crate) audit: Audit,
    /// Opens, makes and remembers the roots of this node.
    pub(crate) roots: Arc<dyn RootKeeper>,
    /// Counts calls.
    pub(crate) quotas: Quotas,
    /// Speaks up when keys that wait for their deletion are used.
    pub(crate) alarm: Alarm,
    /// For how many rounds two sets of voters have been in force.
    pub(crate) rounds_of_change: AtomicU32,
    /// Up to which deletion open material has left memory.
    pub(crate) evicted: AtomicU64,
    /// Links with other Regions.
    pub(crate) regions: RegionLinks,
    /// A snapshot is being taken on this node.
    pub(crate) taking_snapshot: Arc<AtomicBool>,
}

/// What a call is served with: one immutable snapshot, and who asks.
pub(crate) struct Serving<'a> {
    pub(crate) state: &'a State,
    pub(crate) region: &'a Region,
    pub(crate) principal: &'a Principal,
    pub(crate) operation: Operation,
    pub(crate) deadline: Duration,
}

impl<'a> Serving<'a> {
    pub(crate) fn view(&self) -> View<'a> {
        View { state: self.state, region: self.region, account: self.principal.arn.account() }
    }
}

/// A key that the caller may use or manage, and its ARN.
pub(crate) struct Permitted {
    pub(crate) key: Arc<Key>,
    pub(crate) arn: String,
}

impl<E: Env> Kms<E> {
    /// The service on a node and its HSM. A node that runs only to join (`for_good` is false) does not ask for
    /// its vote.
    #[must_use]
    pub fn new(
        node: Arc<Node<E>>,
        hsm: Arc<Hsm>,
        roots: Arc<dyn RootKeeper>,
        audit: Audit,
        for_good: bool,
    ) -> Arc<Self> {
        let entropy = node.env().entropy();
        Arc::new(Self {
            node,
            hsm,
            entropy,
            authorizer: Arc::new(ByKind),
            for_good,
            audit,
            roots,
            quotas: Quotas::default(),
            alarm: Alarm::default(),
            rounds_of_change: AtomicU32::new(0),
            evicted: AtomicU64::new(0),
            regions: RegionLinks::default(),
            taking_snapshot: Arc::default(),
        })
    }

    /// The node below.
    #[must_use]
    pub fn node(&self) -> &Arc<Node<E>> {
        &self.node
    }

    /// The audit trail.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// The quotas.
    #[must_use]
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// The HSM.
    #[must_use]
    pub fn hsm(&self) -> &Arc<Hsm> {
        &self.hsm
    }

    /// Serves one call. The deadline is held by the layer above (`stack.rs`).
    ///
    /// A call that was held up must not answer on a lease that is over, with a result or a refusal: it is
    /// decided anew, on what the node knows once it serves again. (A change was fenced: it needs no lease.)
    pub async fn serve(self: &Arc<Self>, call: Call) -> Result<Response, KmsError> {
        let mut now = self.node.env().boot_now();
        let deadline = now + call.patience;
        loop {
            let state = match self.node.admit_at(now) {
                Ok(state) => state,
                Err(_) => {
                    let state = self.admit(deadline).await?;
                    now = self.node.env().boot_now();
                    state
                }
            };
            let epoch = self.node.lease_epoch();
            let answer = self.decide(&call, &state, now, deadline).await;
            if call.request.operation().plane() == Plane::Manage || self.still_serving(epoch) {
                return answer;
            }
            now = self.node.env().boot_now();
        }
    }

    /// The lease lasts, and has all the time: what the call was counted against was this node's to spend.
    fn still_serving(&self, epoch: u64) -> bool {
        on(Bug::NoSecondLook) || (self.node.still_serving() && self.node.lease_epoch() == epoch)
    }

    async fn decide(
        self: &Arc<Self>,
        call: &Call,
        state: &State,
        now: Duration,
        deadline: Duration,
    ) -> Result<Response, KmsError> {
        let date = self.node.wall_at(now);
        let principal = authenticate(state, &call.caller, date).inspect_err(note_refusal)?;
        let operation = call.request.operation();
        self.throttle(state, &call.caller, operation, now, deadline).await?;
        let serving = Serving {
            region: &state.region.as_ref().ok_or_else(not_founded)?.region,
            state,
            principal,
            operation,
            deadline,
        };
        self.execute(&serving, &call.request).await
    }

    pub(crate) async fn admit(&self, deadline: Duration) -> Result<Arc<State>, KmsError> {
        let left = deadline.saturating_sub(self.node.env().boot_now());
        self.node.admit(left.min(ADMIT_PATIENCE)).await.map_err(no_lease)
    }

    async fn execute(
        self: &Arc<Self>,
        s: &Serving<'_>,
        request: &Request,
    ) -> Result<Response, KmsError> {
        match request {
            Request::CreateKey(r) => self.create_key(s, r).await,
            Request::DescribeKey(r) => self.describe_key(s, r),
            Request::ListKeys(r) => self.list_keys(s, r),
            Request::UpdateKeyDescription(r) => self.update_key_description(s, r).await,
            Request::EnableKey(r) => self.set_enabled(s, &r.key_id, true).await,
            Request::DisableKey(r) => self.set_enabled(s, &r.key_id, false).await,
            Request::ScheduleKeyDeletion(r) => self.schedule_key_deletion(s, r).await,
            Request::CancelKeyDeletion(r) => self.cancel_key_deletion(s, r).await,
            Request::GetKeyDeletionStatus(r) => self.get_key_deletion_status(s, r).await,
            Request::CreateAlias(r) => self.create_alias(s, r).await,
            Request::UpdateAlias(r) => self.update_alias(s, r).await,
            Request::DeleteAlias(r) => self.delete_alias(s, r).await,
            Request::ListAliases(r) => self.list_aliases(s, r),
            Request::TagResource(r) => self.tag_resource(s, r).await,
            Request::UntagResource(r) => self.untag_resource(s, r).await,
            Request::ListResourceTags(r) => self.list_resource_tags(s, r),
            Request::EnableKeyRotation(r) => self.enable_key_rotation(s, r).await,
            Request::DisableKeyRotation(r) => self.disable_key_rotation(s, r).await,
            Request::GetKeyRotationStatus(r) => self.get_key_rotation_status(s, r),
            Request::RotateKeyOnDemand(r) => self.rotate_key_on_demand(s, r).await,
            Request::ListKeyRotations(r) => self.list_key_rotations(s, r),
            Request::Encrypt(r) => self.encrypt(s, r).await,
            Request::Decrypt(r) => self.decrypt(s, r).await,
            Request::ReEncrypt(r) => self.re_encrypt(s, r).await,
            Request::GenerateDataKey(r) => self.generate_data_key(s, r.into()).await,
            Request::GenerateDataKeyWithoutPlaintext(r) => {
                self.generate_data_key(s, r.into()).await
            }
            Request::GenerateRandom(r) => self.generate_random(s, r),
            // Boxed, as whatever is rare: each call's future is as large as the largest of these.
            Request::ReplicateKey(r) => Box::pin(self.replicate_key(s, r)).await,
            Request::UpdatePrimaryRegion(r) => Box::pin(self.update_primary_region(s, r)).await,
            Request::WaitForChange(r) => self.wait_for_change(s, r).await,
            Request::GetKeyReplicationStatus(r) => {
                Box::pin(self.get_key_replication_status(s, r)).await
            }
        }
    }

    // --- Steps that operations share.

    /// Asks whether the caller may call an operation on no single key.
    pub(crate) fn permit(&self, s: &Serving<'_>) -> Result<(), KmsError> {
        let question = Question { principal: s.principal, operation: s.operation, key: None };
        self.authorizer.decide(&question)
    }

    /// Asks whether the caller may call the operation on this key.
    pub(crate) fn permit_on(&self, s: &Serving<'_>, key: Arc<Key>) -> Result<Permitted, KmsError> {
        let arn = s.view().arn(&key);
        let question =
            Question { principal: s.principal, operation: s.operation, key: Some((&key, &arn)) };
        self.authorizer.decide(&question)?;
        Ok(Permitted { key, arn })
    }

    /// The key that a parameter names, if the caller may.
    pub(crate) fn permitted_key(
        &self,
        s: &Serving<'_>,
        text: &str,
        member: &str,
        forms: Forms,
    ) -> Result<Permitted, KmsError> {
        self.permit_on(s, s.view().key(text, member, forms)?)
    }

    /// The same, and its state allows the operation.
    pub(crate) fn usable_key(
        &self,
        s: &Serving<'_>,
        text: &str,
        member: &str,
        forms: Forms,
    ) -> Result<Permitted, KmsError> {
        let permitted = self.permitted_key(s, text, member, forms)?;
        self.check_state(s, &permitted)?;
        Ok(permitted)
    }

    /// The key's state allows the operation. A use of a key that waits for its deletion is what its owner
    /// must hear of while it can still be cancelled: it is counted and logged. (AWS's recipe raises an alarm on
    /// the audit record of the same refusal.)
    pub(crate) fn check_state(&self, s: &Serving<'_>, on: &Permitted) -> Result<(), KmsError> {
        self.check_admitted(&on.key.id)?;
        let allowed = check_state(s.operation, on.key.state, &on.arn);
        if allowed.is_err()
            && s.operation.plane() == Plane::Use
            && on.key.state == KeyState::PendingDeletion
        {
            self.alarm.used(&on.arn, s.principal.arn.as_str(), self.node.env().boot_now());
        }
        allowed
    }

    /// One change: one Raft command, acknowledged once every node has it.
    pub(crate) async fn change(
        &self,
        deadline: Duration,
        command: Command,
    ) -> Result<Reply, KmsError> {
        let mut id = [0; 16];
        self.entropy.fill(&mut id);
        // The leader stamps the time.
        let envelope = Envelope { id, time: Timestamp(0), command };
        let left = deadline.saturating_sub(self.node.env().boot_now());
        // Boxed: what it needs while it waits would make every call's future four times as large.
        match Box::pin(self.node.propose(envelope, left)).await {
            Ok(outcome) => outcome,
            Err(ProposeError::NotLeader) => Err(KmsError::new(
                ErrorCode::DependencyTimeoutException,
                "no leader could be reached in time; nothing was changed: try again",
            )),
            Err(ProposeError::Unknown) => Err(KmsError::unknown_outcome(
                "the change was handed to the cluster and not acknowledged in time: it may have taken \
                 effect. Look before trying again",
            )),
        }
    }

    /// The material, ready for use: from the HSM's memory, or opened from its sealed token.
    pub(crate) async fn backing_key(
        &self,
        s: &Serving<'_>,
        key: &Key,
        material: &Material,
    ) -> Result<Arc<BackingKey>, KmsError> {
        match self.hsm.unsealed(&material.id) {
            Some(open) => Ok(open),
            // Boxed: rare, and larger than all the rest of a call.
            None => Box::pin(self.unseal(s, key, material)).await,
        }
    }

    /// Opens the material from its sealed token.
    async fn unseal(
        &self,
        s: &Serving<'_>,
        key: &Key,
        material: &Material,
    ) -> Result<Arc<BackingKey>, KmsError> {
        let token = self
            .node
            .token(material.id)
            .await
            .map_err(|error| internal("a sealed token could not be read", &error))?
            .ok_or_else(|| internal("a sealed token is missing", &material.id))?;
        let token = keyward_hsm::SealedToken::from_bytes(token);
        let domain_key = token
            .domain_key_id()
            .ok_or_else(|| internal("a sealed token is damaged", &material.id))?;
        self.open_domain_key(s.state, domain_key).await?;
        let open = self.hsm.unseal(key.id, material.id, &token).map_err(|e| hsm_refused(&e))?;
        // The key may have been deleted meanwhile, and its open material been taken out of memory before.
        if self.node.state().tombstone(&key.id).is_some() {
            self.hsm.evict(&material.id);
        }
        Ok(open)
    }

    /// Has the HSM open a domain key with this node's root, if it is not open already.
    pub(crate) async fn open_domain_key(
        &self,
        state: &State,
        id: DomainKeyId,
    ) -> Result<(), KmsError> {
        if self.hsm.has_domain_key(id) {
            return Ok(());
        }
        let unavailable = |why: String| KmsError::new(ErrorCode::KeyUnavailableException, why);
        let domain_key = state
            .domain_keys
            .get(&id)
            .ok_or_else(|| unavailable(format!("domain key {id} is not known here yet")))?;
        // Boxed, as in `backing_key`.
        Box::pin(self.hsm.open_domain_key(&domain_key.sealed)).await.map_err(|error| {
            unavailable(format!("domain key {id} cannot be opened on this node: {error}"))
        })
    }

    /// The domain key that new material is sealed under, open.
    pub(crate) async fn active_domain_key(&self, state: &State) -> Result<DomainKeyId, KmsError> {
        let id = state.region.as_ref().ok_or_else(not_founded)?.active_domain_key;
        self.open_domain_key(state, id).await?;
        Ok(id)
    }
}

pub(crate) fn not_founded() -> KmsError {
    KmsError::new(
        ErrorCode::KMSInvalidStateException,
        "this node belongs to no Region yet: found one (`keyward dev up` does), or have an operator add \
         the node",
    )
}

fn no_lease(refusal: NotServing) -> KmsError {
    KmsError::new(ErrorCode::DependencyTimeoutException, format!("{refusal}; try another node"))
}

/// The HSM could not do it. A root that has been away for too long is known by name, and comes back by itself.
pub(crate) fn hsm_refused(error: &keyward_hsm::HsmError) -> KmsError {
    match error {
        keyward_hsm::HsmError::RootAway { .. } => {
            KmsError::new(ErrorCode::KeyUnavailableException, error.to_string())
        }
        _ => internal("the HSM refused", error),
    }
}

/// Something broke that the caller can do nothing about. The cause goes to the log, not to the caller.
pub(crate) fn internal(what: &'static str, cause: &dyn std::fmt::Display) -> KmsError {
    tracing::error!(%cause, "{what}");
    KmsError::new(ErrorCode::KMSInternalException, what)
}
