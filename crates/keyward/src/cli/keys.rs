//! `keyward key` and `keyward alias`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Subcommand;
use keyward_client::{Client, Repeat};
use keyward_proto::v1;
use serde_json::{Value, json};

use super::connect::ConnectArgs;
use super::everywhere;
use super::output::{Format, date, done, list, one, sayln};
use crate::error::Failure;

/// `name=value`, for contexts and tags.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    if name.is_empty() {
        return Err("the name before = is empty".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Make a key
    #[command(
        after_help = "Example:\n  keyward key create --description 'orders' --alias alias/orders --tag team=shop"
    )]
    Create {
        /// Free text
        #[arg(long, default_value = "")]
        description: String,
        /// Point this alias at it
        #[arg(long, value_name = "alias/NAME")]
        alias: Option<String>,
        /// A tag; may be given several times
        #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = pair)]
        tags: Vec<(String, String)>,
        /// A multi-Region key: other Regions can have replicas of it. Cannot be changed later
        #[arg(long)]
        multi_region: bool,
    },
    /// Have another Region make a replica of a multi-Region key
    #[command(after_help = "Example:\n  keyward key replicate mrk-1234... us-east-1")]
    Replicate {
        key_id: String,
        /// The other Region
        region: String,
        /// The replica's own description
        #[arg(long, default_value = "")]
        description: String,
        /// A tag of the replica; may be given several times
        #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = pair)]
        tags: Vec<(String, String)>,
    },
    /// Make the replica in another Region the primary
    #[command(after_help = "Example:\n  keyward key update-primary mrk-1234... us-east-1")]
    UpdatePrimary {
        key_id: String,
        /// The other Region
        region: String,
    },
    /// How far each Region is with a multi-Region key
    Replication { key_id: String },
    /// List the account's keys
    List,
    /// Show a key
    Describe { key_id: String },
    /// Change a key's description
    SetDescription { key_id: String, description: String },
    /// Wait until a change of another Region has come to every node of this one
    #[command(after_help = "Example:
  keyward key replication mrk-1234... --output json      there; its Change is what to wait for
  keyward key wait-for us-east-1/1f0c.../42              here")]
    WaitFor {
        /// As `key replication` names it
        change: String,
    },
    /// Switch a key on
    Enable {
        key_id: String,
        /// In every Region that has the key, with a report of each
        #[arg(long)]
        all_regions: bool,
    },
    /// Switch a key off: acknowledged once every node refuses to use it
    #[command(after_help = "Example:
  keyward key disable mrk-1234... --all-regions
      asks each Region that has the key, and tells of each whether it has done so")]
    Disable {
        key_id: String,
        /// In every Region that has the key, with a report of each
        #[arg(long)]
        all_regions: bool,
    },
    /// Start the waiting period before deletion
    ScheduleDeletion {
        key_id: String,
        /// 7 to 30
        #[arg(long, default_value_t = 30)]
        days: i32,
    },
    /// End the waiting period; the key is then disabled
    CancelDeletion { key_id: String },
    /// How far a deletion has come
    #[command(subcommand)]
    Deletion(DeletionCommand),
    /// Rotate now
    Rotate { key_id: String },
    /// Show rotation setting and materials
    Rotations { key_id: String },
    /// Rotate by itself from now on
    EnableRotation {
        key_id: String,
        /// 90 to 2560
        #[arg(long, default_value_t = 365)]
        days: i32,
    },
    /// Stop rotating by itself
    DisableRotation { key_id: String },
    /// Add or change tags
    Tag {
        key_id: String,
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = pair)]
        tags: Vec<(String, String)>,
    },
    /// Remove tags
    Untag {
        key_id: String,
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// List tags
    Tags { key_id: String },
    /// Encrypt up to 4096 bytes; prints base64
    #[command(
        after_help = "Example:\n  echo -n secret | keyward key encrypt alias/app --context tenant=a > secret.b64"
    )]
    Encrypt {
        key_id: String,
        /// A file; standard input when absent
        input: Option<PathBuf>,
        /// Encryption context; may be given several times
        #[arg(long = "context", value_name = "NAME=VALUE", value_parser = pair)]
        context: Vec<(String, String)>,
    },
    /// Decrypt base64 that `encrypt` printed
    Decrypt {
        /// A file; standard input when absent
        input: Option<PathBuf>,
        /// Refuse ciphertexts of another key
        #[arg(long)]
        key_id: Option<String>,
        /// The same context as for encrypting
        #[arg(long = "context", value_name = "NAME=VALUE", value_parser = pair)]
        context: Vec<(String, String)>,
    },
    /// Encrypt again under another key; base64 in and out, the plaintext stays in the service
    ReEncrypt {
        /// The key to encrypt under
        destination_key_id: String,
        /// A file; standard input when absent
        input: Option<PathBuf>,
        /// The context that it was encrypted with
        #[arg(long = "source-context", value_name = "NAME=VALUE", value_parser = pair)]
        source_context: Vec<(String, String)>,
        /// The context to encrypt with
        #[arg(long = "context", value_name = "NAME=VALUE", value_parser = pair)]
        context: Vec<(String, String)>,
    },
    /// Make a data key
    DataKey {
        key_id: String,
        /// Only the encrypted form
        #[arg(long)]
        without_plaintext: bool,
        /// Encryption context
        #[arg(long = "context", value_name = "NAME=VALUE", value_parser = pair)]
        context: Vec<(String, String)>,
    },
    /// Random bytes from the service; prints base64
    Random {
        #[arg(default_value_t = 32)]
        bytes: i32,
    },
}

