//! **A ciphertext opens until its material is deleted on purpose** (invariant 2): those that callers were given are opened
//! in the end, on every node. (What opens in between must open to what was encrypted: `client.rs`.)

use std::sync::Arc;

use keyward_model::{ErrorCode, KeyState};
use keyward_service::Response;
use keyward_service::api::{DescribeKey, Encrypt, Secret};

use crate::book::Change;
use crate::client::{Callers, decrypt};
use crate::ending::insist;

/// Every ciphertext that was returned opens again, on every node, once its key is enabled; but for those of
/// keys that are gone, which open nowhere.
pub async fn every_one_opens(callers: &Arc<Callers>) {
    let members = callers.cluster.members();
    let (keys, samples) = {
        let book = callers.book.lock();
        (book.keys.len(), [book.samples.as_slice(), &book.chased].concat())
    };
    let gone: Vec<bool> = {
        let book = callers.book.lock();
        book.keys.iter().map(|key| key.gone_since.is_some()).collect()
    };
    let alive = || (0..keys).filter(|key| !gone[*key]);
    for key in alive() {
        let key_id = callers.book.lock().keys[key].id.clone();
        let shown =
            insist(callers, members[0], || DescribeKey { key_id: key_id.clone() }.into()).await;
        let pending = KeyState::PendingDeletion;
        if matches!(shown, Ok(Response::Key(metadata)) if metadata.state == pending) {
            callers.change(Change::Cancel(key)).await;
        }
        if !callers.change(Change::SetEnabled(key, true)).await {
            callers.book.lock().violate(format!("KEY {key} COULD NOT BE ENABLED in the end"));
        }
    }
    for index in members.iter().copied() {
        for sample in &samples {
            let what = match insist(callers, index, || decrypt(sample).into()).await {
                Err((ErrorCode::AccessDeniedException, _)) if gone[sample.key] => continue,
                Ok(_) if gone[sample.key] => "though its key is gone".to_owned(),
                Ok(Response::Decrypted { plaintext, .. })
                    if plaintext.bytes() == sample.plaintext =>
                {
                    continue;
                }
                Ok(_) => "to something else".to_owned(),
                Err(why) => format!("not at all: {why:?}"),
            };
            let node = callers.cluster.id(index);
            callers.book.lock().violate(format!("A CIPHERTEXT OPENS {what}, on node {node}"));
        }
    }
    // And every key still makes new ones.
    for key in alive() {
        let key_id = callers.book.lock().keys[key].id.clone();
        let request = || {
            let plaintext = Secret::new(vec![7; 16]);
            Encrypt { key_id: key_id.clone(), plaintext, ..Encrypt::default() }.into()
        };
        if let Err(why) = insist(callers, members[key % members.len()], request).await {
            callers
                .book
                .lock()
                .violate(format!("KEY {key_id} DOES NOT ENCRYPT in the end: {why:?}"));
        }
    }
}
