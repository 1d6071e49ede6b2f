//! The roots of a node, changed while it serves. What the node itself has on record ([`RootKeeper`]) is the
//! truth; replicated state follows it in every round of housekeeping ([`Kms::settle_roots`]). So a crash between
//! any two steps leaves nothing half done: the next round goes on.

use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_hsm::{RootHealth, RootId, RootProvider, SecretVec};
use keyward_model::{ErrorCode, KmsError, NodeId};
use keyward_raft::BoxFuture;
use keyward_state::{Command, State};
use serde::{Deserialize, Serialize};

use crate::api::Caller;
use crate::kms::{Kms, hsm_refused, internal};
use crate::operator::refused;
use crate::peer::{AppRequest, AppResponse};

/// How long domain keys may take to be sealed for a new root while an operator waits.
const RESEAL_PATIENCE: Duration = Duration::from_secs(55);
/// Between looks while they are.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a node may take to tell about its roots.
const LIST_PATIENCE: Duration = Duration::from_secs(3);
/// Copies made in one round of housekeeping at most: a round stays short.
const COPIES_A_ROUND: usize = 64;

/// A root that the node has on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptRoot {
    /// Its id.
    pub id: RootId,
    /// Where it is, without secrets.
    pub place: String,
}

/// Opens, makes and remembers the roots of one node.
pub trait RootKeeper: Send + Sync + 'static {
    /// The roots on record, those too that could not be opened.
    fn kept(&self) -> Vec<KeptRoot>;

    /// Opens the root that `spec` describes, or makes it, and puts it on record. The error says what was
    /// wrong.
    fn add(&self, spec: String) -> BoxFuture<'_, Result<Arc<dyn RootProvider>, String>>;

    /// Takes a root off the record. What it consists of stays where it is.
    fn forget(&self, id: RootId) -> BoxFuture<'_, Result<(), String>>;

    /// Takes a share of a root that is split in shares. Says how many were given, and how many it takes.
    fn offer(&self, id: RootId, share: SecretVec) -> BoxFuture<'_, Result<(u8, u8), String>>;

    /// Hands out the next share of a root that was just made: its number, its text, and how many are left.
    fn next_share(&self, id: RootId) -> BoxFuture<'_, Result<(u8, String, u8), String>>;
}

/// What an operator wants of one node's roots.
#[derive(Serialize, Deserialize)]
pub enum RootCommand {
    /// Tells about them.
    List,
    /// Adds one.
    Add {
        /// What it is, as in the node's configuration.
        spec: String,
    },
    /// Removes one.
    Remove {
        /// Which.
        root: RootId,
    },
    /// Takes a share.
    Offer {
        /// Of which root.
        root: RootId,
        /// The share.
        share: String,
    },
    /// Hands out the next share.
    NextShare {
        /// Of which root.
        root: RootId,
    },
}

impl std::fmt::Debug for RootCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootCommand")
    }
}

/// What came of it.
#[derive(Serialize, Deserialize)]
pub enum RootReply {
    /// The node's roots.
    Roots(Vec<RootInfo>),
    /// The root that was added.
    Added(RootId),
    /// Done.
    Done,
    /// How many shares were given, and how many it takes.
    Progress(u8, u8),
    /// A share: its number, its text, and how many are left.
    Share(u8, String, u8),
}

impl std::fmt::Debug for RootReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootReply")
    }
}

/// A root of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RootInfo {
    pub id: RootId,
    pub place: String,
    /// `healthy`, `failing`, `unknown`, or `absent` when it could not be opened.
    pub health: String,
    /// Why it fails, when it does.
    pub reason: String,
    /// Known to the Region.
    pub registered: bool,
    /// Domain keys sealed for it, and domain keys there are.
    pub copies: u64,
    pub domain_keys: u64,
}