#[derive(Subcommand)]
pub enum DeletionCommand {
    /// Show, node by node, whether any file still holds the key
    #[command(
        after_help = "Example:\n  keyward key deletion status 1234abcd-12ab-34cd-56ef-1234567890ab"
    )]
    Status { key_id: String },
}

#[derive(Subcommand)]
pub enum AliasCommand {
    /// Make an alias
    #[command(
        after_help = "Example:\n  keyward alias create alias/app 1234abcd-12ab-34cd-56ef-1234567890ab"
    )]
    Create { name: String, key_id: String },
    /// Point an alias at another key
    Update { name: String, key_id: String },
    /// Remove an alias
    Delete { name: String },
    /// List aliases
    List {
        /// Only those of this key
        #[arg(long)]
        key_id: Option<String>,
    },
}

fn read_input(input: Option<&PathBuf>) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = match input {
        Some(path) => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
        None => std::io::stdin().read_to_end(&mut bytes),
    };
    match read {
        Ok(_) => Ok(bytes),
        Err(e) => Err(Failure::new(format!(
            "cannot read {}: {e}",
            input.map_or("standard input".into(), |path| path.display().to_string())
        ))),
    }
}

fn read_base64(input: Option<&PathBuf>) -> Result<Vec<u8>, Failure> {
    let text: Vec<u8> =
        read_input(input)?.into_iter().filter(|b| !b.is_ascii_whitespace()).collect();
    BASE64.decode(text).map_err(|e| {
        Failure::new(format!("the input is not base64: {e}"))
            .next("give what `keyward key encrypt` printed")
    })
}

