//! Nothing in clear where it does not belong.

use std::fs;

use keyward_client::Repeat;
use keyward_proto::v1;

use crate::support::{Region, create_key, found_in};

/// Canaries: a plaintext, a data key, and the roots are in no file of any node but the root's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_plaintext_and_no_key_is_in_any_file_or_log() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let client = region.client(&[]);
    let key_id = create_key(&client).await.expect("a key");
    let canary = b"canary-plaintext-7f3a9c".to_vec();
    let mut data_keys = Vec::new();
    for node in 1..=3 {
        let client = region.client(&[node]);
        let request = v1::EncryptRequest {
            key_id: key_id.clone(),
            plaintext: canary.clone(),
            ..v1::EncryptRequest::default()
        };
        client
            .key(Repeat::Safe, request, |mut c, r| async move { c.encrypt(r).await })
            .await
            .expect("a ciphertext");
        let request = v1::GenerateDataKeyRequest {
            key_id: key_id.clone(),
            key_spec: Some("AES_256".to_owned()),
            ..v1::GenerateDataKeyRequest::default()
        };
        let answer = client
            .key(Repeat::Safe, request, |mut c, r| async move { c.generate_data_key(r).await })
            .await
            .expect("a data key");
        data_keys.push(answer.plaintext);
    }
    for node in 1..=3 {
        region.stop(node);
    }
    let folder = region.folder.path();
    // The search finds what is there: ids are in the log's rows as bytes.
    let id: Vec<u8> = hex::decode(key_id.replace('-', "")).expect("hexadecimal");
    assert!(found_in(folder, &id).is_some(), "the search itself works");
    assert_eq!(found_in(folder, &canary), None);
    for key in data_keys {
        assert_eq!(key.len(), 32);
        assert_eq!(found_in(folder, &key), None);
    }
    for node in 1..=3 {
        let place = region.node_folder(node).join("root.key");
        let root = fs::read(&place).expect("the root");
        fs::remove_file(&place).expect("removed");
        assert_eq!(found_in(folder, &root), None, "the root of node {node} is in another file");
    }
    let authority_key = found_in(folder, b"BEGIN PRIVATE KEY");
    let allowed = authority_key.expect("leaf keys are PEM files");
    assert!(allowed.extension().is_some_and(|e| e == "key"), "{}", allowed.display());
    assert!(!region.pki("ca.key").exists(), "the authority's key is never a file");
}
