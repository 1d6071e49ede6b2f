//! Many calls on one stream: what is promised of a call of its own holds for each of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyward_client::{CallError, DataPlane};
use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_proto::v1;
use keyward_proto::v1::data_plane_client::DataPlaneClient;
use keyward_proto::v1::stream_request::Call;
use keyward_proto::v1::stream_response::Answer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::support::{Region, code, create_key, set_enabled};

const PRINCIPAL: &str = "arn:aws:iam::111122223333:user/dev";

fn encrypts(key: &str, plaintext: &[u8]) -> v1::EncryptRequest {
    v1::EncryptRequest {
        key_id: key.to_owned(),
        plaintext: plaintext.to_vec(),
        ..v1::EncryptRequest::default()
    }
}

fn opens(blob: Vec<u8>) -> v1::DecryptRequest {
    v1::DecryptRequest { ciphertext_blob: blob, ..v1::DecryptRequest::default() }
}

/// A connection without our client in between.
async fn connection(region: &Region) -> Channel {
    let read = |name: &str| std::fs::read(region.pki(name)).expect("a PEM file");
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem")))
        .identity(Identity::from_pem(read("dev.pem"), read("dev.key")));
    let endpoint = Endpoint::from_shared(format!("https://{}", region.endpoint(1)));
    let endpoint = endpoint.expect("an endpoint").tls_config(tls).expect("TLS");
    endpoint.connect().await.expect("a connection")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_does_what_calls_of_their_own_do() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let (key, other) =
        (create_key(&client).await.expect("a key"), create_key(&client).await.expect("a key"));
    let plane = DataPlane::new(Arc::clone(&client));

    // Every operation, and what came of it is what calls of their own take.
    let sealed = plane.encrypt(encrypts(&key, b"on a stream")).await.expect("a ciphertext");
    assert!(sealed.key_id.ends_with(&key), "{}", sealed.key_id);
    let opened = plane.decrypt(opens(sealed.ciphertext_blob.clone())).await.expect("a plaintext");
    assert_eq!(opened.plaintext, b"on a stream");
    let moved = v1::ReEncryptRequest {
        ciphertext_blob: sealed.ciphertext_blob.clone(),
        destination_key_id: other.clone(),
        ..v1::ReEncryptRequest::default()
    };
    let moved = plane.re_encrypt(moved).await.expect("a ciphertext").ciphertext_blob;
    let opened = client
        .key_once(opens(moved), |mut c, r| async move { c.decrypt(r).await })
        .await
        .expect("a plaintext");
    assert!(opened.plaintext == b"on a stream" && opened.key_id.ends_with(&other));
    let made = v1::GenerateDataKeyRequest {
        key_id: key.clone(),
        key_spec: Some("AES_256".to_owned()),
        ..v1::GenerateDataKeyRequest::default()
    };
    let made = plane.generate_data_key(made).await.expect("a data key");
    let opened = plane.decrypt(opens(made.ciphertext_blob)).await.expect("a plaintext");
    assert!(opened.plaintext == made.plaintext && made.plaintext.len() == 32);
    let hidden = v1::GenerateDataKeyWithoutPlaintextRequest {
        key_id: key.clone(),
        number_of_bytes: Some(64),
        ..v1::GenerateDataKeyWithoutPlaintextRequest::default()
    };
    let hidden = plane.generate_data_key_without_plaintext(hidden).await.expect("a data key");
    let opened = plane.decrypt(opens(hidden.ciphertext_blob)).await.expect("a plaintext");
    assert_eq!(opened.plaintext.len(), 64);
    let random = v1::GenerateRandomRequest { number_of_bytes: Some(17) };
    assert_eq!(plane.generate_random(random).await.expect("bytes").plaintext.len(), 17);

    // Refusals are the same, and the stream goes on.
    let no_key = "00000000-0000-0000-0000-000000000000";
    assert_eq!(code(plane.encrypt(encrypts(no_key, b"x")).await), "NotFoundException");
    assert_eq!(code(plane.encrypt(encrypts(&key, b"")).await), "ValidationException");
    let mut changed = sealed.ciphertext_blob.clone();
    *changed.last_mut().expect("a byte") ^= 1;
    assert_eq!(code(plane.decrypt(opens(changed)).await), "InvalidCiphertextException");

    // A thousand at once, each answered with its own.
    let plane = Arc::new(plane);
    let calls: Vec<_> = (0..1000u32)
        .map(|number| {
            let (plane, key) = (Arc::clone(&plane), key.clone());
            <RealEnv as Env>::Runtime::spawn(async move {
                let plaintext = number.to_be_bytes();
                let sealed = plane.encrypt(encrypts(&key, &plaintext)).await.expect("sealed");
                let opened = plane.decrypt(opens(sealed.ciphertext_blob)).await.expect("opened");
                assert_eq!(opened.plaintext, plaintext);
            })
        })
        .collect();
    for call in calls {
        call.await.expect("its own answer");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_of_a_stream_has_its_id_record_and_refusal() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let (to_send, sends) = mpsc::channel(8);
    let mut plane = DataPlaneClient::new(connection(&region).await);
    let answers = plane.stream(ReceiverStream::new(sends)).await.expect("a stream");
    let mut answers = answers.into_inner();
    let calls = [
        Some(Call::Encrypt(encrypts(&key, b"x"))),
        None,
        Some(Call::Encrypt(encrypts("alias/nowhere", b"x"))),
    ];
    let mut ids = BTreeSet::new();
    for (id, call) in (7..).zip(calls) {
        let asked = v1::StreamRequest { id, timeout_milliseconds: 2000, call };
        to_send.send(asked).await.expect("sent");
        let told = answers.message().await.expect("a stream").expect("an answer");
        assert_eq!((told.id, told.request_id.len()), (id, 16));
        match (id, told.answer.expect("an answer")) {
            (7, Answer::Encrypt(sealed)) => assert!(!sealed.ciphertext_blob.is_empty()),
            (8, Answer::Error(refusal)) => {
                assert_eq!(refusal.code, "ValidationException");
                assert!(refusal.message.contains("no call"), "{}", refusal.message);
                continue;
            }
            (9, Answer::Error(refusal)) => assert_eq!(refusal.code, "NotFoundException"),
            (id, answer) => panic!("{id}: {answer:?}"),
        }
        ids.insert(hex::encode(&told.request_id));
    }
    let folder = region.node_folder(1).join("data").join("audit").display().to_string();
    let records = region.run_ok(&["--output", "json", "audit", "query", "--folder", &folder]);
    // There they are UUIDs.
    let records = records.replace('-', "");
    let found = ids.iter().filter(|id| records.contains(id.as_str())).count();
    assert_eq!(found, ids.len(), "records of {ids:?}");

    // Nobody without a principal's certificate gets a stream; whoever does not read is not served without end.
    drop(to_send);
    assert!(answers.message().await.expect("a stream").is_none(), "it ends when it is closed");
    let (to_send, sends) = mpsc::channel(1);
    let unread = plane.stream(ReceiverStream::new(sends)).await.expect("a stream");
    let mut sent = 0;
    let asked = |id| v1::StreamRequest {
        id,
        timeout_milliseconds: 0,
        call: Some(Call::Encrypt(encrypts(&key, &[1; 4096]))),
    };
    while RealEnv.timeout(Duration::from_millis(500), to_send.send(asked(sent))).await.is_some() {
        sent += 1;
        assert!(sent < 2000, "8 MB of answers that nobody reads");
    }
    assert!(sent > 10);
    drop(unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forbidden_while_a_stream_is_open_is_refused_on_it() {
    let region = Region::start(3);
    region.wait_serving(3).await;
    let operator = region.client(&[]);
    let key = create_key(&operator).await.expect("a key");
    let planes: Vec<_> = (1..=3)
        .map(|node| DataPlane::new(region.client_as("dev", &[node], Duration::from_secs(3))))
        .collect();
    let every = async |expected: &str| {
        for plane in &planes {
            assert_eq!(code(plane.encrypt(encrypts(&key, b"x")).await), expected);
        }
    };
    every("ok").await;
    set_enabled(&operator, &key, false).await.expect("disabled");
    every("DisabledException").await;
    set_enabled(&operator, &key, true).await.expect("enabled");
    every("ok").await;

    // A quota is the same one, on a stream or not.
    region.run_ok(&["quota", "set", "--principal", PRINCIPAL, "--limit", "40/s"]);
    let began = RealEnv.boot_now();
    let (mut admitted, mut refused) = (0.0, 0);
    while RealEnv.boot_now() - began < Duration::from_secs(3) {
        let call = Call::Encrypt(encrypts(&key, b"x"));
        match planes[0].once(call).await {
            Ok(_) => admitted += 1.0,
            Err(CallError { throttle: Some(throttle), .. }) => {
                assert_eq!(throttle.limit, 40);
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let most = 40.0 * (RealEnv.boot_now() - began).as_secs_f64() + 40.0;
    assert!(admitted <= most && admitted >= 80.0 && refused > 0, "{admitted} of {most}, {refused}");
    region.run_ok(&["quota", "delete", "--principal", PRINCIPAL]);

    region.run_ok(&["principal", "disable", PRINCIPAL]);
    every("UnrecognizedClientException").await;
}

/// Nodes are stopped, one after the other, and one is killed, while calls go on on streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_on_at_another_node() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let plane = Arc::new(DataPlane::new(region.client(&[])));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (plane, key) = (Arc::clone(&plane), key.clone());
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            <RealEnv as Env>::Runtime::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    plane.encrypt(encrypts(&key, b"x")).await.expect("some node answers");
                    answered.fetch_add(1, Ordering::Relaxed);
                    RealEnv.sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    for node in 1..=3 {
        RealEnv.sleep(Duration::from_millis(500)).await;
        let began = RealEnv.boot_now();
        if node == 2 {
            region.kill(node);
        } else {
            region.stop(node);
            let took = RealEnv.boot_now() - began;
            assert!(took < Duration::from_secs(8), "an open stream holds it up: {took:?}");
        }
        let before = answered.load(Ordering::Relaxed);
        RealEnv.sleep(Duration::from_millis(500)).await;
        assert!(answered.load(Ordering::Relaxed) > before, "calls go on without node {node}");
        region.start_node(node);
        region.wait_serving(3).await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no call failed");
    }
}
