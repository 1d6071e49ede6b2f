//! Invitations that must not let anybody in: each is refused with the reason and the next step, and leaves nothing
//! behind, on the machine or in the Region.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keyward_client::Repeat;
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use prost::Message;

use crate::clocks::{SHIFTER, shifter};
use crate::support::{KEYWARD, Region, code};

/// The machine that wants to be let in: everything of it is under one folder. Returns what it was told.
fn join(region: &Region, token: &str, at: u16, clock: Option<&Path>) -> (bool, String) {
    let place = region.folder.path().join("newcomer");
    let output = Command::new(KEYWARD)
        .args(["cluster", "join", token, "--config"])
        .arg(place.join("keyward.toml"))
        .args(["--address", &region.endpoint(at), "--listen", &region.endpoint(at), "--data"])
        .arg(place.join("data"))
        .envs(clock.map(shifter).unwrap_or_default())
        .output()
        .expect("keyward runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Refused with these words, and nothing is left on the machine.
fn refused(region: &Region, token: &str, words: &[&str], clock: Option<&Path>) {
    let (joined, text) = join(region, token, 9, clock);
    assert!(!joined, "{words:?}: it joined");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
    let place = region.folder.path().join("newcomer");
    let left: Vec<_> = fs::read_dir(&place)
        .map(|entries| entries.map(|entry| entry.expect("an entry").path()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{words:?} left {left:?}");
}

fn invite(region: &Region) -> String {
    region.run_ok(&["cluster", "invite"]).trim().to_owned()
}

/// The token with another content, and the check sum that belongs to it.
fn altered(token: &str, change: impl FnOnce(&mut v1::InviteResponse)) -> String {
    let (prefix, digits) = token.split_once('.').expect("a token");
    let bytes = URL_SAFE_NO_PAD.decode(digits).expect("base64");
    let (body, _) = bytes.split_at(bytes.len() - 4);
    let mut invited = v1::InviteResponse::decode(body).expect("an invitation");
    change(&mut invited);
    let mut bytes = invited.encode_to_vec();
    let sum = ring::digest::digest(&ring::digest::SHA256, &bytes);
    bytes.extend_from_slice(&sum.as_ref()[..4]);
    format!("{prefix}.{}", URL_SAFE_NO_PAD.encode(bytes))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_that_is_not_good_lets_nobody_in() {
    let (foreign, foreign_endpoints) = {
        let other = Region::start(1);
        other.wait_serving(1).await;
        (invite(&other), vec![other.endpoint(1)])
    };
    let region = Region::start(1);
    region.wait_serving(1).await;
    let endpoint = region.endpoint(1);
    assert!(!foreign_endpoints.contains(&endpoint));

    // Another Region's, as it is and led to this one.
    refused(&region, &foreign, &["nothing listens there", "cluster invite"], None);
    let led_here = altered(&foreign, |invited| invited.endpoints = vec![endpoint.clone()]);
    refused(&region, &led_here, &["is this the right Region?"], None);
    // With this Region's authority in it, its certificate is still foreign.
    let disguised = altered(&invite(&region), |invited| {
        let stolen = decoded(&foreign);
        (invited.certificate, invited.private_key) = (stolen.certificate, stolen.private_key);
    });
    refused(&region, &disguised, &["error:", "authority"], None);

    // Over: by this machine's own clock, and by the Region's when the machine's own is wrong or the token was changed.
    let short = region.run_ok(&["cluster", "invite", "--valid", "1"]).trim().to_owned();
    RealEnv.sleep(Duration::from_secs(2)).await;
    refused(&region, &short, &["has expired", "cluster invite"], None);
    let stretched = altered(&short, |invited| {
        if let Some(end) = &mut invited.expires {
            end.seconds += 3600;
        }
    });
    refused(&region, &stretched, &["error:", "expired"], None);

    // A machine whose clock is off by more than is allowed.
    if Path::new(SHIFTER).exists() {
        let clock = region.folder.path().join("clock");
        fs::write(&clock, "+60s").expect("written");
        refused(&region, &invite(&region), &["clock is 60 s off", "chrony"], Some(&clock));
    }

    // A second founder.
    let operator = region.client_as("operator", &[], Duration::from_secs(5));
    let request = v1::FoundRegionRequest {
        operator_arn: "arn:aws:iam::111122223333:user/operator".to_owned(),
        ..v1::FoundRegionRequest::default()
    };
    let again = operator
        .operator(Repeat::IfUnsent, request, |mut c, r| async move { c.found_region(r).await })
        .await;
    assert_eq!(code(again), "AlreadyExistsException");

    // Nobody got in. A good one does, once.
    let nodes = region.status().await.expect("a status").nodes.len();
    assert_eq!(nodes, 1);
    let good = invite(&region);
    let (joined, text) = join(&region, &good, 8, None);
    assert!(joined, "{text}");
    fs::remove_dir_all(region.folder.path().join("newcomer")).expect("removed");
    refused(&region, &good, &["was used already", "cluster invite"], None);
}

fn decoded(token: &str) -> v1::InviteResponse {
    let digits = token.split_once('.').expect("a token").1;
    let bytes = URL_SAFE_NO_PAD.decode(digits).expect("base64");
    v1::InviteResponse::decode(&bytes[..bytes.len() - 4]).expect("an invitation")
}
