//! Gone means gone: from a deletion's date on, no file of any node holds the key.

use std::path::PathBuf;
use std::time::Duration;

use keyward_client::{Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;

use crate::support::{
    Region, code, create_key, decrypt, encrypt, found_in, schedule_deletion, token_of, wait_until,
};

async fn deletion(client: &Client, key_id: &str) -> v1::GetKeyDeletionStatusResponse {
    let request = v1::GetKeyDeletionStatusRequest { key_id: key_id.to_owned() };
    client
        .key(Repeat::Safe, request, |mut c, r| async move { c.get_key_deletion_status(r).await })
        .await
        .expect("a status")
}

async fn wait_gone(client: &Client, key_id: &str, nodes: usize) -> Duration {
    let began = RealEnv.boot_now();
    wait_until("the key is gone from every node", Duration::from_secs(60), async || {
        let status = deletion(client, key_id).await;
        status.key_state == "Deleted" && status.nodes.iter().filter(|n| n.gone).count() == nodes
    })
    .await;
    RealEnv.boot_now() - began
}

/// Looks for the end of a token, which nobody could write by chance: the material's id stands in the key's metadata
/// in clear.
fn holds(region: &Region, node: u16, token: &[u8]) -> Option<PathBuf> {
    found_in(&region.node_folder(node), &token[token.len() - 24..])
}

/// Scheduled, refused, warned, executed; then every byte of every file of every node is read. One node is away
/// meanwhile, and comes back with the key on its disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_key_leaves_every_file_and_never_comes_back() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let client = region.client(&[]);
    let (doomed, kept) =
        (create_key(&client).await.expect("a key"), create_key(&client).await.expect("a key"));
    region.run_ok(&["alias", "create", "alias/doomed", &doomed]);
    region.run_ok(&["key", "rotate", &doomed]);
    let blob = encrypt(&client, &doomed).await.expect("a ciphertext").ciphertext_blob;
    let kept_blob = encrypt(&client, &kept).await.expect("a ciphertext").ciphertext_blob;
    // What to look for: the sealed tokens, read while the nodes stand still.
    let materials: serde_json::Value =
        serde_json::from_str(&region.run_ok(&["--output", "json", "key", "rotations", &doomed]))
            .expect("JSON");
    let text = materials.to_string();
    for node in 1..=3 {
        region.stop(node);
    }
    let ids: Vec<String> = text
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter(|word| word.len() == 64)
        .map(str::to_owned)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(ids.len(), 2, "a key that was rotated once has two materials: {text}");
    let tokens: Vec<Vec<u8>> = ids.iter().map(|id| token_of(&region, 1, id)).collect();
    for (node, token) in (1..=3).flat_map(|node| tokens.iter().map(move |token| (node, token))) {
        assert!(holds(&region, node, token).is_some(), "what is looked for is not there at first");
    }
    for node in 1..=3 {
        region.start_node(node);
    }
    region.wait_serving(3).await;

    schedule_deletion(&client, &doomed, 7).await;
    assert_eq!(code(decrypt(&client, &blob).await), "KMSInvalidStateException");
    assert_eq!(code(encrypt(&client, "alias/doomed").await), "KMSInvalidStateException");
    wait_until("the use is in a log", Duration::from_secs(5), async || {
        (1..=3).any(|node| region.log(node).contains("somebody still uses a key that waits"))
    })
    .await;
    let waiting = deletion(&client, &doomed).await;
    assert_eq!(waiting.key_state, "PendingDeletion");
    assert!(waiting.nodes.iter().all(|node| !node.gone));

    // One node sleeps through it.
    let leader = region.leader().await;
    let away = (1..=3).find(|node| *node != leader).expect("a follower");
    let others: Vec<u16> = (1..=3).filter(|node| *node != away).collect();
    region.kill(away);
    region.run_ok(&["dev", "clock", "advance", "6d"]);
    RealEnv.sleep(Duration::from_millis(1500)).await;
    assert_eq!(deletion(&client, &doomed).await.key_state, "PendingDeletion", "a day early");
    region.run_ok(&["dev", "clock", "advance", "25h"]);
    let took = wait_gone(&region.client(&others), &doomed, 2).await;
    assert!(took < Duration::from_secs(60), "{took:?}");
    for (node, token) in others.iter().flat_map(|node| tokens.iter().map(move |t| (*node, t))) {
        assert_eq!(holds(&region, node, token), None, "node {node}");
    }
    region.start_node(away);
    wait_gone(&client, &doomed, 3).await;
    for (node, token) in (1..=3).flat_map(|node| tokens.iter().map(move |token| (node, token))) {
        assert_eq!(holds(&region, node, token), None, "node {node}");
    }

    // It does not come back, by restart or by replay; aliases are gone; the other key is as it was.
    for node in 1..=3 {
        region.kill(node);
    }
    for node in 1..=3 {
        region.start_node(node);
    }
    region.wait_serving(3).await;
    for node in 1..=3 {
        let client = region.client(&[node]);
        assert_eq!(code(decrypt(&client, &blob).await), "AccessDeniedException");
        assert_eq!(code(encrypt(&client, &doomed).await), "NotFoundException");
        assert_eq!(code(encrypt(&client, "alias/doomed").await), "NotFoundException");
        assert_eq!(decrypt(&client, &kept_blob).await.expect("it opens").plaintext, b"plaintext");
    }
    let status = region.run_ok(&["key", "deletion", "status", &doomed]);
    assert!(status.contains("gone from every file") && status.contains("Deleted"), "{status}");
}

/// A deletion that was cancelled is not executed when its first date comes; a Region for production does not
/// move its clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_deletion_is_not_executed() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    schedule_deletion(&client, &key, 7).await;
    region.run_ok(&["key", "cancel-deletion", &key]);
    schedule_deletion(&client, &key, 30).await;
    region.run_ok(&["dev", "clock", "advance", "8d"]);
    RealEnv.sleep(Duration::from_secs(1)).await;
    let status = deletion(&client, &key).await;
    assert_eq!(status.key_state, "PendingDeletion", "its new date is in 22 days");
    let refused = region.run(&["dev", "clock", "advance", "-1d"]);
    assert!(!refused.status.success(), "the clock never goes back");
}
