//! A caller on the heels of a rotation: as soon as one node encrypts with the new material, it does so there, and opens
//! what it got on every other node at once. None of them may lack that material (DESIGN section 5, rule 8).

use std::sync::Arc;
use std::time::Duration;

use crate::book::Sample;
use crate::client::{Callers, Use};
use crate::cluster::Running;
use crate::sleep;

/// Between looks at what nodes encrypt with.
const LOOK: Duration = Duration::from_millis(1);
/// A rotation that takes longer than this is left alone.
const CHASED_FOR: Duration = Duration::from_millis(2500);
/// How long such a call may take.
const PATIENCE: Duration = Duration::from_millis(200);

/// The materials that nodes encrypt with, as positions among those of the key.
fn current(callers: &Callers, key_id: &str) -> Vec<Option<u32>> {
    let id = key_id.parse().ok();
    let of_node = |running: Running| {
        let state = running.kms.node().state();
        id.and_then(|id| state.key(&id).map(|key| key.current))
    };
    let cluster = &callers.cluster;
    cluster.machines().map(|index| cluster.running(index).and_then(of_node)).collect()
}

/// Chases one rotation of that key, which is about to begin.
pub async fn chase(callers: Arc<Callers>, key: usize) {
    let world = Arc::clone(&callers.cluster.world);
    let key_id = callers.book.lock().keys[key].id.clone();
    let Some(before) = current(&callers, &key_id).into_iter().flatten().max() else { return };
    let end = world.now() + CHASED_FOR;
    while world.now() < end {
        let now = current(&callers, &key_id);
        if let Some(first) = now.iter().position(|position| position.is_some_and(|p| p > before)) {
            return open_elsewhere(&callers, key, first).await;
        }
        sleep(LOOK).await;
    }
}

async fn open_elsewhere(callers: &Arc<Callers>, key: usize, first: usize) {
    let Some(running) = callers.cluster.running(first) else { return };
    let plaintext = format!("right after a rotation of key {key}").into_bytes();
    let (this, bytes) = (Arc::clone(callers), plaintext.clone());
    let encrypted = callers.cluster.world.spawn_in(running.group, async move {
        this.use_key((first, &running), Use::Encrypt(key), &bytes, PATIENCE).await
    });
    let Ok(Some(blob)) = encrypted.await else { return };
    let number = {
        let mut book = callers.book.lock();
        book.counters.chased += 1;
        book.chased.push(Sample { key, blob, plaintext });
        book.chased.len() - 1
    };
    for index in callers.cluster.machines().filter(|index| *index != first) {
        let Some(running) = callers.cluster.running(index) else { continue };
        let this = Arc::clone(callers);
        drop(callers.cluster.world.spawn_in(running.group, async move {
            this.use_key((index, &running), Use::DecryptChased(number), &[], PATIENCE).await
        }));
    }
}
