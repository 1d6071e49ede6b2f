//! Operator calls: founding, membership, domain keys, principals. Open to operators only.

use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::limits::PAGE_PRINCIPALS;
use keyward_model::{ErrorCode, KmsError, NodeId, PrincipalArn, Region, Timestamp};
use keyward_raft::{CLOCK_OFF_MAX_MS, NodeStatus};
use keyward_state::{
    Command, Founding, Kinds, Listed, Principal, Purpose, Reply, State, Timers, codec,
};

use crate::api::{Caller, Listing};
use crate::authority::{self, Authority, Issued};
use crate::authorize::{authenticate, note_refusal};
use crate::joining::was_invited;
use crate::kms::{Kms, hsm_refused, internal, not_founded};
use crate::outside;
use crate::peer::{AppRequest, AppResponse, LeaderCommand, LeaderReply};
use crate::resolve;

/// Between looks while a new node catches up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a peer may take to say how it is.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);

/// The cluster, as an operator sees it.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct ClusterStatus {
    pub region: String,
    pub region_id: String,
    pub leader: Option<NodeId>,
    pub nodes: Vec<MemberStatus>,
    pub keys: usize,
    pub active_domain_key: String,
    pub domain_keys: usize,
    pub purpose: Purpose,
    /// Region time.
    pub time: Timestamp,
    pub clock_offset_ms: i64,
    /// A change of the voters is under way: majorities of the old and of the new ones are needed.
    pub voters_change: bool,
}

/// One node of it; no status when it does not answer.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct MemberStatus {
    pub node: NodeId,
    pub address: String,
    pub voter: bool,
    pub roots: Vec<String>,
    /// How far its wall clock is off the median, as the leader sees it.
    pub clock_off_ms: Option<i64>,
    pub status: Option<NodeStatus>,
}

/// What founding takes.
pub struct FoundingRequest {
    /// The Region's name.
    pub region: Region,
    /// Its timers.
    pub timers: Timers,
    /// What it is for.
    pub purpose: Purpose,
    /// The first operator; must be the caller.
    pub operator: PrincipalArn,
    /// The authority's certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// Its private key, PKCS #8 DER.
    pub ca_private_key: zeroize::Zeroizing<Vec<u8>>,
    /// Outside authorities that are trusted from the start: their certificates, DER.
    pub outside_authorities: Vec<Vec<u8>>,
}

pub(crate) fn refused(message: String) -> KmsError {
    KmsError::new(ErrorCode::KMSInvalidStateException, message)
}

impl<E: Env> Kms<E> {
    pub(crate) fn left(&self, deadline: Duration) -> Duration {
        deadline.saturating_sub(self.node.env().boot_now())
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.node.wall_now()
    }

    /// Lets operators through and nobody else.
    pub(crate) async fn operator(
        &self,
        caller: &Caller,
        patience: Duration,
    ) -> Result<Arc<State>, KmsError> {
        let state = self.node.admit(patience).await.map_err(|refusal| {
            KmsError::new(
                ErrorCode::DependencyTimeoutException,
                format!("{refusal}; try another node"),
            )
        })?;
        self.require_operator(&state, caller)?;
        Ok(state)
    }

    pub(crate) fn require_operator(&self, state: &State, caller: &Caller) -> Result<(), KmsError> {
        if state.region.is_none() {
            return Err(not_founded());
        }
        let principal = authenticate(state, caller, self.now()).inspect_err(note_refusal)?;
        if principal.kinds.operator {
            return Ok(());
        }
        Err(KmsError::new(
            ErrorCode::AccessDeniedException,
            format!(
                "User: {} is not an operator: operator calls are open to operators only",
                principal.arn
            ),
        ))
    }

