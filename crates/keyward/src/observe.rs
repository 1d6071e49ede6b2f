//! Seen from outside: logs, metrics, `/livez` and `/readyz`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use keyward_env::{Env, RealEnv};
use keyward_hsm::{RootHealth, RootStatus};
use keyward_model::Region;
use keyward_service::Kms;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::config::{LogFormat, ObserveSection};

/// Between readings of the gauges.
const GAUGE_ROUND: Duration = Duration::from_secs(1);
/// Between the times at which the recorder adds up what was measured: until then it keeps every single sample.
const UPKEEP_ROUND: Duration = Duration::from_secs(1);

/// Standard error, as the log writes to it: a line that cannot be written is lost, and counted. (What logs would tell of the
/// error on standard error, and panic.)
struct Lines;

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if std::io::stderr().write_all(bytes).is_err() {
            metrics::counter!("keyward_log_lines_lost_total").increment(1);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts the log. Lines go to standard error.
pub fn start_log(section: &ObserveSection) {
    let filter = tracing_subscriber::EnvFilter::try_new(&section.log)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A line for each mechanism that a token has and it does not know, each time: of no use to anybody.
    let filter = match "cryptoki::mechanism=off".parse() {
        Ok(quiet) if !section.log.contains("cryptoki") => filter.add_directive(quiet),
        _ => filter,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Lines);
    let started = match section.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // A second node in the same process (tests) shares the first one's log.
    drop(started);
}

/// Installs the recorder of metrics, and keeps it small. `None` when the process has one already.
#[must_use]
pub fn start_metrics() -> Option<PrometheusHandle> {
    let seconds = [
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
        5.0, 10.0,
    ];
    let handle = PrometheusBuilder::new().set_buckets(&seconds).ok()?.install_recorder().ok()?;
    let kept_small = handle.clone();
    RealEnv.spawn(async move {
        loop {
            RealEnv.sleep(UPKEEP_ROUND).await;
            kept_small.run_upkeep();
        }
    });
    metrics::describe_counter!("keyward_calls_total", "Calls by operation and outcome");
    metrics::describe_histogram!("keyward_call_seconds", "Time to serve a call, by operation");
    metrics::describe_counter!(
        "keyward_log_lines_lost_total",
        "Lines of the log that standard error did not take: is its disk full?"
    );
    metrics::describe_counter!(
        "keyward_connections_refused_total",
        "Connections refused, by reason"
    );
    metrics::describe_counter!(
        "keyward_pending_deletion_uses_total",
        "Uses, all refused, of keys that wait for their deletion"
    );
    metrics::describe_gauge!("keyward_keys_pending_deletion", "Keys that wait for their deletion");
    metrics::describe_gauge!(
        "keyward_deletions_unpurged",
        "Deletions whose key may still be in a file of this node"
    );
    for (name, what) in [
        ("keyward_multi_region_admitted", "1 while this node uses multi-Region keys"),
        ("keyward_region_heard_seconds", "Since a Region last answered; told by the leader"),
        ("keyward_region_behind", "Changes of a Region that are not here yet"),
        ("keyward_region_behind_seconds", "The age of what is here of a Region"),
        ("keyward_region_unshipped", "Changes here that a Region has not taken over yet"),
        ("keyward_region_unshipped_seconds", "The age of the oldest of them"),
        ("keyward_region_alarm", "1 while a link is later than regions.alarm_seconds"),
    ] {
        metrics::describe_gauge!(name, what);
    }
    metrics::describe_gauge!("keyward_raft_term", "Raft term");
    metrics::describe_gauge!("keyward_raft_is_leader", "1 on the leader");
    metrics::describe_gauge!("keyward_raft_leader_id", "Node id of the leader, 0 when unknown");
    metrics::describe_gauge!("keyward_raft_committed_index", "Last log index known committed");
    metrics::describe_gauge!("keyward_raft_applied_index", "Last log index visible to calls");
    metrics::describe_gauge!("keyward_lease_seconds", "What the serving lease has left");
    metrics::describe_gauge!("keyward_lease_serving", "1 while this node serves from memory");
    metrics::describe_gauge!("keyward_keys", "KMS keys in the Region");
    metrics::describe_gauge!("keyward_unsealed_keys", "Backing keys unsealed on this node");
    metrics::describe_gauge!("keyward_unsealed_hits", "Uses of a key that was unsealed already");
    metrics::describe_gauge!("keyward_unsealed_misses", "Uses of a key that had to be unsealed");
    metrics::describe_gauge!("keyward_unsealed_evictions", "Unsealed keys that made room");
    Some(handle)
}

/// Keeps the gauges current.
#[expect(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
pub async fn read_gauges(kms: Arc<Kms<RealEnv>>, alarm: Duration) {
    let mut late = BTreeSet::new();
    while !kms.node().is_stopped() {
        let status = kms.node().status();
        let cache = kms.hsm().cache_stats();
        let serves = kms.node().admit_now().is_ok();
        let state = kms.node().state();
        metrics::gauge!("keyward_keys_pending_deletion").set(state.deletions_waiting() as f64);
        let unpurged = state.deletions().saturating_sub(status.purged);
        metrics::gauge!("keyward_deletions_unpurged").set(unpurged as f64);
        metrics::gauge!("keyward_raft_term").set(status.term as f64);
        metrics::gauge!("keyward_raft_is_leader").set(f64::from(u8::from(kms.node().leads())));
        metrics::gauge!("keyward_raft_leader_id").set(status.leader.unwrap_or(0) as f64);
        metrics::gauge!("keyward_raft_committed_index").set(status.committed as f64);
        metrics::gauge!("keyward_raft_applied_index").set(status.applied as f64);
        metrics::gauge!("keyward_lease_seconds").set(status.lease_ms as f64 / 1000.0);
        metrics::gauge!("keyward_lease_serving").set(f64::from(u8::from(serves)));
        metrics::gauge!("keyward_keys").set(kms.node().state().key_count() as f64);
        metrics::gauge!("keyward_unsealed_keys").set(cache.keys as f64);
        metrics::gauge!("keyward_unsealed_hits").set(cache.hits as f64);
        metrics::gauge!("keyward_unsealed_misses").set(cache.misses as f64);
        metrics::gauge!("keyward_unsealed_evictions").set(cache.evictions as f64);
        read_quotas(&kms);
        read_links(&kms, alarm, &mut late);
        RealEnv.sleep(GAUGE_ROUND).await;
    }
}

/// By quota, and not by whose bucket it is: there may be a hundred thousand.
fn read_quotas(kms: &Kms<RealEnv>) {
    let mut sums = std::collections::BTreeMap::<String, [u64; 4]>::new();
    for figures in kms.quotas().figures(RealEnv.boot_now()) {
        let name = format!("{} a {}", figures.quota, figures.limit.window);
        let sum = sums.entry(name).or_default();
        let one = [figures.admitted, figures.refused, figures.share.rate, figures.tokens];
        sum.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
    }
    for (quota, [admitted, refused, share, tokens]) in sums {
        metrics::counter!("keyward_quota_admitted_total", "quota" => quota.clone())
            .absolute(admitted);
        metrics::counter!("keyward_quota_refused_total", "quota" => quota.clone())
            .absolute(refused);
        metrics::gauge!("keyward_quota_share", "quota" => quota.clone()).set(share as f64);
        metrics::gauge!("keyward_quota_tokens", "quota" => quota).set(tokens as f64);
    }
}

/// Links with other Regions, as the leader sees them; 0 on every other node.
fn read_links(kms: &Kms<RealEnv>, alarm: Duration, late: &mut BTreeSet<Region>) {
    metrics::gauge!("keyward_multi_region_admitted").set(f64::from(u8::from(kms.is_admitted())));
    let leads = kms.node().leads();
    for link in kms.link_status() {
        let region = link.region.to_string();
        let set = |name: &'static str, value: f64| {
            let value = if leads { value } else { 0.0 };
            metrics::gauge!(name, "region" => region.clone()).set(value);
        };
        let seconds = |ms: Option<u64>| ms.unwrap_or(0) as f64 / 1000.0;
        set("keyward_region_heard_seconds", seconds(link.heard_ms));
        set("keyward_region_behind", link.behind as f64);
        set("keyward_region_behind_seconds", seconds(link.behind_ms));
        set("keyward_region_unshipped", link.unshipped as f64);
        set("keyward_region_unshipped_seconds", seconds(link.unshipped_ms));
        let is_late = leads && link.lateness().is_none_or(|late| late > alarm);
        set("keyward_region_alarm", f64::from(u8::from(is_late)));
        match is_late {
            true if late.insert(link.region.clone()) => tracing::warn!(
                region = %link.region,
                alarm_seconds = alarm.as_secs(),
                unshipped = link.unshipped,
                failing = link.failing,
                "a link is late: what is not there yet would be lost with this Region (`keyward region status`)"
            ),
            false if late.remove(&link.region) => {
                tracing::info!(region = %link.region, "the link is in time again");
            }
            _ => {}
        }
    }
}

