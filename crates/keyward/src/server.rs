//! `keyward server`: one node, from its configuration to its door.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyward_audit::{Keep, RealFiles, Trail, TrailConfig};
use keyward_door_grpc::{Door, DoorConfig, GrpcRegionTransport, GrpcTransport, Key, TlsFiles};
use keyward_env::{Env, RealEnv};
use keyward_hsm::{ArenaConfig, EnvClock, Hsm, HsmConfig};
use keyward_model::{NodeId, Timestamp};
use keyward_raft::{Node, NodeConfig, RocksStore};
use keyward_service::{Audit, Kms};
use keyward_state::Table;

use crate::config::Config;
use crate::dev;
use crate::error::Failure;
use crate::roots::Roots;
use crate::{notify, observe};

/// A leader that is told to stop hands over for at most this long.
const HAND_OVER: Duration = Duration::from_millis(1500);
/// Between looks whether consensus has stopped.
const WATCH: Duration = Duration::from_millis(500);

/// Reads a PEM file; a private key must be closed to others.
fn read_file(path: &Path, private: bool) -> Result<Vec<u8>, Failure> {
    let read =
        || -> std::io::Result<(Vec<u8>, u32)> { Ok((fs::read(path)?, fs::metadata(path)?.mode())) };
    let (bytes, mode) =
        read().map_err(|e| Failure::new(format!("cannot read {}: {e}", path.display())))?;
    if private && mode & 0o077 != 0 {
        return Err(Failure::new(format!(
            "{} has mode {:04o}: others can read the private key",
            path.display(),
            mode & 0o7777
        ))
        .next(format!("chmod 600 {}", path.display())));
    }
    Ok(bytes)
}

/// The files that the configuration names.
pub fn tls_files(config: &Config) -> Result<TlsFiles, Failure> {
    Ok(TlsFiles {
        certificate: read_file(&config.tls.certificate, false)?,
        private_key: Key::new(read_file(&config.tls.private_key, true)?),
        authority: read_file(&config.tls.authority, false)?,
    })
}

/// What a node is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// Serving, until it is told to stop.
    Good,
    /// Founding or joining, for a moment.
    Setup,
}

/// Runs a node until `stop` ends or it cannot go on.
pub async fn run(
    config: Config,
    run_for: For,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), Failure> {
    keyward_hsm::harden_process().map_err(Failure::from_error)?;
    fail_writes_beyond_the_limit()?;
    dev::suffer::begin();
    let tls = tls_files(&config)?;
    let id = node_id(&config, &tls)?;
    let timers = config.timers.timers();
    let door = Door::bind(DoorConfig {
        listen: config.node.listen,
        region: config.node.region.clone(),
        timers,
        tls: tls.clone(),
        spool: config.node.data.clone(),
    })
    .await
    .map_err(|error| {
        let files = [&config.tls.certificate, &config.tls.private_key, &config.tls.authority];
        let [certificate, key, authority] = files.map(|file| file.display());
        Failure::from_error(error)
            .next(format!("look at node.listen, and at {certificate}, {key} and {authority}"))
    })?;
    let observer = match config.observe.listen {
        Some(address) => Some(observe::bind(address).await.map_err(Failure::new)?),
        None => None,
    };
    // Where nobody can read them, none are kept.
    let metrics = observer.as_ref().and_then(|_| observe::start_metrics());

    fs::create_dir_all(&config.node.data)
        .map_err(|e| Failure::new(format!("cannot make {}: {e}", config.node.data.display())))?;
    let opening = config.clone();
    let (roots, open) = RealEnv.blocking(move || Roots::open(&opening)).await?;
    for root in &open {
        tracing::info!(root = %root.identity(), kind = root.kind().name(), "a root is open");
    }
    let hsm_config = HsmConfig {
        cache_max_entries: config.hsm.cache_max_entries,
        arena: ArenaConfig { allow_unlocked: config.hsm.allow_unlocked, ..ArenaConfig::default() },
    };
    let mut open = open.into_iter();
    let first = open.next().ok_or_else(|| Failure::new("this node has no root"))?;
    let hsm = Hsm::new(first, RealEnv.entropy(), &hsm_config).map_err(Failure::from_error)?;
    for root in open {
        hsm.add_root(root).map_err(Failure::from_error)?;
    }
    RealEnv.spawn(hsm.watch_roots(EnvClock::shared(RealEnv), config.hsm.watch()));
    RealEnv.spawn(Arc::clone(&roots).retry(Arc::downgrade(&hsm)));
    if !hsm.is_memory_locked() {
        tracing::warn!("memory for keys is not locked: see hsm.allow_unlocked");
    }

    let node = start_node(&config, id, &tls).await?;
    let state = node.state();
    if let Some(facts) = &state.region
        && facts.region != config.node.region
    {
        return Err(Failure::new(format!(
            "the data folder belongs to Region {}, and the configuration says {}",
            facts.region, config.node.region
        )));
    }
    drop(state);
    let audit = open_trail(&config, id).await?;
    let kms = Kms::new(node, hsm, roots, audit, run_for == For::Good);
    let links = Arc::new(GrpcRegionTransport::default());
    links.follow(kms.node());
    kms.set_region_transport(links);
    kms.set_region_delays(config.regions.delays());
    kms.start();
    if let Some(listener) = observer {
        RealEnv.spawn(observe::serve(listener, Arc::clone(&kms), metrics));
        let alarm = Duration::from_secs(config.regions.alarm_seconds);
        RealEnv.spawn(observe::read_gauges(Arc::clone(&kms), alarm));
    }
    tracing::info!(node = id, region = %config.node.region, listen = %config.node.listen,
        "the node is up");
    serve(door, kms, stop, run_for).await
}

