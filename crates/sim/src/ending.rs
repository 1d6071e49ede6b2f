//! What must hold in the end, once nothing breaks any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keyward_hsm::RootId;
use keyward_model::{ErrorCode, NodeId};
use keyward_service::api::DescribeKey;
use keyward_service::{Request, Response};
use keyward_state::{Store, Table};

use crate::book::{Change, Told};
use crate::client::Callers;
use crate::cluster::Death;
use crate::runtime::JoinHandle;
use crate::sleep;

/// Once faults are over, a change is acknowledged and every node serves within this.
const HEAL_WITHIN: Duration = Duration::from_secs(10);
/// A node that joins, leaves or is being replaced when faults end has done so within this.
const WHOLE_WITHIN: Duration = Duration::from_secs(60);
/// Roots that were away are tried again, and what was changed is settled, within this.
const ROOTS_WITHIN: Duration = Duration::from_secs(30);
/// Deletions that are due are executed, and deleted keys have left every disk, within this.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// Once faults are over, every change of the members comes to its end: a new node votes.
pub async fn must_be_whole(callers: &Arc<Callers>, work: JoinHandle<()>) {
    if crate::timeout(WHOLE_WITHIN, work).await.is_none() {
        let nodes = callers.cluster.describe();
        let what = format!("THE REGION IS NOT WHOLE within {WHOLE_WITHIN:?}: {nodes}");
        callers.book.lock().violate(what);
    }
}

