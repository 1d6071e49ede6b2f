//! Nodes over a network that the test can look at and spoil.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_model::{KeyId, Timestamp};
use keyward_raft::{
    BasicNode, BoxFuture, Node, NodeConfig, SnapshotPace, Transport, TransportError,
};
use keyward_state::{Command, Envelope, MemStore, Timers};
use parking_lot::Mutex;

/// Heartbeats are shorter than this, appends with a command longer.
const HEARTBEAT_BYTES_MAX: usize = 60;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Network {
    nodes: Mutex<BTreeMap<u64, Arc<Node<RealEnv>>>>,
    in_flight: Mutex<BTreeMap<u64, u64>>,
    most: AtomicU64,
    appends: AtomicU64,
    pieces: AtomicU64,
    installs: AtomicU64,
}

/// After the schema version comes the kind of message.
const APPEND: u8 = 0;
const SNAPSHOT_PIECE: u8 = 4;
const SNAPSHOT_DONE: u8 = 5;

struct Link(Arc<Network>, u64);

impl Transport for Link {
    fn call(
        &self,
        target: u64,
        _: &BasicNode,
        body: Vec<u8>,
        _: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let (network, from) = (Arc::clone(&self.0), self.1);
        Box::pin(async move {
            let kind = body[1];
            let counted = kind == APPEND && body.len() > HEARTBEAT_BYTES_MAX;
            if counted {
                network.appends.fetch_add(1, Ordering::SeqCst);
                let mut in_flight = network.in_flight.lock();
                let now = in_flight.entry(target).or_default();
                *now += 1;
                network.most.fetch_max(*now, Ordering::SeqCst);
            }
            RealEnv.sleep(Duration::from_millis(2)).await;
            let node = network.nodes.lock().get(&target).cloned();
            let answer = match node {
                Some(node) => Ok(node.answer(from, body).await),
                None => {
                    let reason = "not there yet".to_owned();
                    Err(TransportError::Unreachable { node: target, reason })
                }
            };
            if counted {
                *network.in_flight.lock().entry(target).or_default() -= 1;
            }
            if kind == SNAPSHOT_PIECE {
                network.pieces.fetch_add(1, Ordering::SeqCst);
            }
            // The first answer about an install gets lost.
            if kind == SNAPSHOT_DONE && network.installs.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(TransportError::NoAnswer { node: target, reason: "lost".to_owned() });
            }
            answer
        })
    }
}

fn envelope(id: u64) -> Envelope {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.to_be_bytes());
    let key = KeyId::from_random([1; 16]);
    let command = Command::SetDescription { key, description: "d".repeat(40) };
    Envelope { id: bytes, time: Timestamp(0), command }
}

/// Nodes 1 to 2; node 1 has founded a Region of its own.
async fn two_nodes(
    network: &Arc<Network>,
    snapshots: SnapshotPace,
) -> (Arc<Node<RealEnv>>, Arc<MemStore>) {
    let mut last = Arc::new(MemStore::default());
    for id in 1..=2 {
        let mut config = NodeConfig::new(id, format!("127.0.0.1:{id}"), Timers::DEFAULT);
        config.snapshots = snapshots;
        let (log, state) = (Arc::new(MemStore::default()), Arc::new(MemStore::default()));
        last = Arc::clone(&state);
        let link = Arc::new(Link(Arc::clone(network), id));
        let node = Node::start(config, RealEnv, log, state, link).await.expect("a node");
        network.nodes.lock().insert(id, node);
    }
    let leader = network.nodes.lock()[&1].clone();
    leader.found().await.expect("founded");
    drop(leader.propose(envelope(0), PATIENCE).await.expect("acknowledged"));
    (leader, last)
}

/// What comes after the last piece of a snapshot takes no second transfer when its answer gets lost, and is not
/// done twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_at_the_end_of_a_snapshot_costs_no_second_one() {
    let network = Arc::new(Network::default());
    let (leader, state) = two_nodes(&network, SnapshotPace { every: 20, kept: 0 }).await;
    for id in 1..=100 {
        drop(leader.propose(envelope(id), PATIENCE).await.expect("acknowledged"));
    }
    leader.add_learner(2, "127.0.0.1:2", PATIENCE).await.expect("added");
    let (follower, applied) = (network.nodes.lock()[&2].clone(), leader.state().applied);
    let mut tries = 0;
    while follower.state().applied < applied {
        tries += 1;
        assert!(tries < 500, "the follower has only {} of {applied}", follower.state().applied);
        RealEnv.sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(network.pieces.load(Ordering::SeqCst), 1, "a small snapshot is one piece");
    assert_eq!(network.installs.load(Ordering::SeqCst), 2, "asked again");
    assert_eq!(state.installs(), 1, "and installed once");
}

/// Leases (and openraft's own `ReadIndex`) rest on it: with several appends in flight an acknowledgement would be
/// credited to the last one sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_append_with_entries_is_in_flight_at_a_time() {
    let network = Arc::new(Network::default());
    let (leader, _) = two_nodes(&network, SnapshotPace::default()).await;
    leader.add_learner(2, "127.0.0.1:2", PATIENCE).await.expect("added");
    leader.promote(2, PATIENCE).await.expect("promoted");
    let proposers: Vec<_> = (0..30)
        .map(|proposer| {
            let leader = Arc::clone(&leader);
            <RealEnv as Env>::Runtime::spawn(async move {
                // Each at a pace of its own, so that an append is under way whenever the next is due.
                for round in 1..=20 {
                    RealEnv.sleep(Duration::from_micros(300 * proposer)).await;
                    let envelope = envelope(proposer * 100 + round);
                    let outcome = leader.propose(envelope, Duration::from_secs(20)).await;
                    drop(outcome.expect("acknowledged"));
                }
            })
        })
        .collect();
    for proposer in proposers {
        proposer.await.expect("it ends");
    }
    assert!(network.appends.load(Ordering::SeqCst) > 20, "appends were not seen");
    assert_eq!(network.most.load(Ordering::SeqCst), 1);
}

/// A node that joins while another one's joining is not committed yet waits for that, and is not refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_are_added_at_once_are_added_one_after_the_other() {
    let network = Arc::new(Network::default());
    let (leader, _) = two_nodes(&network, SnapshotPace::default()).await;
    leader.add_learner(2, "127.0.0.1:2", PATIENCE).await.expect("added");
    // From here on an entry is committed when node 2 has it as well.
    leader.promote(2, PATIENCE).await.expect("promoted");
    let add = async |node: u64, address| leader.add_learner(node, address, PATIENCE).await;
    let (third, fourth) = futures_util::join!(add(3, "127.0.0.1:3"), add(4, "127.0.0.1:4"));
    assert_eq!((third, fourth), (Ok(()), Ok(())));
    assert_eq!(leader.members().len(), 4);
}
