//! One more node: an operator invites, the invited machine gets a node's certificate for its own key, then
//! asks to be let in with its own root. An invitation is used once, and ends soon.

use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_model::{ErrorCode, KmsError, NodeId, Timestamp};
use keyward_state::{Command, InvitationId, Reply, State};

use crate::api::Caller;
use crate::authority::signing_request;
use crate::kms::{Kms, internal, not_founded};
use crate::operator::host_of;
use crate::peer::LeaderCommand;

/// How long an invitation may hold.
const VALID_MS_MAX: i64 = Timestamp::DAY_MS;

/// How long a promotion may take.
const VOTE_PATIENCE: Duration = Duration::from_secs(5);

/// What an invited machine needs, and nothing else.
pub struct Invited {
    /// The Region's name.
    pub region: String,
    /// The id that the node gets.
    pub node: NodeId,
    /// When it ends.
    pub expires: Timestamp,
    /// Nodes to ask.
    pub endpoints: Vec<String>,
    /// The Region's authority, DER: the machine trusts nobody else.
    pub authority: Vec<u8>,
    /// The certificate that lets it ask, DER.
    pub certificate: Vec<u8>,
    /// Its private key, PKCS #8 DER.
    pub private_key: zeroize::Zeroizing<Vec<u8>>,
}

/// What a machine gets for its invitation.
pub struct Joined {
    /// Its id.
    pub node: NodeId,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
}

impl<E: Env> Kms<E> {
    /// Invites one more node.
    pub async fn invite(
        self: &Arc<Self>,
        caller: &Caller,
        valid_ms: i64,
        patience: Duration,
    ) -> Result<Invited, KmsError> {
        if !(1_000..=VALID_MS_MAX).contains(&valid_ms) {
            return Err(KmsError::validation("an invitation holds for one second to one day"));
        }
        let deadline = self.node.env().boot_now() + patience;
        let state = self.operator(caller, patience).await?;
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        let mut id = [0; 16];
        self.entropy.fill(&mut id);
        let by = caller.principal.clone();
        let invited = self.change(deadline, Command::Invite { id, valid_ms, by }).await?;
        let Reply::Invited { node, expires } = invited else {
            return Err(internal("an unexpected reply", &format!("{invited:?}")));
        };
        let (private_key, request) =
            signing_request().map_err(|e| internal("no key could be made", &e))?;
        let not_after = Timestamp(self.now().0 + valid_ms);
        let issued = self
            .authority(&state)
            .await?
            .issue_invitation(&request, id, not_after, &*self.entropy, self.now())
            .map_err(|e| internal("no invitation could be signed", &e))?;
        tracing::info!(by = %caller.principal, node, expires = expires.0, "a node was invited");
        Ok(Invited {
            region: facts.region.to_string(),
            node,
            expires: not_after,
            endpoints: self.node.members().into_iter().map(|member| member.address).collect(),
            authority: facts.ca_certificate.clone(),
            certificate: issued.certificate,
            private_key,
        })
    }

    /// Uses an invitation: the machine gets a node's certificate for the key of its signing request.
    pub async fn join(
        self: &Arc<Self>,
        invitation: InvitationId,
        request: &[u8],
        address: String,
        patience: Duration,
    ) -> Result<Joined, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let host = host_of(&address)?.to_owned();
        let state = self.admit(deadline).await?;
        let members = self.node.members();
        if let Some(other) = members.iter().find(|member| member.address == address) {
            return Err(KmsError::validation(format!(
                "{address} is the address of node {}",
                other.node
            )));
        }
        let authority = self.authority(&state).await?;
        let mut hosts = vec![host];
        for local in ["localhost", "127.0.0.1"] {
            if !hosts.iter().any(|host| host == local) {
                hosts.push(local.to_owned());
            }
        }
        // Signed before the invitation is spent: a request that cannot be signed costs nothing.
        let sign = |node| {
            authority
                .issue_node(request, node, &hosts, &*self.entropy, self.now())
                .map_err(|e| KmsError::validation(e.to_string()))
        };
        sign(NodeId::MAX)?;
        let used = Command::UseInvitation { id: invitation, address: address.clone() };
        let Reply::Node(node) = self.change(deadline, used).await? else {
            return Err(internal("an unexpected reply", &"UseInvitation"));
        };
        tracing::info!(node, address, "an invitation was used");
        Ok(Joined { node, certificate: sign(node)?.certificate })
    }

    /// Lets the node in that has used this invitation: its root is registered and it catches up. It follows
    /// until it runs for good, and then asks for its vote (`ask_for_vote`): a node that is about to be
    /// started again must not cost the Region its majority.
    pub async fn enter(
        self: &Arc<Self>,
        invitation: InvitationId,
        patience: Duration,
    ) -> Result<NodeId, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let state = self.admit(deadline).await?;
        let used = state.invitations.get(&invitation);
        let Some((node, address)) = used.and_then(|i| Some((i.node, i.used.clone()?))) else {
            return Err(KmsError::new(
                ErrorCode::AccessDeniedException,
                "this invitation was not used to join yet, or is not of this Region",
            ));
        };
        let command = LeaderCommand::AddNode { node, address, learner: true };
        self.have_led(command, self.left(deadline)).await?;
        Ok(node)
    }

    /// A node that was invited, follows and runs for good asks the leader for its vote.
    pub(crate) async fn ask_for_vote(self: &Arc<Self>, state: &State) -> Result<(), KmsError> {
        let me = self.node.id();
        let follows = self.node.members().iter().any(|m| m.node == me && !m.voter);
        if follows && was_invited(state, me) && self.node.admit_now().is_ok() {
            self.have_led(LeaderCommand::Promote { node: me }, VOTE_PATIENCE).await?;
        }
        Ok(())
    }
}

/// Whether the node has used an invitation, which is an operator's word that it may vote.
pub(crate) fn was_invited(state: &State, node: NodeId) -> bool {
    state.invitations.values().any(|i| i.node == node && i.used.is_some())
}
