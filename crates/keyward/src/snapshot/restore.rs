//! `keyward snapshot restore`: a Region begins anew out of its backup.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use keyward_audit::{RealFiles, Record, Trail, TrailConfig, Value as Recorded};
use keyward_door_grpc::{Key, TlsFiles};
use keyward_env::{Env, RealEnv};
use keyward_hsm::{RootCopy, RootId};
use keyward_model::{DomainKeyId, KeyId, NodeId, Timestamp};
use keyward_raft::{RocksStore, found_again};
use keyward_service::{open_authority, signing_request};
use keyward_snapshot::{Header, SnapshotError};
use keyward_state::{Batch, Restoring, State, Store, Table, restore as change};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::NodeOf;
use super::content::{Before, Content, Intake, before_keys, open};
use super::hand::{Hand, named};
use super::later::Later;
use super::living::{members_that_answer, told};
use super::place::Placing;
use super::refusal::Refusal;
use super::show::{certificate, moment};
use crate::cli::output::{Format, one, sayln};
use crate::config::{Config, Overrides};
use crate::error::Failure;
use crate::{pem, setup};

/// Node ids of a restored Region begin so far behind those in the backup, plus a random part: nodes may have joined, or
/// been restored, that the backup does not know of, and no id is used twice.
const ID_DISTANCE: u64 = 1000;
const ID_RANDOM: u64 = 100_000;

#[derive(Args, Clone, Debug)]
pub struct RestoreArgs {
    /// The snapshot
    file: PathBuf,
    #[command(flatten)]
    node: NodeOf,
    /// What is left of the lost Region, to learn what was deleted after the backup: a lost node's data folder, or a later
    /// snapshot. May be given several times
    #[arg(long, value_name = "DIR|FILE")]
    tombstones: Vec<PathBuf>,
    /// Bring back this key, which was deleted after the backup. May be given several times, a key each
    #[arg(long, value_name = "KEY")]
    resurrect: Vec<KeyId>,
    /// Restore although nodes of the Region answer. Costs what they acknowledged since the backup, and makes two Regions of
    /// one name until they are stopped
    #[arg(long)]
    over_a_living_region: bool,
}

/// The node that the Region begins anew with.
struct First {
    node: NodeId,
    certificate: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
    authority: Vec<u8>,
}

/// What came of it.
struct Restored {
    history: [u8; 16],
    content: Content,
    doomed: BTreeSet<KeyId>,
    aside: Vec<PathBuf>,
}

pub async fn restore(format: Format, args: RestoreArgs) -> Result<(), Failure> {
    let path = &args.node.config;
    let config = Config::load(path, &Overrides::default()).map_err(Failure::from_error)?;
    if let Some(id) = config.node.id {
        return Err(Refusal::NamesAnId(id).into());
    }
    let header = open(&args.file, "restoring")?.header().clone();
    if header.region != config.node.region.as_str() {
        let (found, config_name) = (header.region, named(path));
        let expected = config.node.region;
        return Err(Refusal::OtherRegion { found, expected, config: config_name }.into());
    }
    let (mut placing, draft) = Placing::begin(&config)?;
    // Other roots open the snapshot: the node's own may be made.
    let make = !args.node.roots_of.is_empty();
    if make {
        placing.expect_root(&config.root);
    }
    let hand = Hand::open(&config, &args.node, make).await?;
    let before = look_before(&args.file, &hand).await?;
    let first = first_node(&config, &before, &hand)?;
    let living = members_that_answer(&first.tls(), &before.standing.members).await?;
    if !living.is_empty() && !args.over_a_living_region {
        let nodes = told(&living, &before.standing.members);
        return Err(Refusal::Lives { region: header.region, nodes }.into());
    }
    let region_id = header.region_id().map_err(Failure::from_error)?;
    let mut later = Later::look(&hand, &args.tombstones, region_id).await?;
    later.forget_known(&before.state);
    check_resurrections(&args.resurrect, &later)?;
    let restored = fill(&args, &config, &hand, &later, &first, &before, &draft).await?;
    let restored = first.settle(&config, restored, &mut placing).await?;
    record(&config, &mut placing, &header, &first, &restored).await?;
    placing.finish(&config, &draft)?;
    tell(format, &args, &header, &first, &later, &restored);
    Ok(())
}

/// Reads what comes before the keys, and opens all domain keys.
async fn look_before(file: &Path, hand: &Hand) -> Result<Before, Failure> {
    let reader = open(file, "opening")?;
    let opener = hand.opener(reader.header()).await?;
    let before = RealEnv.blocking(move || before_keys(reader, opener)).await?;
    Hand::open_domain_keys(&hand.hsm, &before.state).await?;
    Ok(before)
}

fn check_resurrections(wanted: &[KeyId], later: &Later) -> Result<(), Refusal> {
    for key in wanted {
        if !later.has(key) {
            return Err(Refusal::NotDeleted(*key));
        }
        if key.is_multi_region() {
            return Err(Refusal::MultiRegion(*key));
        }
    }
    Ok(())
}