    /// Founds the Region on this node.
    pub async fn found(
        self: &Arc<Self>,
        caller: &Caller,
        request: FoundingRequest,
        patience: Duration,
    ) -> Result<String, KmsError> {
        let env = self.node.env();
        let deadline = env.boot_now() + patience;
        if let Some(facts) = &self.node.state().region {
            return Err(KmsError::new(
                ErrorCode::AlreadyExistsException,
                format!("this node belongs to Region {} already", facts.region),
            ));
        }
        if caller.principal != request.operator {
            return Err(KmsError::new(
                ErrorCode::AccessDeniedException,
                "the founder becomes the first operator: name the caller's own ARN",
            ));
        }
        if self.now() >= caller.not_after {
            return Err(KmsError::new(
                ErrorCode::UnrecognizedClientException,
                "the founder's certificate has expired",
            ));
        }
        Authority::open(&request.ca_certificate, &request.ca_private_key)
            .map_err(|e| KmsError::validation(format!("the authority cannot be used: {e}")))?;
        let authorities = outside::checked(&request.outside_authorities)?;
        let domain_key = self.hsm.generate_domain_key().await.map_err(|e| hsm_refused(&e))?;
        let ca_private_key = self
            .hsm
            .seal_secret(domain_key.id, CA_LABEL, &request.ca_private_key)
            .map_err(|e| hsm_refused(&e))?;
        let mut region_id = [0; 16];
        self.entropy.fill(&mut region_id);
        self.node.found().await.map_err(refused)?;
        let command = Command::Found(Box::new(Founding {
            region: request.region,
            region_id,
            timers: request.timers,
            purpose: request.purpose,
            ca_certificate: request.ca_certificate,
            ca_private_key,
            domain_key,
            node: self.node.id(),
            root: self.hsm.root_id(),
            operator: request.operator,
            operator_certificate: (caller.serial.clone(), caller.not_after),
            authorities,
        }));
        self.change(deadline, command).await?;
        self.admit_as_founded();
        Ok(hex::encode(region_id))
    }

    /// The cluster as this node and its peers see it. Answered without a lease too: an operator needs it
    /// most when there is none.
    pub async fn cluster_status(&self, caller: &Caller) -> Result<ClusterStatus, KmsError> {
        let state = self.node.state();
        self.require_operator(&state, caller)?;
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        let members = self.node.members();
        let asked = members.iter().map(|member| self.node.status_of(member, STATUS_PATIENCE));
        let answers = futures_util::future::join_all(asked).await;
        let clocks: Vec<(NodeId, i64)> = answers
            .iter()
            .flatten()
            .flat_map(|status| status.clocks_off_ms.iter().copied())
            .collect();
        let nodes = members
            .iter()
            .zip(answers)
            .map(|(member, status)| MemberStatus {
                node: member.node,
                address: member.address.clone(),
                voter: member.voter,
                roots: state.roots_of(member.node).map(|root| root.id.to_string()).collect(),
                clock_off_ms: clocks
                    .iter()
                    .find(|(node, _)| *node == member.node)
                    .map(|(_, off)| *off),
                status,
            })
            .collect();
        Ok(ClusterStatus {
            region: facts.region.to_string(),
            region_id: hex::encode(facts.region_id),
            leader: self.node.leader_id(),
            nodes,
            keys: state.key_count(),
            active_domain_key: facts.active_domain_key.to_string(),
            domain_keys: state.domain_keys.len(),
            purpose: facts.purpose,
            time: self.node.region_now(),
            clock_offset_ms: state.clock_offset_ms,
            voters_change: self.node.voters_change(),
        })
    }

    /// Adds a waiting node.
    pub async fn add_node(
        self: &Arc<Self>,
        caller: &Caller,
        node: NodeId,
        address: String,
        learner: bool,
        patience: Duration,
    ) -> Result<(), KmsError> {
        host_of(&address)?;
        self.operator(caller, patience).await?;
        let command = LeaderCommand::AddNode { node, address, learner };
        self.have_led(command, patience).await.map(drop)
    }

    /// Removes a node.
    pub async fn remove_node(
        self: &Arc<Self>,
        caller: &Caller,
        node: NodeId,
        patience: Duration,
    ) -> Result<(), KmsError> {
        self.operator(caller, patience).await?;
        self.have_led(LeaderCommand::RemoveNode { node }, patience).await.map(drop)
    }

    /// Hands leadership over.
    pub async fn transfer_leadership(
        self: &Arc<Self>,
        caller: &Caller,
        to: Option<NodeId>,
        patience: Duration,
    ) -> Result<NodeId, KmsError> {
        self.operator(caller, patience).await?;
        match self.have_led(LeaderCommand::Transfer { to }, patience).await? {
            LeaderReply::NewLeader(leader) => Ok(leader),
            other => Err(internal("an unexpected reply", &format!("{other:?}"))),
        }
    }