/// Liveness: once faults are over, a change is acknowledged, and every node serves.
pub async fn must_heal(callers: &Arc<Callers>) {
    let world = &callers.cluster.world;
    let end = world.now() + HEAL_WITHIN;
    let mut changed = false;
    let members = callers.cluster.members();
    let mut serves = vec![false; members.len()];
    while !changed || serves.contains(&false) {
        if world.now() > end {
            let nodes = callers.cluster.describe();
            let what = format!(
                "NO RECOVERY within {HEAL_WITHIN:?}: a change was acknowledged: {changed}, nodes serve: \
                 {serves:?}; {nodes}"
            );
            return callers.book.lock().violate(what);
        }
        for (index, serves) in members.iter().copied().zip(&mut serves) {
            if !changed && let Some(running) = callers.cluster.running(index) {
                let patience = Duration::from_secs(2);
                let told = callers.try_change((index, running), &Change::Create, patience).await;
                changed |= told == Told::Done;
            }
            if !*serves {
                *serves = serves_now(callers, index).await;
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn serves_now(callers: &Arc<Callers>, index: usize) -> bool {
    let key_id = callers.book.lock().keys[0].id.clone();
    match callers.ask(index, DescribeKey { key_id }.into()).await {
        Some(Ok(_)) => true,
        Some(Err(error)) => error.code != ErrorCode::DependencyTimeoutException,
        None => false,
    }
}

/// An answer, though a node may need a moment.
pub async fn insist(
    callers: &Arc<Callers>,
    index: usize,
    request: impl Fn() -> Request,
) -> Result<Response, (ErrorCode, String)> {
    let mut last = (ErrorCode::DependencyTimeoutException, "the node is down".to_owned());
    for _ in 0..20 {
        match callers.ask(index, request()).await {
            Some(Ok(response)) => return Ok(response),
            Some(Err(error)) if error.code != ErrorCode::DependencyTimeoutException => {
                return Err((error.code, error.to_string()));
            }
            Some(Err(error)) => last.1 = error.to_string(),
            None => {}
        }
        sleep(Duration::from_millis(100)).await;
    }
    last.1 = format!("{}; {}", last.1, callers.cluster.describe());
    Err(last)
}

/// All replicas hold the same rows once they have applied the same entries.
pub async fn replicas_agree(callers: &Callers) {
    let applied = |index: usize| {
        callers.cluster.running(index).map(|running| running.kms.node().state().applied)
    };
    for _ in 0..200 {
        let all: Vec<_> = callers.cluster.members().into_iter().map(applied).collect();
        if all[0].is_some() && all.iter().all(|index| *index == all[0]) {
            // Rows and positions are written in one batch: look at once, before anything else runs.
            return compare_rows(callers);
        }
        sleep(Duration::from_millis(5)).await;
    }
    callers.book.lock().violate("REPLICAS do not reach the same index".to_owned());
}

fn compare_rows(callers: &Callers) {
    const TABLES: [Table; 8] = [
        Table::Keys,
        Table::Tokens,
        Table::Aliases,
        Table::Principals,
        Table::DomainKeys,
        Table::Roots,
        Table::Outcomes,
        Table::Tombstones,
    ];
    let rows = |index: usize, table: Table| {
        let mut rows = Vec::new();
        let store = callers.cluster.state_store(index);
        let scanned = store.scan(table, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            Ok(())
        });
        (scanned.is_ok(), rows)
    };
    let members = callers.cluster.members();
    for table in TABLES {
        let first = rows(members[0], table);
        for index in &members[1..] {
            if rows(*index, table) != first {
                let node = callers.cluster.id(*index);
                let what = format!("REPLICAS DIFFER: table {} of node {node}", table.name());
                callers.book.lock().violate(what);
            }
        }
    }
}

/// What is due for deletion goes, and leaves every disk.
pub async fn what_was_deleted_leaves(callers: &Arc<Callers>) {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + GONE_WITHIN;
    let done = |index: usize| {
        cluster.running(index).is_some_and(|running| {
            let (node, state) = (running.kms.node(), running.kms.node().state());
            state.deletions_due(node.region_now(), 1).is_empty()
                && node.status().purged >= state.deletions()
        })
    };
    while !cluster.members().into_iter().all(done) {
        if cluster.world.now() > end {
            let what = format!("KEYS ARE NOT GONE within {GONE_WITHIN:?}: {}", cluster.describe());
            return callers.book.lock().violate(what);
        }
        sleep(Duration::from_millis(50)).await;
    }
    // Open keys leave memory in the next round of housekeeping.
    sleep(Duration::from_millis(500)).await;
    callers.invariants.look_in_the_end(cluster, &mut callers.book.lock());
}

/// Every node's record of its roots, those that are open in it, and the Region's list agree, and each has a copy
/// of every domain key; the Region knows of no others.
pub async fn roots_agree(callers: &Arc<Callers>) {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + ROOTS_WITHIN;
    let agree = |index: usize| {
        let running = cluster.running(index)?;
        let (node, state) = (cluster.id(index), running.kms.node().state());
        let set = |ids: Vec<RootId>| ids.into_iter().collect::<BTreeSet<RootId>>();
        let recorded = set(cluster.recorded_roots(index).into_iter().map(|(id, _)| id).collect());
        let open = set(running.kms.hsm().roots().into_iter().map(|status| status.id).collect());
        let listed = set(state.roots_of(node).map(|root| root.id.clone()).collect());
        let sealed = recorded.iter().all(|root| state.domain_keys_without(root).is_empty());
        let members = running.kms.node().members();
        let known = |node: &NodeId| members.iter().any(|member| member.node == *node);
        let strays = state.roots.values().filter(|root| !known(&root.node)).count();
        let same = recorded == open && recorded == listed && sealed && strays == 0;
        (!same).then(|| {
            format!(
                "node {node} has {recorded:?} on record, {open:?} open, the Region lists {listed:?}, all sealed: \
                 {sealed}, roots of nodes that are no members: {strays}"
            )
        })
    };
    loop {
        let differences: Vec<String> = cluster.members().into_iter().filter_map(agree).collect();
        if differences.is_empty() {
            return;
        }
        if cluster.world.now() > end {
            let what = format!("ROOTS DIFFER: {}", differences.join("; "));
            return callers.book.lock().violate(what);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Every answered call has its record on disk. What was answered a moment ago is given the time.
pub async fn everything_is_on_record(callers: &Arc<Callers>, index: usize) -> Vec<u8> {
    sleep(Duration::from_millis(500)).await;
    let cluster = &callers.cluster;
    callers.invariants.look_at_trails(cluster, index, &mut callers.book.lock())
}

/// All machines lose power at once: every domain key is opened anew, by the roots on record.
pub async fn start_cold(callers: &Arc<Callers>) {
    for index in callers.cluster.machines() {
        callers.cluster.kill(index, Death::PowerCut);
    }
    for index in callers.cluster.machines() {
        callers.cluster.boot(index);
    }
    must_heal(callers).await;
}
