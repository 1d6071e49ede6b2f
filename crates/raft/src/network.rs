//! openraft's view of the network: each message becomes a [`PeerRequest`] on the [`Transport`].
//!
//! Acknowledgements are noted here with the time at which the request was sent, per leader id: leases
//! rest on these times and not on openraft's own instants, which stand still in suspend. Appends use
//! openraft's sequential `stream_append`, one request in flight (DESIGN section 5).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_env::sabotage::{Bug, on};
use keyward_env::{AsyncRuntime, Env, Select2};
use keyward_model::NodeId;
use keyward_state::{DiskMark, codec};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::BasicNode;
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{AnyError, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::oneshot;

use crate::disk::Disks;
use crate::lease::Keeper;
use crate::messages::{PeerRequest, PeerResponse, Transport, TransportError};
use crate::types::{LeaderId, SnapshotData, TypeConfig, Vote};

/// Bytes of a snapshot in one message.
const PIECE_BYTES: usize = 256 * 1024;
/// How long one piece may take.
const PIECE_PATIENCE: Duration = Duration::from_secs(5);
/// How long installing may take at the receiver, which is asked again every [`PIECE_PATIENCE`].
const INSTALL_PATIENCE: Duration = Duration::from_secs(60);
/// Before a peer that could not be reached is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// Makes a [`Peer`] for each target.
pub(crate) struct Network<E: Env> {
    pub(crate) env: E,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) disks: Arc<Disks>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) transfers: Arc<AtomicU64>,
}

impl<E: Env> RaftNetworkFactory<TypeConfig<E>> for Network<E> {
    type Network = Peer<E>;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Peer<E> {
        Peer {
            env: self.env.clone(),
            keeper: Arc::clone(&self.keeper),
            disks: Arc::clone(&self.disks),
            transport: Arc::clone(&self.transport),
            transfers: Arc::clone(&self.transfers),
            target,
            node: node.clone(),
        }
    }
}

/// One target of openraft's messages.
pub(crate) struct Peer<E: Env> {
    env: E,
    keeper: Arc<Keeper>,
    disks: Arc<Disks>,
    transport: Arc<dyn Transport>,
    transfers: Arc<AtomicU64>,
    target: NodeId,
    node: BasicNode,
}

fn unreachable<C: openraft::RaftTypeConfig>(error: &TransportError) -> RPCError<C> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn not_answered<C: openraft::RaftTypeConfig>(error: TransportError) -> RPCError<C> {
    match error {
        TransportError::Unreachable { .. } => unreachable(&error),
        TransportError::NoAnswer { .. } => odd(error),
    }
}

fn answer_in<E: Env>(body: &[u8]) -> Result<PeerResponse<E>, RPCError<TypeConfig<E>>> {
    match codec::decode(body).map_err(odd)? {
        PeerResponse::Failed(reason) => Err(odd(reason)),
        response => Ok(response),
    }
}

fn odd<C: openraft::RaftTypeConfig>(what: impl ToString) -> RPCError<C> {
    RPCError::Network(NetworkError::new(&AnyError::error(what)))
}

impl<E: Env> Peer<E> {
    async fn ask(
        &self,
        request: &PeerRequest<E>,
        patience: Duration,
    ) -> Result<PeerResponse<E>, RPCError<TypeConfig<E>>> {
        let body = codec::encode(request);
        let called = self.transport.call(self.target, &self.node, body, patience).await;
        answer_in(&called.map_err(not_answered)?)
    }
}

impl<E: Env> Peer<E> {
    /// [`Bug::PipelinedAppends`]: the next append does not wait for this one's answer, which counts whenever it comes,
    /// as an answer to the last one sent.
    async fn ask_in_pipeline(
        &self,
        leader: LeaderId,
        append: &PeerRequest<E>,
        patience: Duration,
    ) -> Result<PeerResponse<E>, RPCError<TypeConfig<E>>> {
        let (keeper, env, target) = (Arc::clone(&self.keeper), self.env.clone(), self.target);
        let (transport, node) = (Arc::clone(&self.transport), self.node.clone());
        let body = codec::encode(append);
        let (answers, answered) = oneshot::channel();
        self.env.spawn(async move {
            let answer = transport.call(target, &node, body, PIECE_PATIENCE).await;
            let Ok(answer) = answer.map(|body| codec::decode::<PeerResponse<E>>(&body)) else {
                return;
            };
            if let Ok(PeerResponse::Append { response, .. }) = &answer
                && !matches!(response, AppendEntriesResponse::HigherVote(_))
            {
                keeper.acknowledged(leader, target, env.boot_now(), env.boot_now());
            }
            drop(answers.send(answer));
        });
        match self.env.timeout(patience, answered).await {
            Some(Ok(answer)) => answer.map_err(odd),
            _ => Err(odd("the time was up")),
        }
    }

    /// Vouches for the target, which has started, or condemns it (`disk.rs`).
    async fn prove(
        &self,
        found: DiskMark,
        committed: u64,
        patience: Duration,
    ) -> Result<(), RPCError<TypeConfig<E>>> {
        let refused = self.disks.judge(self.target, found).err();
        let request = match refused.filter(|_| !on(Bug::DiskCounterIgnored)) {
            None => {
                let counters = self.disks.known().into_iter().collect();
                PeerRequest::Vouch { boot: found.boot, counters, committed }
            }
            Some(why) => {
                tracing::error!(node = self.target, why, "a node is refused");
                let condemn = PeerRequest::Condemn { boot: found.boot, why: why.clone() };
                self.ask(&condemn, patience).await?;
                return Err(odd(why));
            }
        };
        self.ask(&request, patience).await.map(drop)
    }
}

