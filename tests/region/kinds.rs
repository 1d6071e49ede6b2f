//! Every RPC with every kind of caller: administrators are not users, operators are neither, nodes are
//! nobody here.

use std::fs;
use std::time::Duration;

use keyward_client::{CallError, Client};
use keyward_proto::v1;

use crate::support::{Region, create_key, encrypt};

/// Calls one operation; anything but a refusal of the caller counts as let in.
macro_rules! let_in {
    (key $client:expr, $method:ident, $request:expr) => {
        let_in(
            &$client
                .key_once($request, |mut c, r| async move { c.$method(r).await })
                .await
                .map(drop),
        )
    };
    (quota $client:expr, $method:ident, $request:expr) => {
        let_in(
            &$client
                .quota(keyward_client::Repeat::IfUnsent, $request, |mut c, r| async move {
                    c.$method(r).await
                })
                .await
                .map(drop),
        )
    };
    (operator $client:expr, $method:ident, $request:expr) => {
        let_in(
            &$client
                .operator(keyward_client::Repeat::IfUnsent, $request, |mut c, r| async move {
                    c.$method(r).await
                })
                .await
                .map(drop),
        )
    };
}

fn let_in(result: &Result<(), CallError>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => {
            let code = error.code.as_deref();
            assert!(code.is_some(), "an untyped refusal: {error}");
            !matches!(code, Some("AccessDeniedException" | "UnrecognizedClientException"))
        }
    }
}

/// What an operation is open to.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    Administrators,
    Users,
    Both,
    Operators,
}