fn map(pairs: Vec<(String, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().collect()
}

fn tags(pairs: Vec<(String, String)>) -> Vec<v1::Tag> {
    pairs.into_iter().map(|(tag_key, tag_value)| v1::Tag { tag_key, tag_value }).collect()
}

fn show_key(format: Format, key: Option<v1::KeyMetadata>) {
    let key = key.unwrap_or_default();
    let mut fields = vec![
        ("KeyId", json!(key.key_id)),
        ("Arn", json!(key.arn)),
        ("KeyState", json!(key.key_state)),
        ("Enabled", json!(key.enabled)),
        ("Description", json!(key.description)),
        ("CreationDate", json!(date(key.creation_date.as_ref()))),
        ("KeySpec", json!(key.key_spec)),
        ("KeyUsage", json!(key.key_usage)),
        ("Origin", json!(key.origin)),
        ("MultiRegion", json!(key.multi_region)),
        ("CurrentKeyMaterialId", json!(key.current_key_material_id)),
    ];
    if key.deletion_date.is_some() {
        fields.push(("DeletionDate", json!(date(key.deletion_date.as_ref()))));
    }
    if let Some(days) = key.pending_deletion_window_in_days {
        fields.push(("PendingDeletionWindowInDays", json!(days)));
    }
    if let Some(of) = key.multi_region_configuration {
        let one = |key: v1::MultiRegionKey| json!({"Arn": key.arn, "Region": key.region});
        let regions = |keys: Vec<v1::MultiRegionKey>| match format {
            Format::Json => json!(keys.into_iter().map(one).collect::<Vec<_>>()),
            Format::Table => json!(keys.into_iter().map(|key| key.region).collect::<Vec<_>>()),
        };
        if format == Format::Table {
            fields.push(("Type", json!(of.multi_region_key_type)));
            fields.push(("Primary", json!(of.primary_key.unwrap_or_default().region)));
            fields.push(("Replicas", regions(of.replica_keys)));
        } else {
            fields.push((
                "MultiRegionConfiguration",
                json!({
                    "MultiRegionKeyType": of.multi_region_key_type,
                    "PrimaryKey": one(of.primary_key.unwrap_or_default()),
                    "ReplicaKeys": regions(of.replica_keys),
                }),
            ));
        }
    }
    one(format, &fields);
}

fn show_replication(format: Format, status: &v1::GetKeyReplicationStatusResponse) {
    if format == Format::Json {
        let regions: Vec<Value> = status
            .regions
            .iter()
            .map(|one| {
                json!({
                    "Region": one.region,
                    "Arn": one.arn,
                    "Primary": one.primary,
                    "BeingMade": one.being_made,
                    "UpToDate": one.up_to_date,
                    "BehindMilliseconds": one.behind_milliseconds,
                })
            })
            .collect();
        one(
            format,
            &[
                ("KeyId", json!(status.key_id)),
                ("Epoch", json!(status.epoch)),
                ("PrimaryRegion", json!(status.primary_region)),
                ("OfferedTo", json!(status.offered_to)),
                ("RotationWaits", json!(status.rotation_waits)),
                ("Regions", json!(regions)),
                ("Change", json!(status.change)),
            ],
        );
        return;
    }
    let mut fields = vec![
        ("KeyId", json!(status.key_id)),
        ("Primary", json!(format!("{} (epoch {})", status.primary_region, status.epoch))),
    ];
    if let Some(to) = &status.offered_to {
        fields.push(("OfferedTo", json!(to)));
    }
    if status.rotation_waits {
        fields.push(("Rotation", json!("waits until every Region has the new material")));
    }
    fields.push(("Change", json!(status.change)));
    one(format, &fields);
    sayln!("");
    let rows: Vec<Vec<Value>> = status
        .regions
        .iter()
        .map(|one| {
            let is = match (one.up_to_date, one.being_made, one.behind_milliseconds) {
                (true, _, _) => "up to date".to_owned(),
                (_, true, _) => "being made".to_owned(),
                (_, _, Some(ms)) => format!("behind by {:.1} s", ms as f64 / 1000.0),
                _ => "behind".to_owned(),
            };
            vec![
                json!(one.region),
                json!(if one.primary { "primary" } else { "replica" }),
                json!(is),
            ]
        })
        .collect();
    list(format, "Regions", &["Region", "Role", "State"], &rows);
}

fn show_deletion(format: Format, status: v1::GetKeyDeletionStatusResponse) {
    let deleted = status.deleted_date.is_some();
    if format == Format::Json {
        let nodes: Vec<Value> = status
            .nodes
            .iter()
            .map(|n| json!({"Node": n.node_id, "Address": n.address, "Reachable": n.reachable, "Gone": n.gone}))
            .collect();
        one(
            format,
            &[
                ("KeyId", json!(status.key_id)),
                ("KeyState", json!(status.key_state)),
                ("DeletionDate", json!(date(status.deletion_date.as_ref()))),
                ("DeletedDate", json!(date(status.deleted_date.as_ref()))),
                ("Nodes", json!(nodes)),
            ],
        );
        return;
    }
    let mut fields = vec![("KeyId", json!(status.key_id)), ("KeyState", json!(status.key_state))];
    if status.deletion_date.is_some() {
        fields.push(("DeletionDate", json!(date(status.deletion_date.as_ref()))));
    }
    if deleted {
        fields.push(("DeletedDate", json!(date(status.deleted_date.as_ref()))));
    }
    one(format, &fields);
    if !deleted {
        return;
    }
    sayln!("");
    let rows: Vec<Vec<Value>> = status
        .nodes
        .into_iter()
        .map(|node| {
            let state = match (node.gone, node.reachable) {
                (true, _) => "gone from every file",
                (false, true) => "still being purged",
                (false, false) => "not reachable: not known",
            };
            vec![json!(node.node_id), json!(node.address), json!(state)]
        })
        .collect();
    list(format, "Nodes", &["Node", "Address", "Material"], &rows);
    sayln!("\nBackups taken before the deletion still hold the key.");
}

/// Calls with a change, which is sent again only when it is certain that it was not sent.
macro_rules! change {
    ($client:expr, $method:ident, $message:expr) => {
        $client
            .key(Repeat::IfUnsent, $message, |mut c, r| async move { c.$method(r).await })
            .await?
    };
}

/// Calls that change nothing.
macro_rules! ask {
    ($client:expr, $method:ident, $message:expr) => {
        $client.key(Repeat::Safe, $message, |mut c, r| async move { c.$method(r).await }).await?
    };
}

pub async fn key(
    connect: &ConnectArgs,
    format: Format,
    command: KeyCommand,
) -> Result<(), Failure> {
    let client = &connect.client()?;
    match command {
        KeyCommand::Enable { key_id, all_regions: true } => {
            everywhere::switch_key(client, &connect.config()?, format, &key_id, true).await?;
        }
        KeyCommand::Disable { key_id, all_regions: true } => {
            everywhere::switch_key(client, &connect.config()?, format, &key_id, false).await?;
        }
        KeyCommand::WaitFor { change } => {
            ask!(client, wait_for_change, v1::WaitForChangeRequest { change });
            done(format, "it is here, on every node");
        }
        KeyCommand::Replicate { key_id, region, description, tags: pairs } => {
            let request = v1::ReplicateKeyRequest {
                key_id,
                replica_region: region,
                description: Some(description),
                tags: tags(pairs),
                policy: None,
            };
            show_key(format, change!(client, replicate_key, request).replica_key_metadata);
        }
        KeyCommand::UpdatePrimary { key_id, region } => {
            let request = v1::UpdatePrimaryRegionRequest { key_id, primary_region: region.clone() };
            change!(client, update_primary_region, request);
            done(
                format,
                &format!(
                    "the primary moves to {region}: `keyward key replication` shows when it has"
                ),
            );
        }
        KeyCommand::Replication { key_id } => {
            let request = v1::GetKeyReplicationStatusRequest { key_id };
            show_replication(format, &ask!(client, get_key_replication_status, request));
        }
        KeyCommand::Create { description, alias, tags: pairs, multi_region } => {
            let request = v1::CreateKeyRequest {
                description: Some(description),
                tags: tags(pairs),
                multi_region: multi_region.then_some(true),
                ..v1::CreateKeyRequest::default()
            };
            let created = change!(client, create_key, request).key_metadata;
            if let (Some(alias_name), Some(key)) = (alias, &created) {
                let target_key_id = key.key_id.clone();
                let named =
                    v1::CreateAliasRequest { alias_name: alias_name.clone(), target_key_id };
                let result = client
                    .key(Repeat::IfUnsent, named, |mut c, r| async move { c.create_alias(r).await })
                    .await;
                if let Err(error) = result {
                    return Err(Failure::from(error).next(format!(
                        "the key {} was created; name it with `keyward alias create`",
                        key.key_id
                    )));
                }
            }
            show_key(format, created);
        }
        KeyCommand::List => {
            let mut rows = Vec::new();
            let mut marker = None;
            loop {
                let page =
                    ask!(client, list_keys, v1::ListKeysRequest { limit: Some(1000), marker });
                rows.extend(page.keys.into_iter().map(|k| vec![json!(k.key_id), json!(k.key_arn)]));
                marker = page.next_marker;
                if marker.is_none() {
                    break;
                }
            }
            list(format, "Keys", &["KeyId", "KeyArn"], &rows);
        }
        KeyCommand::Describe { key_id } => {
            let answer = ask!(client, describe_key, v1::DescribeKeyRequest { key_id });
            show_key(format, answer.key_metadata);
        }
        KeyCommand::SetDescription { key_id, description } => {
            let request = v1::UpdateKeyDescriptionRequest { key_id, description };
            change!(client, update_key_description, request);
            done(format, "the description was changed");
        }
        KeyCommand::Enable { key_id, all_regions: false } => {
            change!(client, enable_key, v1::EnableKeyRequest { key_id });
            done(format, "enabled, on every node");
        }
        KeyCommand::Disable { key_id, all_regions: false } => {
            change!(client, disable_key, v1::DisableKeyRequest { key_id });
            done(format, "disabled: every node refuses to use it");
        }
        KeyCommand::ScheduleDeletion { key_id, days } => {
            let request =
                v1::ScheduleKeyDeletionRequest { key_id, pending_window_in_days: Some(days) };
            let answer = change!(client, schedule_key_deletion, request);
            one(
                format,
                &[
                    ("KeyId", json!(answer.key_id)),
                    ("KeyState", json!(answer.key_state)),
                    (
                        "DeletionDate",
                        answer.deletion_date.map_or(Value::Null, |at| json!(date(Some(&at)))),
                    ),
                    ("PendingWindowInDays", json!(answer.pending_window_in_days)),
                ],
            );
        }
        KeyCommand::CancelDeletion { key_id } => {
            change!(client, cancel_key_deletion, v1::CancelKeyDeletionRequest { key_id });
            done(format, "cancelled: the key is disabled; `keyward key enable` switches it on");
        }
        KeyCommand::Deletion(DeletionCommand::Status { key_id }) => {
            let request = v1::GetKeyDeletionStatusRequest { key_id };
            show_deletion(format, ask!(client, get_key_deletion_status, request));
        }
        KeyCommand::Rotate { key_id } => {
            let multi_region = key_id.contains("mrk-");
            change!(client, rotate_key_on_demand, v1::RotateKeyOnDemandRequest { key_id });
            let said = if multi_region {
                "under way: the new material is used once every Region has it (`keyward key replication`)"
            } else {
                "rotated: new ciphertexts use the new material, old ones still open"
            };
            done(format, said);
        }
        KeyCommand::Rotations { key_id } => rotations(client, format, key_id).await?,
        KeyCommand::EnableRotation { key_id, days } => {
            let request =
                v1::EnableKeyRotationRequest { key_id, rotation_period_in_days: Some(days) };
            change!(client, enable_key_rotation, request);
            done(format, &format!("rotates every {days} days"));
        }
        KeyCommand::DisableRotation { key_id } => {
            change!(client, disable_key_rotation, v1::DisableKeyRotationRequest { key_id });
            done(format, "no longer rotates by itself");
        }
        KeyCommand::Tag { key_id, tags: pairs } => {
            change!(client, tag_resource, v1::TagResourceRequest { key_id, tags: tags(pairs) });
            done(format, "tagged");
        }
        KeyCommand::Untag { key_id, names } => {
            let request = v1::UntagResourceRequest { key_id, tag_keys: names };
            change!(client, untag_resource, request);
            done(format, "untagged");
        }
        KeyCommand::Tags { key_id } => {
            let request = v1::ListResourceTagsRequest { key_id, limit: None, marker: None };
            let answer = ask!(client, list_resource_tags, request);
            let rows: Vec<Vec<Value>> = answer
                .tags
                .into_iter()
                .map(|tag| vec![json!(tag.tag_key), json!(tag.tag_value)])
                .collect();
            list(format, "Tags", &["TagKey", "TagValue"], &rows);
        }
        other => crypto(client, format, other).await?,
    }
    Ok(())
}

async fn rotations(client: &Client, format: Format, key_id: String) -> Result<(), Failure> {
    let request = v1::GetKeyRotationStatusRequest { key_id: key_id.clone() };
    let status = ask!(client, get_key_rotation_status, request);
    let request = v1::ListKeyRotationsRequest {
        key_id,
        include_key_material: Some("ALL_KEY_MATERIAL".to_owned()),
        limit: Some(1000),
        marker: None,
    };
    let answer = ask!(client, list_key_rotations, request);
    if format == Format::Table {
        match (status.key_rotation_enabled, status.rotation_period_in_days) {
            (true, Some(days)) => sayln!(
                "rotates every {days} days, next on {}",
                date(status.next_rotation_date.as_ref())
            ),
            _ => sayln!("does not rotate by itself"),
        }
    }
    let columns = ["KeyMaterialId", "KeyMaterialState", "RotationDate", "RotationType"];
    let rows: Vec<Vec<Value>> = answer
        .rotations
        .into_iter()
        .map(|r| {
            vec![
                json!(r.key_material_id),
                json!(r.key_material_state),
                json!(date(r.rotation_date.as_ref())),
                json!(r.rotation_type.unwrap_or_default()),
            ]
        })
        .collect();
    if format == Format::Table {
        list(format, "Rotations", &columns, &rows);
        return Ok(());
    }
    let rotations: Vec<Value> = rows
        .into_iter()
        .map(|row| Value::Object(columns.iter().map(ToString::to_string).zip(row).collect()))
        .collect();
    let next = status.next_rotation_date.as_ref();
    one(
        format,
        &[
            ("KeyRotationEnabled", json!(status.key_rotation_enabled)),
            ("RotationPeriodInDays", json!(status.rotation_period_in_days)),
            ("NextRotationDate", json!(next.map(|at| date(Some(at))))),
            ("Rotations", json!(rotations)),
        ],
    );
    Ok(())
}

async fn crypto(client: &Client, format: Format, command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Encrypt { key_id, input, context } => {
            let request = v1::EncryptRequest {
                key_id,
                plaintext: read_input(input.as_ref())?,
                encryption_context: map(context),
                ..v1::EncryptRequest::default()
            };
            let answer = ask!(client, encrypt, request);
            let blob = BASE64.encode(&answer.ciphertext_blob);
            match format {
                Format::Table => sayln!("{blob}"),
                Format::Json => {
                    one(
                        format,
                        &[("CiphertextBlob", json!(blob)), ("KeyId", json!(answer.key_id))],
                    );
                }
            }
        }
        KeyCommand::Decrypt { input, key_id, context } => {
            let request = v1::DecryptRequest {
                ciphertext_blob: read_base64(input.as_ref())?,
                encryption_context: map(context),
                key_id,
                ..v1::DecryptRequest::default()
            };
            let answer = ask!(client, decrypt, request);
            match format {
                Format::Table => std::io::stdout()
                    .write_all(&answer.plaintext)
                    .map_err(|e| Failure::new(format!("cannot write: {e}")))?,
                Format::Json => one(
                    format,
                    &[
                        ("Plaintext", json!(BASE64.encode(&answer.plaintext))),
                        ("KeyId", json!(answer.key_id)),
                        ("KeyMaterialId", json!(answer.key_material_id)),
                    ],
                ),
            }
        }
        KeyCommand::ReEncrypt { destination_key_id, input, source_context, context } => {
            let request = v1::ReEncryptRequest {
                ciphertext_blob: read_base64(input.as_ref())?,
                source_encryption_context: map(source_context),
                destination_key_id,
                destination_encryption_context: map(context),
                ..v1::ReEncryptRequest::default()
            };
            let answer = ask!(client, re_encrypt, request);
            let blob = BASE64.encode(&answer.ciphertext_blob);
            match format {
                Format::Table => sayln!("{blob}"),
                Format::Json => one(
                    format,
                    &[
                        ("CiphertextBlob", json!(blob)),
                        ("SourceKeyId", json!(answer.source_key_id)),
                        ("KeyId", json!(answer.key_id)),
                    ],
                ),
            }
        }
        KeyCommand::DataKey { key_id, without_plaintext, context } => {
            let encryption_context = map(context);
            let key_spec = Some("AES_256".to_owned());
            let mut fields = Vec::new();
            if without_plaintext {
                let request = v1::GenerateDataKeyWithoutPlaintextRequest {
                    key_id,
                    encryption_context,
                    key_spec,
                    ..v1::GenerateDataKeyWithoutPlaintextRequest::default()
                };
                let answer = ask!(client, generate_data_key_without_plaintext, request);
                fields.push(("CiphertextBlob", json!(BASE64.encode(&answer.ciphertext_blob))));
                fields.push(("KeyId", json!(answer.key_id)));
            } else {
                let request = v1::GenerateDataKeyRequest {
                    key_id,
                    encryption_context,
                    key_spec,
                    ..v1::GenerateDataKeyRequest::default()
                };
                let answer = ask!(client, generate_data_key, request);
                fields.push(("Plaintext", json!(BASE64.encode(&answer.plaintext))));
                fields.push(("CiphertextBlob", json!(BASE64.encode(&answer.ciphertext_blob))));
                fields.push(("KeyId", json!(answer.key_id)));
            }
            one(format, &fields);
        }
        KeyCommand::Random { bytes } => {
            let request = v1::GenerateRandomRequest { number_of_bytes: Some(bytes) };
            let answer = ask!(client, generate_random, request);
            let text = BASE64.encode(&answer.plaintext);
            match format {
                Format::Table => sayln!("{text}"),
                Format::Json => one(format, &[("Plaintext", json!(text))]),
            }
        }
        _ => unreachable!("every other command is handled above"),
    }
    Ok(())
}