fn unexpected<C: openraft::RaftTypeConfig>() -> RPCError<C> {
    odd("a peer gave an answer of another kind")
}

impl<E: Env> RaftNetworkV2<TypeConfig<E>> for Peer<E> {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<E>>, RPCError<TypeConfig<E>>> {
        let leader = *rpc.vote.leader_id();
        let committed = rpc.leader_commit.map_or(0, |id| id.index);
        let append = PeerRequest::Append { rpc, told: self.disks.told() };
        let mut sent = self.env.boot_now();
        let mut answer = if on(Bug::PipelinedAppends) {
            self.ask_in_pipeline(leader, &append, option.hard_ttl()).await?
        } else {
            self.ask(&append, option.hard_ttl()).await?
        };
        if let PeerResponse::Unproved { found } = answer {
            self.prove(found, committed, option.hard_ttl()).await?;
            sent = self.env.boot_now();
            answer = self.ask(&append, option.hard_ttl()).await?;
        }
        match answer {
            PeerResponse::Append { response, told } => {
                self.disks.learn([(self.target, told)]);
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    self.keeper.acknowledged(leader, self.target, sent, self.env.boot_now());
                }
                Ok(response)
            }
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E>>, RPCError<TypeConfig<E>>> {
        match self.ask(&PeerRequest::Vote(rpc), option.hard_ttl()).await? {
            PeerResponse::Vote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E>>, RPCError<TypeConfig<E>>> {
        match self.ask(&PeerRequest::PreVote(rpc), option.hard_ttl()).await? {
            PeerResponse::Vote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<E>>, RPCError<TypeConfig<E>>> {
        // Rule 6: the self-lease ends before the message leaves, whoever decided to send it.
        self.keeper.hand_over(self.env.boot_now());
        self.ask(&PeerRequest::TransferLeader(req), option.hard_ttl()).await?;
        Ok(Ok(()))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig<E>, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<E>>, StreamingError<TypeConfig<E>>> {
        match E::Runtime::select2(cancel, self.send_snapshot(vote, snapshot)).await {
            Select2::First(closed) => Err(StreamingError::Closed(closed)),
            Select2::Second(sent) => sent,
        }
    }
}

impl<E: Env> Peer<E> {
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig<E>, SnapshotData>,
    ) -> Result<SnapshotResponse<TypeConfig<E>>, StreamingError<TypeConfig<E>>> {
        let SnapshotData::Local(checkpoint) = snapshot.snapshot else {
            return Err(odd("only an own snapshot is sent").into());
        };
        let transfer = self.transfers.fetch_add(1, Ordering::Relaxed);
        let committed = snapshot.meta.last_log_id.map_or(0, |id| id.index);
        let mut number = 0;
        for (file, len) in checkpoint.files() {
            let mut offset = 0;
            // An empty file is sent too: its one piece is empty.
            loop {
                let (source, name) = (Arc::clone(&checkpoint), file.clone());
                let bytes = self
                    .env
                    .blocking(move || source.read(&name, offset, PIECE_BYTES))
                    .await
                    .map_err(odd)?;
                let sent = bytes.len() as u64;
                let file = file.clone();
                let piece = PeerRequest::SnapshotPiece { transfer, number, file, offset, bytes };
                let mut answer = self.ask(&piece, PIECE_PATIENCE).await?;
                if let PeerResponse::Unproved { found } = answer {
                    // It took nothing of that: it is sent again once its disk is proved.
                    self.prove(found, committed, PIECE_PATIENCE).await?;
                    answer = self.ask(&piece, PIECE_PATIENCE).await?;
                }
                if !matches!(answer, PeerResponse::Ok) {
                    return Err(unexpected().into());
                }
                number += 1;
                offset += sent;
                if offset >= len || sent == 0 {
                    break;
                }
            }
        }
        let done = PeerRequest::SnapshotDone {
            transfer,
            pieces: number,
            vote,
            last_log_id: snapshot.meta.last_log_id,
            membership: snapshot.meta.last_membership,
        };
        self.have_it_installed(&done).await
    }

    /// Asks again when no answer comes: it may have been lost, and installing may take a while.
    async fn have_it_installed(
        &self,
        done: &PeerRequest<E>,
    ) -> Result<SnapshotResponse<TypeConfig<E>>, StreamingError<TypeConfig<E>>> {
        let body = codec::encode(done);
        let end = self.env.boot_now() + INSTALL_PATIENCE;
        loop {
            match self.transport.call(self.target, &self.node, body.clone(), PIECE_PATIENCE).await {
                Ok(answer) => match answer_in(&answer)? {
                    PeerResponse::Snapshot(response) => return Ok(response),
                    _ => return Err(unexpected().into()),
                },
                Err(error) if self.env.boot_now() >= end => return Err(not_answered(error).into()),
                Err(_) => self.env.sleep(AGAIN).await,
            }
        }
    }
}