/// Opens the audit trail: a node must not start without.
async fn open_trail(config: &Config, id: NodeId) -> Result<Audit, Failure> {
    let kept = TrailConfig {
        segment_bytes: config.audit.segment_bytes,
        sync: config.audit.sync,
        keep: Keep { bytes: config.audit.keep_bytes, days: config.audit.keep_days },
        ..TrailConfig::new(config.audit_folder(), id, config.node.region.clone())
    };
    let folder = kept.folder.display().to_string();
    let opened = RealEnv
        .blocking(move || Trail::open(&RealEnv, Arc::new(RealFiles), kept))
        .await
        .map_err(|error| {
        Failure::new(format!("the audit trail in {folder} cannot be opened: {error}"))
            .next("a node serves nothing that it cannot record: see to the folder and its disk")
    })?;
    let (trail, recovery) = opened;
    if recovery.from_ring > 0 {
        tracing::info!(records = recovery.from_ring, "audit records were taken up from the ring");
    }
    if let Some(cut) = &recovery.cut {
        tracing::warn!(?cut, "a half-written audit record of an earlier end was cut off");
    }
    for damage in &recovery.damaged {
        tracing::error!(?damage, "the audit trail is damaged");
    }
    let mut boot = [0; 8];
    RealEnv.entropy().fill(&mut boot);
    Ok(Audit::new(Some(trail), config.node.region.clone(), boot))
}

/// The node's id: its certificate says it, and the configuration must not say otherwise.
pub fn node_id(config: &Config, tls: &TlsFiles) -> Result<NodeId, Failure> {
    let path = config.tls.certificate.display();
    let certified = keyward_door_grpc::node_of(&tls.certificate).ok_or_else(|| {
        Failure::new(format!("{path} is not the certificate of a node"))
            .next("`keyward cluster init` and `keyward cluster join` make one")
    })?;
    if let Some((begins, ends)) = keyward_door_grpc::validity_of(&tls.certificate) {
        let now = RealEnv.wall_now_ms();
        if now < begins.0 {
            return Err(Failure::new(format!(
                "by this machine's clock {path} is not valid yet, for another {} days: the clock is wrong",
                (begins.0 - now) / Timestamp::DAY_MS
            ))
            .next("set the clock (chrony or ntpd keeps it right), then start the node again"));
        }
        if now >= ends.0 {
            return Err(Failure::new(format!(
                "{path} has expired, or this machine's clock is wrong"
            ))
            .next("look at `date`; if the clock is right, have the node join anew"));
        }
    }
    match config.node.id {
        Some(id) if id != certified => Err(Failure::new(format!(
            "node.id is {id}, and {path} is the certificate of node {certified}: name the right one, or leave \
             node.id out"
        ))),
        _ => Ok(certified),
    }
}

