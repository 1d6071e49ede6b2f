//! The sync comes before the acknowledgement. (`kill -9` proves nothing: the page cache survives it.)

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_model::Timestamp;
use keyward_raft::{
    BasicNode, BoxFuture, Node, NodeConfig, ProposeError, Transport, TransportError,
};
use keyward_state::{
    Batch, Checkpoint, Command, Envelope, Install, Look, MemStore, Store, Table, Timers, Visit,
};

/// A store whose syncs can be held up, or made to fail.
#[derive(Clone, Default)]
struct Gated {
    inner: MemStore,
    closed: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
    waiting: Arc<AtomicU64>,
}

impl Store for Gated {
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.inner.get(table, key)
    }

    fn scan(&self, table: Table, visit: Visit<'_>) -> io::Result<()> {
        self.inner.scan(table, visit)
    }

    fn at_one_moment(&self, look: Look<'_>) -> io::Result<()> {
        self.inner.at_one_moment(look)
    }

    fn write(&self, batch: Batch, sync: bool) -> io::Result<()> {
        if sync {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            while self.closed.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            if self.broken.load(Ordering::SeqCst) {
                return Err(io::Error::other("the disk says no"));
            }
        }
        self.inner.write(batch, sync)
    }

    fn checkpoint(&self) -> io::Result<Arc<dyn Checkpoint>> {
        self.inner.checkpoint()
    }

    fn purge(&self, tables: &[Table]) -> io::Result<()> {
        self.inner.purge(tables)
    }

    fn begin_install(&self) -> io::Result<Box<dyn Install>> {
        self.inner.begin_install()
    }
}

struct Nobody;

impl Transport for Nobody {
    fn call(
        &self,
        target: u64,
        _: &BasicNode,
        _: Vec<u8>,
        _: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let reason = "there is no other node".to_owned();
        Box::pin(std::future::ready(Err(TransportError::Unreachable { node: target, reason })))
    }
}

async fn start(log: Arc<dyn Store>, state: Arc<dyn Store>) -> Arc<Node<RealEnv>> {
    let config = NodeConfig::new(1, "127.0.0.1:1".to_owned(), Timers::QUICK);
    Node::start(config, RealEnv, log, state, Arc::new(Nobody)).await.expect("a node")
}

/// Any command will do: before the founding it is refused, and the refusal is its outcome.
fn envelope(id: u8) -> Envelope {
    let key = keyward_model::KeyId::from_random([1; 16]);
    Envelope { id: [id; 16], time: Timestamp(0), command: Command::CancelDeletion { key } }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_acknowledged_only_after_the_sync_that_covers_it() {
    let (log, state) = (Gated::default(), MemStore::default());
    let node = start(Arc::new(log.clone()), Arc::new(state.clone())).await;
    node.found().await.expect("founded");
    drop(node.propose(envelope(1), Duration::from_secs(5)).await.expect("acknowledged"));
    assert_eq!(log.inner.unsynced(), 0);

    log.closed.store(true, Ordering::SeqCst);
    let before = log.waiting.load(Ordering::SeqCst);
    let proposer = Arc::clone(&node);
    let mut pending = <RealEnv as Env>::Runtime::spawn(async move {
        proposer.propose(envelope(2), Duration::from_secs(10)).await
    });
    while log.waiting.load(Ordering::SeqCst) == before {
        RealEnv.sleep(Duration::from_millis(1)).await;
    }
    let early = RealEnv.timeout(Duration::from_millis(300), &mut pending).await;
    assert!(early.is_none(), "acknowledged while its sync was held up");
    log.closed.store(false, Ordering::SeqCst);
    drop(pending.await.expect("the task ends").expect("acknowledged"));

    // A power cut right after: what was acknowledged is there.
    node.stop().await;
    let again = start(Arc::new(log.inner.crash(0)), Arc::new(state.crash(0))).await;
    let end = RealEnv.boot_now() + Duration::from_secs(5);
    while again.state().outcome(&[2; 16]).is_none() {
        assert!(RealEnv.boot_now() < end, "an acknowledged change was lost");
        RealEnv.sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_does_not_sync_stops_the_node_and_acknowledges_nothing() {
    let log = Gated::default();
    let node = start(Arc::new(log.clone()), Arc::new(MemStore::default())).await;
    node.found().await.expect("founded");
    drop(node.propose(envelope(1), Duration::from_secs(5)).await.expect("acknowledged"));
    log.broken.store(true, Ordering::SeqCst);
    let refused = node.propose(envelope(2), Duration::from_secs(1)).await;
    assert_eq!(refused, Err(ProposeError::Unknown));
    let end = RealEnv.boot_now() + Duration::from_secs(5);
    while node.fatal().is_none() {
        assert!(RealEnv.boot_now() < end, "the failure was not noticed");
        RealEnv.sleep(Duration::from_millis(10)).await;
    }
    assert!(node.fatal().is_some_and(|why| why.contains("the disk says no")));
}