/// Names the node, and has the Region's authority make it one.
fn first_node(config: &Config, before: &Before, hand: &Hand) -> Result<First, Failure> {
    let facts = before.state.region.as_ref().ok_or_else(|| {
        Failure::from_error(SnapshotError::Rows("they are of no Region".to_owned()))
    })?;
    if facts.timers != config.timers.timers() {
        return Err(Failure::new(format!(
            "the snapshot's Region runs with {:?}, and the configuration says {:?}",
            facts.timers, config.timers
        ))
        .next("set `timers` to the Region's own"));
    }
    let authority = facts.ca_certificate.clone();
    let place = &config.tls.authority;
    if place.exists() && certificate(place)? != authority {
        return Err(Refusal::OtherAuthority { file: named(place) }.into());
    }
    let mut random = [0; 8];
    RealEnv.entropy().fill(&mut random);
    let distance = ID_DISTANCE + u64::from_le_bytes(random) % ID_RANDOM;
    let members = before.standing.members.keys().copied().max().unwrap_or(0);
    let node = before.state.unused_node_id(distance).max(members + distance);
    let opened = open_authority(&hand.hsm, facts).map_err(Failure::from_error)?;
    let (key, request) = signing_request().map_err(Failure::from_error)?;
    let mut hosts = vec![setup::host(config)];
    for local in ["localhost", "127.0.0.1"] {
        if !hosts.iter().any(|host| host == local) {
            hosts.push(local.to_owned());
        }
    }
    let now = Timestamp(RealEnv.wall_now_ms());
    let issued = opened
        .issue_node(&request, node, &hosts, &*RealEnv.entropy(), now)
        .map_err(Failure::from_error)?;
    Ok(First { node, certificate: issued.certificate, key, authority })
}

/// Fills the draft's stores: every row, every token tried, then what is new of a restored Region.
async fn fill(
    args: &RestoreArgs,
    config: &Config,
    hand: &Hand,
    later: &Later,
    first: &First,
    before: &Before,
    draft: &Path,
) -> Result<Restored, Failure> {
    let reader = open(&args.file, "restoring")?;
    let opener = hand.opener(reader.header()).await?;
    let doomed = later.doomed(&args.resurrect);
    let (hsm, runtime, skipped) = (Arc::clone(&hand.hsm), Handle::current(), doomed.clone());
    let folder = draft.to_owned();
    let filled = move || -> Result<_, Refusal> {
        let cannot = |why: std::io::Error| SnapshotError::Io(why);
        let store = RocksStore::open(&folder.join("state"), &Table::STATE).map_err(cannot)?;
        let log = RocksStore::open(&folder.join("log"), &Table::LOG).map_err(cannot)?;
        let intake =
            Intake { hsm: &hsm, store: &store, keep_tokens: true, doomed: &skipped, runtime };
        let content = intake.take(reader, opener)?;
        Ok((content, store, log))
    };
    let (mut content, store, log) = RealEnv.blocking(filled).await?;
    content.trailer.check(&first.authority).map_err(Failure::from_error)?;
    let (roots, copies) = roots_of_the_node(hand, &content.state).await?;
    let mut history = [0; 16];
    RealEnv.entropy().fill(&mut history);
    let restoring = Restoring {
        history,
        node: first.node,
        lost: before.standing.members.clone(),
        roots,
        copies,
        deleted: later.tombstones(&doomed, &content.state),
    };
    let (node, address) = (first.node, config.address());
    let changed = move || -> Result<Content, Failure> {
        let mut batch = Batch::default();
        change(&mut content.state, &mut batch, &restoring).map_err(Failure::from_error)?;
        let written =
            store.write(batch, true).and_then(|()| found_again(&log, &store, node, &address));
        written.map_err(|e| Failure::new(format!("the stores cannot be written: {e}")))?;
        Ok(content)
    };
    let content = RealEnv.blocking(changed).await?;
    Ok(Restored { history, content, doomed, aside: Vec::new() })
}

/// The node's own roots, and the copies that they lack.
async fn roots_of_the_node(
    hand: &Hand,
    state: &State,
) -> Result<(Vec<RootId>, Vec<(DomainKeyId, RootCopy)>), Failure> {
    if hand.own.is_empty() {
        return Err(Failure::new(format!(
            "the node's own root is not open: {}",
            hand.absent.join("; ")
        ))
        .next("see to [root] in the configuration: the restored node must open the Region without others' roots"));
    }
    let mut copies = Vec::new();
    for root in &hand.own {
        for id in state.domain_keys_without(root) {
            let copy = hand.hsm.copy_for_root(id, root).await.map_err(Failure::from_error)?;
            copies.push((id, copy));
        }
    }
    Ok((hand.own.clone(), copies))
}

impl First {
    /// What the node shows to others.
    fn tls(&self) -> TlsFiles {
        let text = |label, der: &[u8]| pem::text(label, der).as_bytes().to_vec();
        TlsFiles {
            certificate: text("CERTIFICATE", &self.certificate),
            private_key: Key::new(text("PRIVATE KEY", &self.key)),
            authority: text("CERTIFICATE", &self.authority),
        }
    }

