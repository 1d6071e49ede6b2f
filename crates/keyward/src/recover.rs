//! `keyward cluster recover`: a survivor goes on alone.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use keyward_audit::{RealFiles, Record, Trail, TrailConfig, Value};
use keyward_door_grpc::GrpcTransport;
use keyward_env::{Env, RealEnv};
use keyward_model::{NodeId, Timestamp};
use keyward_raft::{RocksStore, Survey, ask_status, go_on_alone, survey};
use keyward_state::{Store, Table};
use serde_json::json;

use crate::cli::output::{Format, date, one, sayln};
use crate::config::{Config, Overrides};
use crate::error::Failure;
use crate::server;

/// How long another node may take to show that it is alive.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Args, Clone, Debug)]
pub struct RecoverArgs {
    /// The survivor's configuration
    #[arg(
        long,
        env = "KEYWARD_CONFIG",
        default_value = "/etc/keyward/keyward.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    /// The nodes that are given up for good: all others, by their ids
    #[arg(long, value_delimiter = ',', value_name = "NODE,NODE")]
    lost: Vec<NodeId>,
}

/// Shows what would be lost; with `--lost` naming every other node, does it.
pub async fn recover(args: RecoverArgs, format: Format) -> Result<(), Failure> {
    let config = Config::load(&args.config, &Overrides::default()).map_err(Failure::from_error)?;
    let tls = server::tls_files(&config)?;
    let me = server::node_id(&config, &tls)?;
    let data = config.node.data.clone();
    if !data.join("log").exists() {
        return Err(Failure::new(format!("{} holds no node's data", data.display())));
    }
    let open = move || -> std::io::Result<_> {
        let log = RocksStore::open(&data.join("log"), &Table::LOG)?;
        let state = RocksStore::open(&data.join("state"), &Table::STATE)?;
        let found = survey::<RealEnv>(&log, &state)?;
        Ok((log, found))
    };
    let (log, found) = RealEnv.blocking(open).await.map_err(|e| {
        Failure::new(format!("the data folder cannot be opened: {e}"))
            .next("stop this node first: systemctl stop keyward")
    })?;
    if !found.members.contains_key(&me) {
        return Err(Failure::new(format!(
            "node {me} is no member of a Region: it has nothing to recover"
        )));
    }
    let voters = found.members.values().filter(|(_, voter)| *voter).count();
    let mut answers = Vec::new();
    let transport = GrpcTransport::new(&tls).map_err(Failure::from_error)?;
    for (node, (address, _)) in found.members.iter().filter(|(node, _)| **node != me) {
        answers.extend(ask_status::<RealEnv>(&transport, *node, address, ANSWER_PATIENCE).await);
    }
    let votes = |node: &NodeId| found.members.get(node).is_some_and(|(_, voter)| *voter);
    let alive: Vec<String> =
        answers.iter().filter(|s| votes(&s.node)).map(|s| s.node.to_string()).collect();
    if alive.len() + 1 > voters / 2 {
        let others =
            if alive.is_empty() { "no other is needed".to_owned() } else { alive.join(", ") };
        return Err(Failure::new(format!(
            "the Region has its majority: of its {voters} voters this one and {others} are there. Nothing was \
             changed"
        ))
        .next("start this node: systemctl start keyward"));
    }
    if let Some(ahead) = answers.iter().find(|status| status.committed > found.last.0) {
        return Err(Failure::new(format!(
            "node {} is there and has acknowledged changes up to entry {}; this disk ends with entry {}, and what is \
             between would be lost. Nothing was changed",
            ahead.node, ahead.committed, found.last.0
        ))
        .next(format!("stop node {} and recover on that machine instead", ahead.node)));
    }
    let others: BTreeSet<NodeId> =
        found.members.keys().copied().filter(|node| *node != me).collect();
    tell(format, me, &found, &others);
    let named: BTreeSet<NodeId> = args.lost.iter().copied().collect();
    let wanted = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if named.is_empty() {
        return Err(Failure::new("nothing was changed yet").next(format!(
            "if those nodes are gone for good: keyward cluster recover --config {} --lost {wanted}",
            args.config.display()
        )));
    }
    if named != others {
        return Err(Failure::new(
            "--lost must name every other node, and no one else; nothing was changed",
        )
        .next(format!("--lost {wanted}")));
    }
    let mut history = [0; 16];
    RealEnv.entropy().fill(&mut history);
    record(&config, me, &found, &wanted).await?;
    let done: std::io::Result<()> = RealEnv
        .blocking(move || {
            let log: &dyn Store = &log;
            go_on_alone::<RealEnv>(log, &found, me, history)
        })
        .await;
    done.map_err(|e| Failure::new(format!("the log could not be written: {e}")))?;
    if format == Format::Table {
        sayln!(
            "\nNode {me} goes on alone, in a new history. Start it (systemctl start keyward), then invite new nodes \
             (keyward cluster invite).\nNodes {wanted} are refused when they come back: they join anew, with empty \
             data folders."
        );
    }
    Ok(())
}

fn tell(format: Format, me: NodeId, found: &Survey, others: &BTreeSet<NodeId>) {
    let seconds = found.time.0.div_euclid(1000);
    let time = date(Some(&prost_types::Timestamp { seconds, nanos: 0 }));
    let addresses: Vec<String> = others
        .iter()
        .filter_map(|node| {
            found.members.get(node).map(|(address, _)| format!("{node} ({address})"))
        })
        .collect();
    if format == Format::Json {
        one(
            format,
            &[
                ("NodeId", json!(me)),
                ("GivenUp", json!(addresses)),
                ("LastEntry", json!(found.last.0)),
                ("LastTerm", json!(found.last.1)),
                ("Applied", json!(found.applied)),
                ("LastTime", json!(time)),
                ("Keys", json!(found.keys)),
            ],
        );
        return;
    }
    sayln!(
        "Node {me} would go on alone with what is on its disk:
  last entry      {} of term {} ({} applied)
  last change     {time}
  keys            {}
Given up for good: {}
What may be lost: every change that was acknowledged after entry {} and did not reach this node: keys that were
made, disabled, rotated or deleted, principals that were disabled. What they encrypted under keys that are lost
never opens again.
Before you go on: a survivor that is stopped cannot be asked. Run this on each, without --lost, and recover on the
one whose last entry is of the highest term, and among those has the highest number.
What may be gained: changes in this node's log that were never acknowledged take effect.",
        found.last.0,
        found.last.1,
        found.applied,
        found.keys,
        addresses.join(", "),
        found.last.0,
    );
}

/// Before anything is changed, it is on record.
async fn record(config: &Config, me: NodeId, found: &Survey, lost: &str) -> Result<(), Failure> {
    let unwritten = |error: keyward_audit::AuditError| {
        Failure::new(format!("the audit trail cannot be written: {error}; nothing was changed"))
    };
    let kept = TrailConfig {
        segment_bytes: config.audit.segment_bytes,
        ..TrailConfig::new(config.audit_folder(), me, config.node.region.clone())
    };
    let (trail, _) = RealEnv
        .blocking(move || Trail::open(&RealEnv, Arc::new(RealFiles), kept))
        .await
        .map_err(unwritten)?;
    let last = i64::try_from(found.last.0).unwrap_or(i64::MAX);
    let details = [("lostNodes", Value::Str(lost)), ("lastEntry", Value::Int(last))];
    let now = Timestamp(RealEnv.wall_now_ms());
    let event = Record::service_event("RecoverRegion", now, &config.node.region, &details);
    trail.append(&event).map_err(unwritten)?.await.map_err(unwritten)?;
    trail.close().await.map_err(unwritten)
}