impl<E: Env> Kms<E> {
    /// An operator's command about the roots of `node`.
    pub async fn roots_of_node(
        self: &Arc<Self>,
        caller: &Caller,
        node: NodeId,
        command: RootCommand,
        patience: Duration,
    ) -> Result<RootReply, KmsError> {
        // A Region whose roots are all sealed has no lease to wait for: shares are taken all the same.
        let state = self.node.state();
        self.require_operator(&state, caller)?;
        if node == self.node.id() {
            return self.command_roots(command).await;
        }
        let members = self.node.members();
        let member = members.iter().find(|member| member.node == node).ok_or_else(|| {
            KmsError::new(
                ErrorCode::NotFoundException,
                format!("node {node} is not a member; `keyward cluster status` lists them"),
            )
        })?;
        let asked = AppRequest::Roots(command);
        match self.ask_peer(node, &member.address, &asked, patience).await {
            Ok(AppResponse::Roots(result)) => result,
            Ok(_) => Err(internal("an unexpected answer", &"roots")),
            Err(why) => {
                Err(KmsError::unknown_outcome(format!("node {node} did not answer: {why}")))
            }
        }
    }

    /// The roots of every node; none of a node that does not answer.
    pub async fn all_roots(
        self: &Arc<Self>,
        caller: &Caller,
    ) -> Result<Vec<(NodeId, Option<Vec<RootInfo>>)>, KmsError> {
        let members = self.node.members();
        let asked = members.iter().map(|member| {
            self.roots_of_node(caller, member.node, RootCommand::List, LIST_PATIENCE)
        });
        let answers = futures_util::future::join_all(asked).await;
        let mut listed = Vec::new();
        for (member, answer) in members.iter().zip(answers) {
            match answer {
                Ok(RootReply::Roots(roots)) => listed.push((member.node, Some(roots))),
                Ok(_) => listed.push((member.node, None)),
                Err(error)
                    if error.code == ErrorCode::UnrecognizedClientException
                        || error.code == ErrorCode::AccessDeniedException =>
                {
                    return Err(error);
                }
                Err(_) => listed.push((member.node, None)),
            }
        }
        Ok(listed)
    }

    /// This node's part of such a command.
    pub(crate) async fn command_roots(
        self: &Arc<Self>,
        command: RootCommand,
    ) -> Result<RootReply, KmsError> {
        match command {
            RootCommand::List => Ok(RootReply::Roots(self.list_roots())),
            RootCommand::Add { spec } => {
                let root = self.roots.add(spec).await.map_err(refused)?;
                let id = root.identity().clone();
                tracing::info!(root = %id, "a root was added");
                match self.hsm.add_root(root) {
                    Ok(()) | Err(keyward_hsm::HsmError::RootPresent(_)) => {}
                    Err(error) => return Err(refused(error.to_string())),
                }
                self.await_sealed(&id).await?;
                Ok(RootReply::Added(id))
            }
            RootCommand::Remove { root } => {
                self.remove_own_root(root).await?;
                Ok(RootReply::Done)
            }
            RootCommand::Offer { root, share } => {
                let share = SecretVec::new(share.into_bytes());
                let (given, needed) = self.roots.offer(root, share).await.map_err(refused)?;
                Ok(RootReply::Progress(given, needed))
            }
            RootCommand::NextShare { root } => {
                let (index, text, left) = self.roots.next_share(root).await.map_err(refused)?;
                Ok(RootReply::Share(index, text, left))
            }
        }
    }

    fn list_roots(&self) -> Vec<RootInfo> {
        let state = self.node.state();
        let open = self.hsm.roots();
        self.roots
            .kept()
            .into_iter()
            .map(|kept| {
                let status = open.iter().find(|status| status.id == kept.id);
                let (health, reason) = match status.map(|status| &status.health) {
                    None => ("absent", "it could not be opened; it is tried again".to_owned()),
                    Some(RootHealth::Unknown) => ("unknown", String::new()),
                    Some(RootHealth::Healthy { .. }) => ("healthy", String::new()),
                    Some(RootHealth::Failing { reason, .. }) => ("failing", reason.clone()),
                };
                let without = state.domain_keys_without(&kept.id).len() as u64;
                let domain_keys = state.domain_keys.len() as u64;
                RootInfo {
                    registered: state.roots.contains_key(&kept.id),
                    copies: domain_keys - without,
                    domain_keys,
                    health: health.to_owned(),
                    reason,
                    id: kept.id,
                    place: kept.place,
                }
            })
            .collect()
    }

