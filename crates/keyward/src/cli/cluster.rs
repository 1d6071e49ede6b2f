//! `keyward cluster`: the nodes of the Region.

use clap::Subcommand;
use keyward_client::Repeat;
use keyward_proto::v1;
use serde_json::{Value, json};

use super::connect::ConnectArgs;
use super::output::{Format, date, done, list, one, sayln};
use crate::error::Failure;
use crate::{recover, setup};

#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Found a Region on this machine: authority, first operator, first node
    #[command(
        after_help = "Example:\n  keyward cluster init --region eu-west-1 --address kms-1.example.com:7100"
    )]
    Init(setup::InitArgs),
    /// Invite one more node: prints a token, good once and for a short time
    #[command(
        after_help = "Example:\n  keyward cluster invite | ssh kms-2 keyward cluster join - --address kms-2.example.com:7100"
    )]
    Invite {
        /// Seconds that it holds, 1 to 86400
        #[arg(long, default_value_t = 900)]
        valid: u32,
    },
    /// Make this machine a node of the Region that invited it
    #[command(
        after_help = "Example:\n  keyward cluster join TOKEN --address kms-2.example.com:7100"
    )]
    Join(setup::JoinArgs),
    /// Go on alone after a majority was lost for good. To be run on the survivor, with its node stopped. Without
    /// --lost it only shows what it would do
    #[command(
        after_help = "Example:\n  keyward cluster recover --config /etc/keyward/keyward.toml --lost 2,3"
    )]
    Recover(recover::RecoverArgs),
    /// Show the nodes, who leads, leases and roots
    Status,
    /// Add a node that is running and waits
    #[command(after_help = "Example:\n  keyward cluster add 4 10.0.0.4:7100 --timeout 60")]
    Add {
        /// Its id, never used before in this Region
        node: u64,
        /// host:port of its gRPC door
        address: String,
        /// It serves calls and does not vote
        #[arg(long)]
        learner: bool,
    },
    /// Remove a node
    Remove { node: u64 },
    /// Hand leadership over
    Transfer {
        /// To this node; any voter when absent
        #[arg(long)]
        to: Option<u64>,
    },
    /// Make a new domain key the active one
    RotateDomainKey,
}

pub async fn cluster(
    connect: &ConnectArgs,
    format: Format,
    command: ClusterCommand,
) -> Result<(), Failure> {
    let operator = || connect.operator();
    match command {
        ClusterCommand::Init(args) => setup::init(args, format).await?,
        ClusterCommand::Recover(args) => recover::recover(args, format).await?,
        ClusterCommand::Join(args) => setup::join(args, format).await?,
        ClusterCommand::Invite { valid } => setup::invite(&operator()?, format, valid).await?,
        ClusterCommand::Status => {
            let request = v1::ClusterStatusRequest {};
            let status = operator()?
                .operator(
                    Repeat::Safe,
                    request,
                    |mut c, r| async move { c.cluster_status(r).await },
                )
                .await?;
            show(format, status);
        }
        ClusterCommand::Add { node, address, learner } => {
            let request = v1::AddNodeRequest { node_id: node, address, learner };
            operator()?
                .operator(Repeat::IfUnsent, request, |mut c, r| async move { c.add_node(r).await })
                .await?;
            done(format, &format!("node {node} was added"));
        }
        ClusterCommand::Remove { node } => {
            let request = v1::RemoveNodeRequest { node_id: node };
            operator()?
                .operator(
                    Repeat::IfUnsent,
                    request,
                    |mut c, r| async move { c.remove_node(r).await },
                )
                .await?;
            done(format, &format!("node {node} was removed"));
        }
        ClusterCommand::Transfer { to } => {
            let request = v1::TransferLeadershipRequest { to };
            let answer = operator()?
                .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.transfer_leadership(r).await
                })
                .await?;
            done(format, &format!("node {} leads", answer.leader_id));
        }
        ClusterCommand::RotateDomainKey => {
            let request = v1::RotateDomainKeyRequest {};
            let answer = operator()?
                .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.rotate_domain_key(r).await
                })
                .await?;
            one(format, &[("DomainKeyId", json!(answer.domain_key_id))]);
        }
    }
    Ok(())
}

fn show(format: Format, status: v1::ClusterStatusResponse) {
    let columns = [
        "Node",
        "Address",
        "Role",
        "Leader",
        "Up",
        "Term",
        "Applied",
        "MemoryMb",
        "Lease",
        "LeaseMs",
        "ClockOffMs",
        "Roots",
    ];
    let rows: Vec<Vec<Value>> = status
        .nodes
        .into_iter()
        .map(|node| {
            vec![
                json!(node.node_id),
                json!(node.address),
                json!(node.role),
                json!(node.leader),
                json!(node.reachable),
                json!(node.term),
                json!(node.applied),
                json!(node.resident_bytes >> 20),
                json!(node.lease),
                json!(node.lease_ms),
                json!(node.clock_off_ms),
                json!(node.root_ids),
            ]
        })
        .collect();
    if format == Format::Table {
        let moved = match status.clock_offset_ms {
            0 => String::new(),
            ms => format!(" (moved ahead by {} h)", ms / 3_600_000),
        };
        let leader = status.leader_id.map_or("none".to_owned(), |id| format!("node {id}"));
        if status.voters_change {
            sayln!(
                "The voters are changing: until that is done, the old ones and the new ones are both needed.\n"
            );
        }
        sayln!(
            "Region {} ({}, {})  time: {}{moved}  leader: {leader}  keys: {}  domain keys: {} (active {})\n",
            status.region,
            status.region_id,
            status.purpose,
            date(status.time.as_ref()),
            status.keys,
            status.domain_keys,
            status.active_domain_key_id
        );
    }
    list(format, "Nodes", &columns, &rows);
}