#[derive(Clone)]
struct Seen {
    kms: Arc<Kms<RealEnv>>,
    metrics: Option<PrometheusHandle>,
}

/// Takes the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|e| {
        format!(
            "cannot listen on {address} for health and metrics: {e}; is another process using it?"
        )
    })
}

/// Serves health and metrics until the process ends.
pub async fn serve(
    listener: TcpListener,
    kms: Arc<Kms<RealEnv>>,
    metrics: Option<PrometheusHandle>,
) {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(Seen { kms, metrics });
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "health and metrics are no longer served");
    }
}

async fn livez(State(seen): State<Seen>) -> (StatusCode, String) {
    match seen.kms.node().fatal() {
        None => (StatusCode::OK, "alive\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("consensus has stopped: {why}\n")),
    }
}

async fn readyz(State(seen): State<Seen>) -> (StatusCode, String) {
    let not_ready = |why: String| (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n"));
    if let Some(why) = seen.kms.node().fatal() {
        return not_ready(format!("consensus has stopped: {why}"));
    }
    if seen.kms.node().state().region.is_none() {
        return not_ready("this node belongs to no Region yet".to_owned());
    }
    // Before the lease, which it gives up for that reason if it leads.
    if let Some(why) = seen.kms.audit().failing() {
        return not_ready(format!("the audit trail cannot be written: {why}"));
    }
    if let Err(refusal) = seen.kms.node().admit_now() {
        return not_ready(refusal.to_string());
    }
    if let Err(error) = seen.kms.hsm().keys_usable() {
        return not_ready(error.to_string());
    }
    let failing = |status: &RootStatus| matches!(status.health, RootHealth::Failing { .. });
    let roots = seen.kms.hsm().roots();
    if roots.iter().all(failing) {
        let reasons = roots.iter().map(|status| match &status.health {
            RootHealth::Failing { reason, .. } => format!("{}: {reason}", status.id),
            _ => status.id.to_string(),
        });
        return not_ready(format!(
            "no root answers (keys that are open are used for a while): {}",
            reasons.collect::<Vec<_>>().join("; ")
        ));
    }
    (StatusCode::OK, "ready\n".to_owned())
}

async fn show_metrics(State(seen): State<Seen>) -> (StatusCode, String) {
    match &seen.metrics {
        Some(handle) => (StatusCode::OK, handle.render()),
        None => (StatusCode::NOT_FOUND, "metrics are shown by the process's first node\n".into()),
    }
}
