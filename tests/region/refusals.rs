//! Bad input: a clear, typed refusal, nothing changed, everybody alive.

use std::fs;
use std::time::Duration;

use keyward_client::{CallError, Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_model::Timestamp;
use keyward_proto::v1;
use keyward_service::{Authority, signing_request};

use crate::support::{Region, code, create_key, decrypt, encrypt, set_enabled};

async fn encrypt_of(client: &Client, key_id: &str, plaintext: Vec<u8>) -> Result<(), CallError> {
    let request = v1::EncryptRequest { key_id: key_id.to_owned(), plaintext, ..Default::default() };
    client.key_once(request, |mut c, r| async move { c.encrypt(r).await }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_gets_a_typed_refusal_and_changes_nothing() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let (validation, not_found) = ("ValidationException", "NotFoundException");
    for (plaintext, expected) in
        [(vec![], validation), (vec![0; 4097], validation), (vec![0; 4096], "ok"), (vec![0], "ok")]
    {
        let bytes = plaintext.len();
        assert_eq!(code(encrypt_of(&client, &key, plaintext).await), expected, "{bytes} bytes");
    }
    // Sixteen times the largest plaintext: past the message limit, and still a clean refusal.
    assert!(encrypt_of(&client, &key, vec![0; 512 * 1024]).await.is_err());

    let other_account =
        "arn:aws:kms:eu-west-1:999999999999:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    for (key_id, expected) in [
        ("", validation),
        ("nonsense", not_found),
        ("1234abcd-12ab-34cd-56ef-1234567890ab", not_found),
        ("alias/nobody", not_found),
        ("alias/", not_found),
        ("arn:aws:kms:eu-west-1", "InvalidArnException"),
        ("arn:aws:s3:eu-west-1:111122223333:key/x", "InvalidArnException"),
        ("arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", not_found),
        (other_account, "AccessDeniedException"),
        (&"x".repeat(2049), validation),
    ] {
        assert_eq!(code(encrypt_of(&client, key_id, vec![1]).await), expected, "{key_id}");
    }

    let blob = encrypt(&client, &key).await.expect("a ciphertext").ciphertext_blob;
    assert!(blob.len() - b"plaintext".len() <= 160);
    for bit in 0..blob.len() * 8 {
        let mut flipped = blob.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let got = code(decrypt(&client, &flipped).await);
        // In the key id the blob names another key; everywhere else it does not open.
        let expected = if (8..144).contains(&bit) {
            &["AccessDeniedException", "InvalidCiphertextException"][..]
        } else {
            &["InvalidCiphertextException"]
        };
        assert!(expected.contains(&got.as_str()), "bit {bit}: {got}");
    }
    for length in 0..blob.len() {
        let got = code(decrypt(&client, &blob[..length]).await);
        let expected = if length == 0 { validation } else { "InvalidCiphertextException" };
        assert_eq!(got, expected, "{length} bytes");
    }
    assert_eq!(code(decrypt(&client, &[7; 6145]).await), validation);
    let with = |context: &[(&str, &str)], key_id: Option<&str>| v1::DecryptRequest {
        ciphertext_blob: blob.clone(),
        encryption_context: context.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        key_id: key_id.map(str::to_owned),
        ..Default::default()
    };
    let open = async |request| {
        code(client.key_once(request, |mut c, r| async move { c.decrypt(r).await }).await)
    };
    assert_eq!(open(with(&[("a", "b")], None)).await, "InvalidCiphertextException");
    assert_eq!(open(with(&[("k", &"v".repeat(9000))], None)).await, validation);
    let second = create_key(&client).await.expect("a key");
    assert_eq!(open(with(&[], Some(&second))).await, "IncorrectKeyException");
    assert_eq!(open(with(&[], Some(&key))).await, "ok");
    let dry = v1::DecryptRequest { dry_run: true, ..with(&[], None) };
    assert_eq!(open(dry).await, "DryRunOperationException");
    assert_eq!(decrypt(&client, &blob).await.expect("still opens").plaintext, b"plaintext");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_states_aliases_tags_and_pages_behave_as_documented() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let run = |arguments: &[&str]| {
        let output = region.run(arguments);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let refused = |arguments: &[&str], name: &str| {
        let (ok, error) = run(arguments);
        assert!(!ok && error.contains(name), "{arguments:?}: {error}");
        assert!(error.contains("error:"), "{error}");
    };
    region.run_ok(&["alias", "create", "alias/a", &key]);
    refused(&["alias", "create", "alias/a", &key], "AlreadyExistsException");
    refused(&["alias", "create", "a", &key], "ValidationException");
    refused(&["alias", "create", "alias/aws/x", &key], "InvalidAliasNameException");
    refused(&["alias", "create", "alias/b", "alias/a"], "NotFoundException");
    refused(&["alias", "update", "alias/nobody", &key], "NotFoundException");
    refused(&["alias", "delete", "alias/nobody"], "NotFoundException");
    refused(&["key", "enable", "alias/a"], "NotFoundException");
    refused(&["key", "schedule-deletion", &key, "--days", "6"], "ValidationException");
    refused(&["key", "cancel-deletion", &key], "KMSInvalidStateException");
    refused(&["key", "enable-rotation", &key, "--days", "89"], "ValidationException");
    refused(&["key", "tag", &key, "aws:x=1"], "TagException");
    refused(&["key", "set-description", &key, &"d".repeat(8193)], "ValidationException");
    region.run_ok(&["key", "schedule-deletion", &key, "--days", "7"]);
    assert_eq!(code(encrypt(&client, "alias/a").await), "KMSInvalidStateException");
    refused(&["key", "enable", &key], "KMSInvalidStateException");
    refused(&["key", "tag", &key, "a=b"], "KMSInvalidStateException");
    region.run_ok(&["key", "cancel-deletion", &key]);
    assert_eq!(code(encrypt(&client, &key).await), "DisabledException");
    refused(&["key", "rotate", &key], "DisabledException");
    set_enabled(&client, &key, true).await.expect("enabled");
    // An alias outlives nothing: it points where it was last pointed.
    let second = create_key(&client).await.expect("a key");
    region.run_ok(&["alias", "update", "alias/a", &second]);
    let named = encrypt(&client, "alias/a").await.expect("a ciphertext").key_id;
    assert!(named.ends_with(&second), "{named}");
    region.run_ok(&["alias", "delete", "alias/a"]);
    assert_eq!(code(encrypt(&client, "alias/a").await), "NotFoundException");

    for _ in 0..7 {
        create_key(&client).await.expect("a key");
    }
    let mut seen = Vec::new();
    let mut marker = None;
    loop {
        let request = v1::ListKeysRequest { limit: Some(4), marker };
        let page = client
            .key(Repeat::Safe, request, |mut c, r| async move { c.list_keys(r).await })
            .await
            .expect("a page");
        assert!(page.keys.len() <= 4);
        assert_eq!(page.truncated, page.next_marker.is_some());
        seen.extend(page.keys.into_iter().map(|k| k.key_id));
        marker = page.next_marker;
        if marker.is_none() {
            break;
        }
    }
    let mut unique = seen.clone();
    unique.sort();
    unique.dedup();
    assert_eq!((seen.len(), unique.len()), (9, 9));
    let request = v1::ListKeysRequest { limit: None, marker: Some("k00".into()) };
    let bad = client.key_once(request, |mut c, r| async move { c.list_keys(r).await }).await;
    assert_eq!(code(bad), "InvalidMarkerException");
}

/// Certificates: expired, foreign, revoked, of a disabled principal, of nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_must_not_get_in_do_not() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let arn = "arn:aws:iam::111122223333:user/guest";
    let out = region.pki("guest").display().to_string();
    region.run_ok(&["principal", "create", arn, "--kind", "user", "--out", &out]);
    let guest = region.client_as("guest", &[], Duration::from_secs(5));
    let random = async |client: &Client| {
        let request = v1::GenerateRandomRequest { number_of_bytes: Some(8) };
        code(client.key_once(request, |mut c, r| async move { c.generate_random(r).await }).await)
    };
    assert_eq!(random(&guest).await, "ok");
    region.run_ok(&["principal", "disable", arn]);
    assert_eq!(random(&guest).await, "UnrecognizedClientException");
    region.run_ok(&["principal", "enable", arn]);
    assert_eq!(random(&guest).await, "ok");
    let listed = region.run_ok(&["principal", "list", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let serial = listed["Principals"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|p| p["Arn"] == arn)
        .map(|p| p["Certificates"][0]["SerialNumber"].as_str().expect("text").to_owned())
        .expect("the guest");
    region.run_ok(&["principal", "revoke", arn, &serial]);
    assert_eq!(random(&guest).await, "UnrecognizedClientException");
    let renewed = region.pki("guest2").display().to_string();
    region.run_ok(&["principal", "renew", arn, "--out", &renewed]);
    let again = region.client_as("guest2", &[], Duration::from_secs(5));
    assert_eq!(random(&again).await, "ok");

    // The last operator stays.
    let operator = "arn:aws:iam::111122223333:user/operator";
    let last = region.run(&["principal", "disable", operator]);
    assert!(String::from_utf8_lossy(&last.stderr).contains("last operator"));

    // A foreign authority, and one's own clock a year ago: refused in the handshake, told plainly.
    let entropy = RealEnv.entropy();
    let now = Timestamp(RealEnv.wall_now_ms());
    let foreign = Authority::generate("eu-west-1", &*entropy, now).expect("an authority");
    let (key, request) = signing_request().expect("a request");
    let issued = foreign
        .issue(&request, &arn.parse().expect("an ARN"), 90, &*entropy, now)
        .expect("a certificate");
    write_pem(&region, "foreign.pem", "CERTIFICATE", &issued.certificate);
    write_pem(&region, "foreign.key", "PRIVATE KEY", &key);
    let stranger = region.client_as("foreign", &[], Duration::from_secs(5));
    let request = v1::GenerateRandomRequest { number_of_bytes: Some(8) };
    let error = stranger
        .key_once(request, |mut c, r| async move { c.generate_random(r).await })
        .await
        .expect_err("refused");
    assert!(error.message.contains("authority"), "{error}");
    let past = Timestamp(now.0 - 400 * Timestamp::DAY_MS);
    let old = foreign
        .issue(&request_again(), &arn.parse().expect("an ARN"), 90, &*entropy, past)
        .expect("a certificate");
    write_pem(&region, "old.pem", "CERTIFICATE", &old.certificate);
    let (cert, key) = (region.pki("old.pem"), region.pki("foreign.key"));
    let output = region.run(&[
        "key",
        "random",
        "--cert",
        &cert.display().to_string(),
        "--key",
        &key.display().to_string(),
    ]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("expired"));
    let metrics = http_get(region.port_base + 101, "/metrics");
    let refused = metrics.lines().find(|line| {
        line.starts_with("keyward_connections_refused_total")
            && line.contains("foreign_certificate")
    });
    assert!(refused.is_some(), "{metrics}");
    for words in ["a connection was refused", "a caller was refused", "was revoked"] {
        assert!(region.log(1).contains(words), "{words} is not in the log");
    }
}

fn request_again() -> Vec<u8> {
    signing_request().expect("a request").1
}

fn write_pem(region: &Region, name: &str, label: &str, der: &[u8]) {
    use std::fmt::Write as _;
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64_of(der).as_bytes().chunks(64) {
        writeln!(text, "{}", String::from_utf8_lossy(line)).expect("a string");
    }
    writeln!(text, "-----END {label}-----").expect("a string");
    fs::write(region.pki(name), text).expect("written");
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A plain HTTP GET.
pub fn http_get(port: u16, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}