    /// Waits until every domain key is sealed for a root that was added.
    async fn await_sealed(&self, root: &RootId) -> Result<(), KmsError> {
        let env = self.node.env();
        let end = env.boot_now() + RESEAL_PATIENCE;
        loop {
            let state = self.node.state();
            if state.roots.contains_key(root) && state.domain_keys_without(root).is_empty() {
                return Ok(());
            }
            if env.boot_now() >= end {
                return Err(KmsError::unknown_outcome(format!(
                    "root {root} was added; {} domain keys are still being sealed for it: `keyward root list` \
                     shows how far it is",
                    state.domain_keys_without(root).len()
                )));
            }
            env.sleep(LOOK_AGAIN).await;
        }
    }

    /// Off the node's record first: from then on housekeeping takes it out of the Region, whatever happens here.
    async fn remove_own_root(&self, root: RootId) -> Result<(), KmsError> {
        let state = self.node.state();
        let kept = self.roots.kept();
        if kept.iter().all(|kept| kept.id != root) {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!(
                    "node {} has no root {root}; `keyward root list` shows them",
                    self.node.id()
                ),
            ));
        }
        let others: Vec<RootId> =
            self.hsm.roots().into_iter().map(|s| s.id).filter(|id| *id != root).collect();
        let covered = others.iter().any(|other| {
            state.roots.contains_key(other) && state.domain_keys_without(other).is_empty()
        });
        if !covered {
            return Err(refused(format!(
                "{root} is the last root of node {} that opens every domain key: add another one first \
                 (`keyward root add`)",
                self.node.id()
            )));
        }
        self.roots.forget(root.clone()).await.map_err(refused)?;
        match self.hsm.remove_root(&root) {
            Ok(()) | Err(keyward_hsm::HsmError::NoSuchRoot(_)) => {}
            Err(error) => return Err(hsm_refused(&error)),
        }
        tracing::info!(%root, "a root was removed");
        self.change(self.step_end(), Command::RemoveRoot { root }).await.map(drop)
    }

    /// Brings the Region's record of this node's roots, and their copies of domain keys, to where the node's
    /// own record is. The first root is registered by an operator's approval, further ones by the node.
    pub(crate) async fn settle_roots(&self, state: &State) -> Result<(), KmsError> {
        let me = self.node.id();
        if state.roots_of(me).next().is_none() {
            return Ok(());
        }
        let kept = self.roots.kept();
        let open: Vec<RootId> = self.hsm.roots().into_iter().map(|status| status.id).collect();
        for id in &open {
            if kept.iter().any(|kept| kept.id == *id) && !state.roots.contains_key(id) {
                let command = Command::RegisterRoot { root: id.clone(), node: me };
                self.change(self.step_end(), command).await?;
            }
        }
        for root in state.roots_of(me) {
            if kept.iter().all(|kept| kept.id != root.id) {
                self.change(self.step_end(), Command::RemoveRoot { root: root.id.clone() }).await?;
            }
        }
        let mut made = 0;
        for root in open.iter().filter(|id| state.roots.contains_key(id)) {
            for domain_key in state.domain_keys_without(root) {
                if made >= COPIES_A_ROUND {
                    return Ok(());
                }
                let elsewhere = state.domain_keys.get(&domain_key).is_some_and(|key| {
                    key.sealed.copies.iter().any(|copy| open.contains(&copy.root))
                });
                if !elsewhere && !self.hsm.has_domain_key(domain_key) {
                    // Another node hands it over first.
                    continue;
                }
                self.open_domain_key(state, domain_key).await?;
                let copy =
                    self.hsm.copy_for_root(domain_key, root).await.map_err(|e| hsm_refused(&e))?;
                self.change(self.step_end(), Command::AddRootCopy { domain_key, copy }).await?;
                made += 1;
            }
        }
        Ok(())
    }
}
