//! What a node of `dev up --regions` suffers by itself, as files say that the supervisor writes: its wall clock is put wrong
//! (`keyward dev fault skew`), and it does not reach the other nodes of its Region (`keyward dev fault isolate`). Its full
//! disk is a limit that the kernel holds.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyward_door_grpc::GrpcTransport;
use keyward_env::{Env, RealEnv, skew_wall_clock};
use keyward_model::NodeId;
use keyward_raft::{BasicNode, BoxFuture, Transport, TransportError};
use parking_lot::RwLock;

/// Names the file. Only the supervisor of `dev up --regions` sets it.
pub const SKEW_FILE: &str = "KEYWARD_DEV_SKEW_FILE";
/// Names the file that says which nodes of the Region are cut off. Only that supervisor sets it.
pub const ISOLATED_FILE: &str = "KEYWARD_DEV_ISOLATED_FILE";
/// Between looks at it.
const LOOK: Duration = Duration::from_millis(100);

/// Milliseconds that are asked for; none where there is no such file.
fn asked(file: &Path) -> i64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Begins, in a node that is a rehearsal's.
pub fn begin() {
    let Some(file) = std::env::var_os(SKEW_FILE).map(PathBuf::from) else { return };
    skew_wall_clock(asked(&file));
    RealEnv.spawn(async move {
        loop {
            RealEnv.sleep(LOOK).await;
            let file = file.clone();
            skew_wall_clock(RealEnv.blocking(move || asked(&file)).await);
        }
    });
}

/// What a node calls the others with: in a rehearsal with holes in it.
pub fn peers(me: NodeId, transport: Arc<GrpcTransport>) -> Arc<dyn Transport> {
    let Some(file) = std::env::var_os(ISOLATED_FILE).map(PathBuf::from) else { return transport };
    let isolated = Arc::new(RwLock::new(cut_off(&file)));
    let peers = Arc::new(Peers { me, transport, isolated: Arc::clone(&isolated) });
    RealEnv.spawn(async move {
        loop {
            RealEnv.sleep(LOOK).await;
            let file = file.clone();
            let now = RealEnv.blocking(move || cut_off(&file)).await;
            *isolated.write() = now;
        }
    });
    peers
}

/// Nodes that are cut off.
fn cut_off(file: &Path) -> BTreeSet<NodeId> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().filter_map(|node| node.parse().ok()).collect()
}

/// Every node asks before it calls another one, so that what is cut off neither hears nor is heard.
struct Peers {
    me: NodeId,
    transport: Arc<GrpcTransport>,
    isolated: Arc<RwLock<BTreeSet<NodeId>>>,
}

impl Transport for Peers {
    fn call(
        &self,
        target: NodeId,
        node: &BasicNode,
        body: Vec<u8>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let cut = {
            let isolated = self.isolated.read();
            target != self.me && (isolated.contains(&self.me) || isolated.contains(&target))
        };
        if !cut {
            return self.transport.call(target, node, body, patience);
        }
        Box::pin(async move {
            // Nobody is told: it is as if the message were lost on its way.
            RealEnv.sleep(patience).await;
            Err(TransportError::NoAnswer { node: target, reason: "cut off".to_owned() })
        })
    }
}