async fn start_node(
    config: &Config,
    id: NodeId,
    tls: &TlsFiles,
) -> Result<Arc<Node<RealEnv>>, Failure> {
    let data = config.node.data.clone();
    let open = move || -> std::io::Result<_> {
        let log = RocksStore::open(&data.join("log"), &Table::LOG)?;
        let state = RocksStore::open(&data.join("state"), &Table::STATE)?;
        Ok((log, state))
    };
    let (log, state) = RealEnv.blocking(open).await.map_err(|e| {
        Failure::new(format!(
            "the data folder {} cannot be opened: {e}",
            config.node.data.display()
        ))
        .next(
            "is another keyward running on it? is the disk full? If a file is damaged or missing: remove the node \
             (`keyward cluster remove`), empty its data folder, and have it join under a new id (`keyward cluster \
             invite`)",
        )
    })?;
    let node_config = NodeConfig::new(id, config.address(), config.timers.timers());
    let transport = Arc::new(GrpcTransport::new(tls).map_err(Failure::from_error)?);
    let calls = dev::suffer::peers(id, Arc::clone(&transport));
    let node = Node::start(node_config, RealEnv, Arc::new(log), Arc::new(state), calls)
        .await
        .map_err(Failure::from_error)?;
    transport.follow(&node);
    Ok(node)
}

async fn serve(
    door: Door,
    kms: Arc<Kms<RealEnv>>,
    stop: impl Future<Output = ()> + Send,
    run_for: For,
) -> Result<(), Failure> {
    let (closing, closed) = tokio::sync::oneshot::channel::<()>();
    let service = Arc::clone(&kms);
    let (ended, mut end) = tokio::sync::oneshot::channel();
    RealEnv.spawn(async move {
        let result = door.serve(service, async { drop(closed.await) }).await;
        drop(ended.send(result));
    });
    if run_for == For::Good {
        notify::tell(notify::READY);
    }
    let fatal = async {
        loop {
            if let Some(why) = kms.node().fatal() {
                return why;
            }
            RealEnv.sleep(WATCH).await;
        }
    };
    let outcome = tokio::select! {
        () = stop => Ok(()),
        why = fatal => Err(Failure::new(format!("consensus stopped on this node: {why}"))
            .next("look at the disk and the log above, then start the node again")),
        result = &mut end => return match result {
            Ok(Err(error)) => Err(Failure::from_error(error)),
            _ => Err(Failure::new("the gRPC door closed by itself")),
        },
    };
    if run_for == For::Good {
        notify::tell(notify::STOPPING);
    }
    // Told to stop: leadership goes first, so that others lose nothing; then calls under way finish.
    if outcome.is_ok()
        && kms.node().leads()
        && kms.node().members().iter().any(|m| m.voter && m.node != kms.node().id())
    {
        match kms.node().transfer(None, HAND_OVER).await {
            Ok(leader) => tracing::info!(leader, "leadership was handed over"),
            Err(why) => tracing::info!(%why, "leadership was not handed over"),
        }
    }
    drop(closing);
    RealEnv.timeout(Duration::from_secs(5), end).await;
    kms.node().stop().await;
    tracing::info!("the node has stopped");
    outcome
}

/// A file that may not grow (`RLIMIT_FSIZE`) fails its writes, as a full disk does, and does not end the process by SIGXFSZ.
fn fail_writes_beyond_the_limit() -> Result<(), Failure> {
    let kind = tokio::signal::unix::SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // Once listened to, the signal has no other effect, also when nobody listens any more.
    let listening = tokio::signal::unix::signal(kind);
    listening.map(drop).map_err(|e| Failure::new(format!("SIGXFSZ cannot be handled: {e}")))
}

/// Ends on SIGTERM or SIGINT, counted from this call on: a node that is still starting stops when it is up.
pub fn until_told_to_stop() -> impl Future<Output = ()> + Send {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = signal(SignalKind::terminate());
    let interrupt = signal(SignalKind::interrupt());
    async {
        match (terminate, interrupt) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            _ => std::future::pending().await,
        }
    }
}