    /// Puts the node's certificate and key in their places; those of a lost node go aside.
    async fn settle(
        &self,
        config: &Config,
        mut restored: Restored,
        placing: &mut Placing,
    ) -> Result<Restored, Failure> {
        let tls = &config.tls;
        for file in [&tls.certificate, &tls.private_key] {
            restored.aside.extend(placing.move_aside(file)?);
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder).map_err(super::refusal::cannot("make", folder))?;
            }
        }
        let files: [(&Path, &str, &[u8], u32); 2] = [
            (&tls.certificate, "CERTIFICATE", &self.certificate, 0o644),
            (&tls.private_key, "PRIVATE KEY", &self.key, 0o600),
        ];
        for (path, label, der, mode) in files {
            placing.expect(path);
            pem::write(path, label, der, mode)?;
        }
        if !tls.authority.exists() {
            placing.expect(&tls.authority);
            pem::write(&tls.authority, "CERTIFICATE", &self.authority, 0o644)?;
        }
        Ok(restored)
    }
}

/// Before it counts, it is on record.
async fn record(
    config: &Config,
    placing: &mut Placing,
    header: &Header,
    first: &First,
    restored: &Restored,
) -> Result<(), Failure> {
    let unwritten = |error: keyward_audit::AuditError| {
        Failure::new(format!("the audit trail cannot be written: {error}; nothing was restored"))
    };
    placing.expect(&config.audit_folder());
    let kept = TrailConfig {
        segment_bytes: config.audit.segment_bytes,
        ..TrailConfig::new(config.audit_folder(), first.node, config.node.region.clone())
    };
    let (trail, _) = RealEnv
        .blocking(move || Trail::open(&RealEnv, Arc::new(RealFiles), kept))
        .await
        .map_err(unwritten)?;
    let history = hex::encode(restored.history);
    let applied = i64::try_from(header.applied).unwrap_or(i64::MAX);
    let details = [
        ("snapshotTaken", Recorded::Int(header.taken_ms)),
        ("snapshotApplied", Recorded::Int(applied)),
        ("snapshotHistory", Recorded::Str(&header.history)),
        ("history", Recorded::Str(&history)),
    ];
    let now = Timestamp(RealEnv.wall_now_ms());
    let event = Record::service_event("RestoreRegion", now, &config.node.region, &details);
    trail.append(&event).map_err(unwritten)?.await.map_err(unwritten)?;
    trail.close().await.map_err(unwritten)
}

fn texts<T: ToString>(items: impl Iterator<Item = T>) -> Value {
    json!(items.map(|item| item.to_string()).collect::<Vec<_>>())
}

fn tell(
    format: Format,
    args: &RestoreArgs,
    header: &Header,
    first: &First,
    later: &Later,
    restored: &Restored,
) {
    let state = &restored.content.state;
    let lost: BTreeMap<_, _> = state.lost.iter().collect();
    let waits = later
        .waiting
        .iter()
        .filter(|key| state.key(key).is_some_and(|key| key.deletion_date.is_none()));
    one(
        format,
        &[
            ("Region", json!(header.region)),
            ("RegionId", json!(header.region_id)),
            ("History", json!(hex::encode(restored.history))),
            ("NodeId", json!(first.node)),
            ("AsOf", json!(moment(header.region_time_ms))),
            ("Keys", json!(state.key_count())),
            ("TokensOpened", json!(restored.content.tokens)),
            ("DeletedLater", texts(restored.doomed.iter())),
            ("Resurrected", texts(args.resurrect.iter())),
            ("WaitedForDeletionLater", texts(waits)),
            ("GivenUp", texts(lost.iter().map(|(node, at)| format!("node {node} ({at})")))),
            ("MovedAside", texts(restored.aside.iter().map(|path| path.display()))),
        ],
    );
    if format == Format::Json {
        return;
    }
    if args.tombstones.is_empty() {
        sayln!(
            "\nWhat was deleted after the backup is not known here, and is back: nothing was given with --tombstones."
        );
    }
    if !restored.doomed.is_empty() {
        sayln!(
            "\nKeys in DeletedLater were deleted after the backup. They did not come back; what is to come back after all is \
             named when the restore is made again, in an empty folder: --resurrect KEY, for each."
        );
    }
    let peers: Vec<String> = state.peer_regions().map(|peer| peer.region.to_string()).collect();
    if !peers.is_empty() {
        sayln!(
            "\nMulti-Region keys are used when one of {} has said how far this Region had come. Look at `keyward region \
             status`; if this node has another address than the lost ones, make a new card (`keyward region card`) and add \
             it there.",
            peers.join(", ")
        );
    }
    sayln!(
        "\nThe Region goes on from here in a new history, with node {} alone.
  1. Start it:         systemctl start keyward   (or: keyward server --config {})
  2. Let others join:  keyward cluster invite    (with empty data folders: the lost nodes are refused)
Operators, principals and their certificates are as they were at the backup.",
        first.node,
        args.node.config.display(),
    );
}