pub async fn alias(client: &Client, format: Format, command: AliasCommand) -> Result<(), Failure> {
    match command {
        AliasCommand::Create { name, key_id } => {
            let request = v1::CreateAliasRequest { alias_name: name, target_key_id: key_id };
            change!(client, create_alias, request);
            done(format, "created");
        }
        AliasCommand::Update { name, key_id } => {
            let request = v1::UpdateAliasRequest { alias_name: name, target_key_id: key_id };
            change!(client, update_alias, request);
            done(format, "updated, on every node");
        }
        AliasCommand::Delete { name } => {
            change!(client, delete_alias, v1::DeleteAliasRequest { alias_name: name });
            done(format, "deleted");
        }
        AliasCommand::List { key_id } => {
            let mut rows = Vec::new();
            let mut marker = None;
            loop {
                let request =
                    v1::ListAliasesRequest { key_id: key_id.clone(), limit: Some(100), marker };
                let page = ask!(client, list_aliases, request);
                rows.extend(page.aliases.into_iter().map(|a| {
                    vec![
                        json!(a.alias_name),
                        json!(a.target_key_id),
                        json!(date(a.last_updated_date.as_ref())),
                        json!(a.alias_arn),
                    ]
                }));
                marker = page.next_marker;
                if marker.is_none() {
                    break;
                }
            }
            let columns = ["AliasName", "TargetKeyId", "LastUpdatedDate", "AliasArn"];
            list(format, "Aliases", &columns, &rows);
        }
    }
    Ok(())
}
