//! A root in a token that is slow, answers wrongly, or is pulled out: keys that are open go on as before, then a typed
//! refusal, readiness says why, and all comes back by itself.

use std::fs;
use std::time::Duration;

use keyward_env::{Env, RealEnv};

use crate::audit::ready;
use crate::roots::token;
use crate::support::{
    Load, Region, code, create_key, decrypt, encrypt, goes_on_for, roots_of, wait_until,
};

/// The slowest call on a key that is open, while its root takes 500 ms for every answer.
const UNTOUCHED: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_slow_or_wrong_or_gone_delays_no_open_key_and_comes_back() {
    let mut region = Region::start(3);
    let Some(pin) = token(&mut region) else { return };
    let source = include_str!("shims/moody_token.c");
    let Some(module) = region.compile("moody_token", source) else { return };
    let mood = region.folder.path().join("mood");
    let is = |text: &str| fs::write(&mood, text).expect("written");
    is("fine");
    region.environment.push(("KEYWARD_TEST_TOKEN_MOOD".to_owned(), mood.display().to_string()));
    let text = fs::read_to_string(region.config(2)).expect("read");
    let changed = text
        .replace("root_grace_seconds = 3600", "root_grace_seconds = 3")
        .replace("root_probe_interval_ms = 5000", "root_probe_interval_ms = 200");
    assert_ne!(text, changed);
    fs::write(region.config(2), changed).expect("written");
    region.stop(2);
    region.start_node(2);
    region.wait_serving(3).await;
    let (module, pin) = (module.display().to_string(), pin.display().to_string());
    let file = roots_of(&region, 2).await.remove(0);
    region.run_ok(&[
        "--timeout",
        "60",
        "root",
        "rotate",
        "2",
        &file,
        "pkcs11",
        "--module",
        &module,
        "--token-label",
        "keyward",
        "--key-label",
        "root-2",
        "--pin-file",
        &pin,
    ]);
    let key = create_key(&region.client(&[])).await.expect("a key");
    let client = region.client(&[2]);
    let blob = encrypt(&client, &key).await.expect("a ciphertext").ciphertext_blob;

    // Slow: three probes are answered late and rightly; nobody waits for them.
    let load = Load::start(vec![region.client(&[2])], &key, Duration::from_millis(1));
    is("slow");
    RealEnv.sleep(Duration::from_secs(4)).await;
    let calls = load.end_well().await;
    assert!(calls.slowest < UNTOUCHED, "a call took {:?}", calls.slowest);
    assert!(ready(&region, 2).0, "a slow root is a root: {}", ready(&region, 2).1);
    // A new domain key waits for it, and is there.
    region.run_ok(&["--timeout", "60", "cluster", "rotate-domain-key"]);
    is("fine");

    for how in ["wrong", "gone"] {
        is(how);
        let began = RealEnv.boot_now();
        wait_until("readiness says so", Duration::from_secs(10), async || {
            let (is_ready, answer) = ready(&region, 2);
            !is_ready && answer.contains("no root answers")
        })
        .await;
        let served = goes_on_for(&client, &key, began).await;
        assert!(served > Duration::from_secs(2), "{how}: open keys went on for {served:?} only");
        let error = encrypt(&client, &key).await.expect_err("refused");
        assert!(error.retryable && error.message.contains("root"), "{how}: {error}");
        assert_eq!(code(decrypt(&region.client(&[1]), &blob).await), "ok", "the others serve");
        is("fine");
        wait_until("it is back", Duration::from_secs(15), async || {
            decrypt(&client, &blob).await.is_ok_and(|opened| opened.plaintext == b"plaintext")
                && ready(&region, 2).0
        })
        .await;
    }
}