    /// Makes a new domain key the active one.
    pub async fn rotate_domain_key(
        self: &Arc<Self>,
        caller: &Caller,
        patience: Duration,
    ) -> Result<String, KmsError> {
        self.operator(caller, patience).await?;
        match self.have_led(LeaderCommand::RotateDomainKey, patience).await? {
            LeaderReply::DomainKey(id) => Ok(id.to_string()),
            other => Err(internal("an unexpected reply", &format!("{other:?}"))),
        }
    }

    /// Moves the Region's clock ahead by so many milliseconds, for rehearsals. Returns the whole offset.
    pub async fn advance_clock(
        &self,
        caller: &Caller,
        milliseconds: i64,
        patience: Duration,
    ) -> Result<i64, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        self.operator(caller, patience).await?;
        match self.change(deadline, Command::AdvanceClock { milliseconds }).await? {
            Reply::ClockOffset(offset) => {
                tracing::warn!(by = %caller.principal, milliseconds, offset, "the Region's clock was moved ahead");
                Ok(offset)
            }
            other => Err(internal("an unexpected reply", &format!("{other:?}"))),
        }
    }

    /// Carries a command out here, or has the leader do it.
    pub(crate) async fn have_led(
        self: &Arc<Self>,
        command: LeaderCommand,
        patience: Duration,
    ) -> Result<LeaderReply, KmsError> {
        if self.node.leads() {
            return self.lead(command, patience).await;
        }
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let request = AppRequest::Operate { command, patience_ms };
        let answer = self.node.ask_leader_app(codec::encode(&request), patience).await;
        let response =
            answer.and_then(|bytes| codec::decode(&bytes).map_err(|e| e.to_string())).map_err(
                |why| KmsError::unknown_outcome(format!("the leader did not answer: {why}")),
            )?;
        match response {
            AppResponse::Operated(result) => result,
            other => Err(internal("an unexpected answer", &format!("{other:?}"))),
        }
    }

    /// The leader's part of an operator command.
    pub(crate) async fn lead(
        self: &Arc<Self>,
        command: LeaderCommand,
        patience: Duration,
    ) -> Result<LeaderReply, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        match command {
            LeaderCommand::AddNode { node, address, learner } => {
                self.lead_add(node, &address, learner, deadline).await?;
                Ok(LeaderReply::Done)
            }
            LeaderCommand::Promote { node } => {
                let state = self.node.state();
                if !was_invited(&state, node) {
                    return Err(refused(format!("node {node} was not invited to vote")));
                }
                // Its approval may have been cut off half done: it asks again.
                let equipped =
                    state.roots_of(node).any(|root| state.domain_keys_without(&root.id).is_empty());
                if !equipped {
                    return Err(refused(format!("node {node} is still fetching domain keys")));
                }
                self.node.promote(node, self.left(deadline)).await.map_err(refused)?;
                tracing::info!(node, "a node that was invited votes from now on");
                Ok(LeaderReply::Done)
            }
            LeaderCommand::RemoveNode { node } => {
                let left = self.left(deadline);
                let has_left = self.node.has_left(node, left).await.map_err(refused)?;
                // A removal that was cut off half done has left its roots: domain keys would wait for them.
                if has_left && self.node.state().roots_of(node).next().is_none() {
                    return Err(KmsError::new(
                        ErrorCode::NotFoundException,
                        format!("node {node} is not a member; `keyward cluster status` lists them"),
                    ));
                }
                if !has_left {
                    self.node.remove(node, self.left(deadline)).await.map_err(refused)?;
                }
                self.change(deadline, Command::ForgetRoot { node }).await?;
                Ok(LeaderReply::Done)
            }
            LeaderCommand::Transfer { to } => {
                if let Some(to) = to
                    && !self.node.members().iter().any(|m| m.node == to && m.voter)
                {
                    return Err(KmsError::new(
                        ErrorCode::NotFoundException,
                        format!("node {to} is not a voter; `keyward cluster status` lists them"),
                    ));
                }
                if to == Some(self.node.id()) {
                    return Ok(LeaderReply::NewLeader(self.node.id()));
                }
                let leader = self.node.transfer(to, self.left(deadline)).await.map_err(refused)?;
                Ok(LeaderReply::NewLeader(leader))
            }
            LeaderCommand::RotateDomainKey => {
                let id = self.introduce_domain_key(deadline).await?;
                self.await_active(id, deadline).await?;
                Ok(LeaderReply::DomainKey(id))
            }
            LeaderCommand::WaitForChange(change) => {
                self.lead_waiting(&change, deadline).await.map(|()| LeaderReply::Done)
            }
            LeaderCommand::Links => Ok(LeaderReply::Links(self.links_told())),
            LeaderCommand::PromoteRegion { lost, force } => {
                self.lead_promotion(&lost, force, deadline).await.map(LeaderReply::Count)
            }
            LeaderCommand::Admit => {
                self.lead_admission();
                Ok(LeaderReply::Done)
            }
            LeaderCommand::FailOver { to } => {
                self.lead_fail_over(&to, deadline).await.map(LeaderReply::Count)
            }
        }
    }

    async fn lead_add(
        self: &Arc<Self>,
        node: NodeId,
        address: &str,
        learner: bool,
        deadline: Duration,
    ) -> Result<(), KmsError> {
        let members = self.node.members();
        if let Some(other) = members.iter().find(|m| m.address == address && m.node != node) {
            return Err(refused(format!("{address} is the address of node {}", other.node)));
        }
        let invited = was_invited(&self.node.state(), node);
        if members.iter().any(|m| m.node == node && (m.voter || (learner && !invited))) {
            return Err(KmsError::new(
                ErrorCode::AlreadyExistsException,
                format!("node {node} is a member already"),
            ));
        }
        let asked = self.node.env().boot_now();
        let hello = self.ask_peer(node, address, &AppRequest::Hello, STATUS_PATIENCE * 4).await;
        let took = self.node.env().boot_now().saturating_sub(asked);
        let (root, region_id, timers, wall_ms, disk) = match hello {
            Ok(AppResponse::Hello { root, region_id, timers, wall_ms, disk }) => {
                (root, region_id, timers, wall_ms, disk)
            }
            Ok(other) => return Err(internal("an unexpected answer", &format!("{other:?}"))),
            Err(why) => {
                return Err(refused(format!(
                    "node {node} cannot be added: {why}. Is it running, with a certificate of this \
                     Region that names it?"
                )));
            }
        };
        self.node.judge_disk(node, disk).map_err(refused)?;
        // It looked at its clock half a round trip ago (Cristian's algorithm).
        let since_ms = i64::try_from(took.as_millis() / 2).unwrap_or(0);
        let off_ms = wall_ms + since_ms - self.node.median_clock().unwrap_or(self.now()).0;
        if off_ms.abs() > CLOCK_OFF_MAX_MS {
            return Err(refused(format!(
                "node {node}'s clock is {} s off the Region's clocks, and {} s are allowed: set it (chrony or ntpd \
                 keeps it right), then add the node again",
                (off_ms + 500 * off_ms.signum()) / 1000,
                CLOCK_OFF_MAX_MS / 1000
            )));
        }
        let own = self.node.state().region.as_ref().map(|facts| facts.region_id);
        if region_id.is_some() && region_id != own {
            return Err(refused(format!(
                "node {node} belongs to another Region: empty its data folder"
            )));
        }
        if timers != self.node.timers() && !on(Bug::DifferentTimers) {
            return Err(refused(format!(
                "node {node} is configured with other timers ({timers:?}) than the Region's ({:?}): \
                 mixed timers could serve stale answers",
                self.node.timers()
            )));
        }
        self.change(deadline, Command::RegisterRoot { root: root.clone(), node }).await?;
        if members.iter().all(|m| m.node != node) {
            self.node.add_learner(node, address, self.left(deadline)).await.map_err(refused)?;
        }
        // It catches up, and its housekeeping fetches the domain keys for its own root.
        let target = self.node.state().applied;
        loop {
            let member = keyward_raft::Member { node, address: address.to_owned(), voter: false };
            let status = self.node.status_of(&member, STATUS_PATIENCE).await;
            let caught_up = status.is_some_and(|status| status.applied >= target);
            if caught_up && self.node.state().domain_keys_without(&root).is_empty() {
                break;
            }
            if self.left(deadline).is_zero() {
                return Err(KmsError::unknown_outcome(format!(
                    "node {node} is a learner and still catching up: add it again to have it vote"
                )));
            }
            self.node.env().sleep(LOOK_AGAIN).await;
        }
        if learner {
            return Ok(());
        }
        self.node.promote(node, self.left(deadline)).await.map_err(refused)
    }

    // --- Principals.

    /// Creates a principal; with a signing request, issues its first certificate.
    pub async fn create_principal(
        &self,
        caller: &Caller,
        arn: &str,
        kinds: &[String],
        signing_request: Option<&[u8]>,
        validity_days: Option<u32>,
        patience: Duration,
    ) -> Result<(Arc<Principal>, Option<Vec<u8>>), KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let arn = principal_arn(arn)?;
        let kinds = parse_kinds(kinds)?;
        let days = authority::validity_days(validity_days)?;
        let state = self.operator(caller, patience).await?;
        let issued = match signing_request {
            Some(request) => Some(self.issue(&state, request, &arn, days).await?),
            None => None,
        };
        let certificate = issued.as_ref().map(|issued| (issued.serial.clone(), issued.not_after));
        let command = Command::CreatePrincipal { arn: arn.clone(), kinds, certificate };
        self.change(deadline, command).await?;
        let principal = self.fenced_principal(&arn, deadline).await?;
        Ok((principal, issued.map(|issued| issued.certificate)))
    }

    /// Issues a further certificate.
    pub async fn issue_certificate(
        &self,
        caller: &Caller,
        arn: &str,
        signing_request: &[u8],
        validity_days: Option<u32>,
        patience: Duration,
    ) -> Result<Issued, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let arn = principal_arn(arn)?;
        let days = authority::validity_days(validity_days)?;
        let state = self.operator(caller, patience).await?;
        let issued = self.issue(&state, signing_request, &arn, days).await?;
        let command = Command::AddCertificate {
            arn,
            serial: issued.serial.clone(),
            not_after: issued.not_after,
        };
        self.change(deadline, command).await?;
        Ok(issued)
    }

    async fn issue(
        &self,
        state: &State,
        request: &[u8],
        arn: &PrincipalArn,
        days: u32,
    ) -> Result<Issued, KmsError> {
        self.authority(state)
            .await?
            .issue(request, arn, days, &*self.entropy, self.now())
            .map_err(|e| KmsError::validation(e.to_string()))
    }

    /// The Region's authority, opened for one signature.
    pub(crate) async fn authority(&self, state: &State) -> Result<Authority, KmsError> {
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        let damaged = || internal("the authority's key is damaged", &"no domain key named");
        let domain_key = facts.ca_private_key.domain_key_id().ok_or_else(damaged)?;
        self.open_domain_key(state, domain_key).await?;
        open_authority(&self.hsm, facts)
    }

    async fn fenced_principal(
        &self,
        arn: &PrincipalArn,
        deadline: Duration,
    ) -> Result<Arc<Principal>, KmsError> {
        let state = self.node.admit(self.left(deadline)).await;
        state.ok().and_then(|state| state.principal(arn).cloned()).ok_or_else(|| {
            KmsError::unknown_outcome(format!("{arn} was created; this node has yet to learn it"))
        })
    }

    /// Lists principals.
    pub async fn list_principals(
        &self,
        caller: &Caller,
        limit: Option<i32>,
        marker: Option<&str>,
        patience: Duration,
    ) -> Result<Listing<Listed>, KmsError> {
        let limit = resolve::limit(limit, PAGE_PRINCIPALS)?;
        let after = resolve::marker::<Place>('p', marker)?;
        let state = self.operator(caller, patience).await?;
        let page = state.list_principals(after.map(|place| place.0).as_ref(), limit);
        let next_marker = match (page.truncated, page.items.last()) {
            (true, Some(last)) => {
                let (arn, home) = last.place();
                Some(resolve::marker_of('p', &format!("{} {arn}", hex::encode(home))))
            }
            _ => None,
        };
        Ok(Listing { items: page.items, next_marker })
    }

    /// Disables or enables a principal, in all Regions as they hear of it. Names the change.
    pub async fn set_principal_disabled(
        &self,
        caller: &Caller,
        arn: &str,
        disabled: bool,
        patience: Duration,
    ) -> Result<String, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let arn = principal_arn(arn)?;
        self.operator(caller, patience).await?;
        self.change(deadline, Command::SetPrincipalDisabled { arn: arn.clone(), disabled }).await?;
        self.last_change(&arn, deadline).await
    }

    /// Names the last change that other Regions are told of; what this call has changed of that principal is not after it.
    /// Nothing where they are told nothing: of an operator.
    async fn last_change(
        &self,
        arn: &PrincipalArn,
        deadline: Duration,
    ) -> Result<String, KmsError> {
        let state = self.admit_done(deadline).await?;
        let told = state.foreign_principals_named(arn).next().is_some();
        if !told && state.principal(arn).is_some_and(|own| own.kinds.operator) {
            return Ok(String::new());
        }
        let change = state.change_token(state.feed_head()).ok_or_else(not_founded)?;
        Ok(change.to_string())
    }

    /// Names the last change that other Regions are told of, once this node has taken over what was just done.
    pub(crate) async fn latest_change(&self, deadline: Duration) -> Result<String, KmsError> {
        let state = self.admit_done(deadline).await?;
        let change = state.change_token(state.feed_head()).ok_or_else(not_founded)?;
        Ok(change.to_string())
    }

    /// The state, once this node has taken over what was just done.
    async fn admit_done(&self, deadline: Duration) -> Result<Arc<State>, KmsError> {
        self.node
            .admit(self.left(deadline))
            .await
            .map_err(|_| KmsError::unknown_outcome("it is done, and this node has yet to learn it"))
    }

    /// Revokes one certificate, in all Regions as they hear of it. Names the change.
    pub async fn revoke_certificate(
        &self,
        caller: &Caller,
        arn: &str,
        serial: &str,
        patience: Duration,
    ) -> Result<String, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let arn = principal_arn(arn)?;
        let serial = hex::decode(serial).map_err(|_| {
            KmsError::validation(format!(
                "'{serial}' is not a serial number: expected hexadecimal digits"
            ))
        })?;
        self.operator(caller, patience).await?;
        self.change(deadline, Command::RevokeCertificate { arn: arn.clone(), serial }).await?;
        self.last_change(&arn, deadline).await
    }
}