async fn every_rpc(client: &Client, key: &str, blob: &[u8]) -> Vec<(&'static str, Open, bool)> {
    use Open::{Administrators, Both, Operators, Users};
    let key_id = || key.to_owned();
    let ciphertext_blob = || blob.to_vec();
    let arn = || "arn:aws:iam::111122223333:user/nobody".to_owned();
    let alias_name = || "alias/kinds".to_owned();
    let quota_name =
        || Some(v1::QuotaName { scope: "each-account".into(), holder: None, covers: "all".into() });
    macro_rules! rpc {
        ($plane:ident $open:expr, $method:ident, $request:expr) => {
            (stringify!($method), $open, let_in!($plane client, $method, $request))
        };
    }
    vec![
        rpc!(key Administrators, create_key, v1::CreateKeyRequest::default()),
        rpc!(key Both, describe_key, v1::DescribeKeyRequest { key_id: key_id() }),
        rpc!(key Both, list_keys, v1::ListKeysRequest::default()),
        rpc!(key Administrators, update_key_description,
            v1::UpdateKeyDescriptionRequest { key_id: key_id(), ..Default::default() }),
        rpc!(key Administrators, enable_key, v1::EnableKeyRequest { key_id: key_id() }),
        rpc!(key Administrators, disable_key, v1::DisableKeyRequest { key_id: key_id() }),
        rpc!(key Administrators, enable_key, v1::EnableKeyRequest { key_id: key_id() }),
        rpc!(key Administrators, create_alias,
            v1::CreateAliasRequest { alias_name: alias_name(), target_key_id: key_id() }),
        rpc!(key Administrators, update_alias,
            v1::UpdateAliasRequest { alias_name: alias_name(), target_key_id: key_id() }),
        rpc!(key Both, list_aliases, v1::ListAliasesRequest::default()),
        rpc!(key Administrators, tag_resource, v1::TagResourceRequest {
            key_id: key_id(),
            tags: vec![v1::Tag { tag_key: "a".into(), tag_value: "b".into() }],
        }),
        rpc!(key Administrators, list_resource_tags,
            v1::ListResourceTagsRequest { key_id: key_id(), ..Default::default() }),
        rpc!(key Administrators, untag_resource,
            v1::UntagResourceRequest { key_id: key_id(), tag_keys: vec!["a".into()] }),
        rpc!(key Administrators, enable_key_rotation,
            v1::EnableKeyRotationRequest { key_id: key_id(), ..Default::default() }),
        rpc!(key Administrators, get_key_rotation_status,
            v1::GetKeyRotationStatusRequest { key_id: key_id() }),
        rpc!(key Administrators, disable_key_rotation,
            v1::DisableKeyRotationRequest { key_id: key_id() }),
        rpc!(key Administrators, rotate_key_on_demand,
            v1::RotateKeyOnDemandRequest { key_id: key_id() }),
        rpc!(key Administrators, list_key_rotations,
            v1::ListKeyRotationsRequest { key_id: key_id(), ..Default::default() }),
        rpc!(key Users, encrypt, v1::EncryptRequest {
            key_id: key_id(), plaintext: b"x".to_vec(), ..Default::default()
        }),
        rpc!(key Users, decrypt,
            v1::DecryptRequest { ciphertext_blob: ciphertext_blob(), ..Default::default() }),
        rpc!(key Users, decrypt, v1::DecryptRequest {
            ciphertext_blob: ciphertext_blob(), key_id: Some(key_id()), ..Default::default()
        }),
        rpc!(key Users, re_encrypt, v1::ReEncryptRequest {
            ciphertext_blob: ciphertext_blob(),
            destination_key_id: key_id(),
            ..Default::default()
        }),
        rpc!(key Users, generate_data_key, v1::GenerateDataKeyRequest {
            key_id: key_id(), number_of_bytes: Some(32), ..Default::default()
        }),
        rpc!(key Users, generate_data_key_without_plaintext,
        v1::GenerateDataKeyWithoutPlaintextRequest {
            key_id: key_id(), number_of_bytes: Some(32), ..Default::default()
        }),
        rpc!(key Users, generate_random, v1::GenerateRandomRequest { number_of_bytes: Some(8) }),
        rpc!(key Administrators, schedule_key_deletion,
            v1::ScheduleKeyDeletionRequest { key_id: key_id(), ..Default::default() }),
        rpc!(key Administrators, cancel_key_deletion,
            v1::CancelKeyDeletionRequest { key_id: key_id() }),
        rpc!(key Administrators, get_key_deletion_status,
            v1::GetKeyDeletionStatusRequest { key_id: key_id() }),
        rpc!(key Administrators, enable_key, v1::EnableKeyRequest { key_id: key_id() }),
        rpc!(key Administrators, delete_alias, v1::DeleteAliasRequest { alias_name: alias_name() }),
        rpc!(operator Operators, cluster_status, v1::ClusterStatusRequest {}),
        rpc!(operator Operators, add_node,
            v1::AddNodeRequest { node_id: 1, address: "127.0.0.1:1".into(), learner: false }),
        rpc!(operator Operators, remove_node, v1::RemoveNodeRequest { node_id: 77 }),
        rpc!(operator Operators, transfer_leadership,
            v1::TransferLeadershipRequest { to: Some(77) }),
        rpc!(operator Operators, rotate_domain_key, v1::RotateDomainKeyRequest {}),
        rpc!(operator Operators, invite, v1::InviteRequest { valid_seconds: Some(5) }),
        rpc!(operator Operators, list_roots, v1::ListRootsRequest {}),
        rpc!(operator Operators, add_root,
            v1::AddRootRequest { node_id: 1, spec: "provider = \"tape\"".into() }),
        rpc!(operator Operators, remove_root, v1::RemoveRootRequest {
            node_id: 1, root_id: "file:00000000000000000000000000000000".into()
        }),
        rpc!(operator Operators, offer_share, v1::OfferShareRequest {
            node_id: 1,
            root_id: "shamir:00000000000000000000000000000000".into(),
            share: "x".into(),
        }),
        rpc!(operator Operators, take_share, v1::TakeShareRequest {
            node_id: 1, root_id: "shamir:00000000000000000000000000000000".into()
        }),
        rpc!(quota Operators, set_quota, v1::SetQuotaRequest {
            name: quota_name(),
            limits: vec![v1::QuotaLimit { window: "second".into(), limit: 1_000_000, burst: None }],
        }),
        rpc!(quota Operators, list_quotas, v1::ListQuotasRequest {}),
        rpc!(quota Operators, get_quota_usage, v1::GetQuotaUsageRequest {}),
        rpc!(quota Operators, delete_quota, v1::DeleteQuotaRequest { name: quota_name() }),
        rpc!(quota Operators, list_quota_profiles, v1::ListQuotaProfilesRequest {}),
        rpc!(quota Operators, apply_quota_profile,
            v1::ApplyQuotaProfileRequest { profile: "moon".into() }),
        rpc!(operator Operators, advance_clock, v1::AdvanceClockRequest { milliseconds: 0 }),
        rpc!(operator Operators, create_principal, v1::CreatePrincipalRequest {
            arn: arn(), kinds: vec!["user".into()], ..Default::default()
        }),
        rpc!(operator Operators, list_principals, v1::ListPrincipalsRequest::default()),
        rpc!(operator Operators, disable_principal, v1::DisablePrincipalRequest { arn: arn() }),
        rpc!(operator Operators, enable_principal, v1::EnablePrincipalRequest { arn: arn() }),
        rpc!(operator Operators, issue_certificate,
            v1::IssueCertificateRequest { arn: arn(), ..Default::default() }),
        rpc!(operator Operators, revoke_certificate,
            v1::RevokeCertificateRequest { arn: arn(), serial_number: "00".into() }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_is_open_to_exactly_its_kinds() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let blob = encrypt(&client, &key).await.expect("a ciphertext").ciphertext_blob;
    let account = "arn:aws:iam::111122223333:user";
    for (name, kinds) in [
        ("admin", &["administrator"][..]),
        ("user", &["user"]),
        ("both", &["administrator", "user"]),
    ] {
        let out = region.pki(name).display().to_string();
        let arn = format!("{account}/{name}");
        let mut arguments = vec!["principal", "create", &arn, "--out", &out];
        for kind in kinds {
            arguments.extend(["--kind", kind]);
        }
        region.run_ok(&arguments);
    }
    for (file, place) in [("node.pem", "node.pem"), ("node.key", "node.key")] {
        fs::copy(region.node_folder(1).join(file), region.pki(place)).expect("copied");
    }
    let callers = [
        ("operator", &[Open::Operators][..]),
        ("admin", &[Open::Administrators, Open::Both]),
        ("user", &[Open::Users, Open::Both]),
        ("both", &[Open::Administrators, Open::Users, Open::Both]),
        ("node", &[]),
    ];
    for (who, expected) in callers {
        // The alias is there for each caller; the last one who could has deleted it.
        drop(region.run(&["alias", "create", "alias/kinds", &key]));
        let client = region.client_as(who, &[], Duration::from_secs(10));
        for (rpc, open, got) in every_rpc(&client, &key, &blob).await {
            assert_eq!(got, expected.contains(&open), "{rpc} called by {who}");
        }
    }
    // An operator is nothing else at the same time.
    let mixed = region.run(&[
        "principal",
        "create",
        &format!("{account}/mixed"),
        "--kind",
        "operator",
        "--kind",
        "user",
        "--outside",
    ]);
    assert!(!mixed.status.success());
}

/// The door between nodes is closed to everybody else, operators included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principals_certificate_is_no_nodes_certificate() {
    use keyward_proto::v1::peer_service_client::PeerServiceClient;
    use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

    let region = Region::start(1);
    region.wait_serving(1).await;
    let read = |path: std::path::PathBuf| fs::read(path).expect("a PEM file");
    let node = region.node_folder(1);
    let identities = [
        ("dev", region.pki("dev.pem"), region.pki("dev.key")),
        ("operator", region.pki("operator.pem"), region.pki("operator.key")),
        ("node", node.join("node.pem"), node.join("node.key")),
    ];
    for (who, certificate, key) in identities {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(region.pki("ca.pem"))))
            .identity(Identity::from_pem(read(certificate), read(key)));
        let channel = Channel::from_shared(format!("https://{}", region.endpoint(1)))
            .expect("an address")
            .tls_config(tls)
            .expect("TLS")
            .connect()
            .await
            .expect("a connection");
        for target in ["1", "2"] {
            let mut request = tonic::Request::new(v1::PeerFrame { body: vec![1, 0] });
            request.metadata_mut().insert("keyward-target", target.parse().expect("a header"));
            let answer = PeerServiceClient::new(channel.clone()).call(request).await;
            // A node is let in, and only to the node that it means.
            let expected = who == "node" && target == "1";
            assert_eq!(answer.is_ok(), expected, "{who} to node {target}");
            if let Err(status) = answer {
                assert_eq!(status.code(), tonic::Code::PermissionDenied);
            }
        }
    }
}
