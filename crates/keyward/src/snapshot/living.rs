//! Whether the Region that is to be restored lives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyward_door_grpc::{GrpcTransport, TlsFiles};
use keyward_env::RealEnv;
use keyward_model::NodeId;
use keyward_raft::{NodeStatus, ask_status};

use crate::error::Failure;

/// How long a node may take to show that it lives.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// The members that answer, and what they say.
pub async fn members_that_answer(
    tls: &TlsFiles,
    members: &BTreeMap<NodeId, String>,
) -> Result<Vec<NodeStatus>, Failure> {
    let transport = Arc::new(GrpcTransport::new(tls).map_err(Failure::from_error)?);
    let asked = members.iter().map(|(node, address)| {
        let transport = Arc::clone(&transport);
        async move { ask_status::<RealEnv>(&*transport, *node, address, ANSWER_PATIENCE).await }
    });
    Ok(futures_util::future::join_all(asked).await.into_iter().flatten().collect())
}

/// The same in words.
pub fn told(living: &[NodeStatus], members: &BTreeMap<NodeId, String>) -> String {
    let said = living.iter().map(|status| {
        let at = members.get(&status.node).map_or("?", String::as_str);
        let follows = match status.leader {
            Some(leader) if leader == status.node => "it leads".to_owned(),
            Some(leader) => format!("it follows node {leader}"),
            None => "it has no leader".to_owned(),
        };
        format!(
            "node {} answers at {at}, {follows} and has applied {}",
            status.node, status.applied
        )
    });
    said.collect::<Vec<_>>().join("; ")
}