/// Opens the authority of a Region whose domain keys are open in `hsm`.
///
/// # Errors
/// A domain key that is not open; a key that is none.
pub fn open_authority(
    hsm: &keyward_hsm::Hsm,
    facts: &keyward_state::RegionFacts,
) -> Result<Authority, KmsError> {
    let key = hsm.open_secret(&facts.ca_private_key, CA_LABEL).map_err(|e| hsm_refused(&e))?;
    Authority::open(&facts.ca_certificate, key.expose())
        .map_err(|e| internal("the authority cannot be opened", &e))
}

/// The host in an address of the form `host:port`.
pub(crate) fn host_of(address: &str) -> Result<&str, KmsError> {
    let parts = address
        .rsplit_once(':')
        .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
    parts.map(|(host, _)| host.trim_matches(['[', ']'])).ok_or_else(|| {
        KmsError::validation(format!("'{address}' is not an address: expected host:port"))
    })
}

/// Where a principal stands in the list.
struct Place((PrincipalArn, [u8; 16]));

impl std::str::FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (home, arn) = text.split_once(' ').ok_or(())?;
        let mut id = [0; 16];
        hex::decode_to_slice(home, &mut id).map_err(|_| ())?;
        Ok(Self((arn.parse().map_err(|_| ())?, id)))
    }
}

/// Binds the authority's sealed key to its purpose.
const CA_LABEL: &str = "keyward certificate authority";

fn principal_arn(text: &str) -> Result<PrincipalArn, KmsError> {
    text.parse().map_err(|e| KmsError::validation(format!("'{text}' is {e}")))
}

fn parse_kinds(names: &[String]) -> Result<Kinds, KmsError> {
    let mut kinds = Kinds::default();
    for name in names {
        match name.as_str() {
            "operator" => kinds.operator = true,
            "administrator" => kinds.administrator = true,
            "user" => kinds.user = true,
            other => {
                return Err(KmsError::constraint_on(
                    "kinds",
                    other,
                    "Member must satisfy enum value set: [operator, administrator, user]",
                ));
            }
        }
    }
    match kinds {
        Kinds { operator: false, administrator: false, user: false } => {
            Err(KmsError::missing("kinds"))
        }
        Kinds { operator: true, administrator: false, user: false } => Ok(kinds),
        Kinds { operator: true, .. } => Err(KmsError::validation(
            "an operator neither manages nor uses keys: create a principal of its own for that",
        )),
        _ => Ok(kinds),
    }
}
