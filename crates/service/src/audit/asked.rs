//! What was asked, as a record shows it.

use std::sync::Arc;

use keyward_audit::{Pair, Value};
use keyward_model::KeyArn;
use keyward_state::{Key, State};

use crate::api::{Caller, Request};

const ALGORITHM: Value<'static> = Value::Str("SYMMETRIC_DEFAULT");

fn flag(on: bool) -> Value<'static> {
    if on { Value::Bool(true) } else { Value::Absent }
}

/// What was asked, as CloudTrail shows it: never a plaintext, never a ciphertext.
pub(super) fn with_parameters<T>(request: &Request, record: impl FnOnce(&[Pair<'_>]) -> T) -> T {
    let text = |text: &'static str| Value::Str(text);
    match request {
        Request::CreateKey(r) => {
            let tags: Vec<(&str, &str)> =
                r.tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str())).collect();
            record(&[
                ("description", r.description.as_deref().into()),
                ("keyUsage", r.key_usage.as_deref().into()),
                ("keySpec", r.key_spec.as_deref().into()),
                ("origin", r.origin.as_deref().into()),
                ("multiRegion", r.multi_region.map_or(Value::Absent, Value::Bool)),
                ("tags", if tags.is_empty() { Value::Absent } else { Value::Tags(&tags) }),
                ("policy", r.policy.as_deref().into()),
            ])
        }
        Request::DescribeKey(r) => record(&[("keyId", r.key_id.as_str().into())]),
        Request::ListKeys(r) => {
            record(&[("limit", r.limit.into()), ("marker", r.marker.as_deref().into())])
        }
        Request::UpdateKeyDescription(r) => record(&[
            ("keyId", r.key_id.as_str().into()),
            ("description", r.description.as_str().into()),
        ]),
        Request::EnableKey(r) => record(&[("keyId", r.key_id.as_str().into())]),
        Request::DisableKey(r) => record(&[("keyId", r.key_id.as_str().into())]),
        Request::ScheduleKeyDeletion(r) => record(&[
            ("keyId", r.key_id.as_str().into()),
            ("pendingWindowInDays", r.pending_window_in_days.into()),
        ]),
        Request::CancelKeyDeletion(r) => record(&[("keyId", r.key_id.as_str().into())]),
        Request::GetKeyDeletionStatus(r) => record(&[("keyId", r.key_id.as_str().into())]),
        Request::CreateAlias(r) => record(&[
            ("aliasName", r.alias_name.as_str().into()),
            ("targetKeyId", r.target_key_id.as_str().into()),
        ]),
        Request::UpdateAlias(r) => record(&[
            ("aliasName", r.alias_name.as_str().into()),
            ("targetKeyId", r.target_key_id.as_str().into()),
        ]),
        Request::DeleteAlias(r) => record(&[("aliasName", r.alias_name.as_str().into())]),
        Request::ListAliases(r) => record(&[
            ("keyId", r.key_id.as_deref().into()),
            ("limit", r.limit.into()),
            ("marker", r.marker.as_deref().into()),
        ]),
        Request::TagResource(r) => {
            let tags: Vec<(&str, &str)> =
                r.tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str())).collect();
            record(&[("keyId", r.key_id.as_str().into()), ("tags", Value::Tags(&tags))])
        }
        Request::UntagResource(r) => {
            record(&[("keyId", r.key_id.as_str().into()), ("tagKeys", Value::StrList(&r.tag_keys))])
        }
        Request::ListResourceTags(r) => record(&[
            ("keyId", r.key_id.as_str().into()),
            ("limit", r.limit.into()),
            ("marker", r.marker.as_deref().into()),
        ]),
        Request::EnableKeyRotation(r) => record(&[
            ("keyId", r.key_id.as_str().into()),
            ("rotationPeriodInDays", r.rotation_period_in_days.into()),
        ]),
        Request::DisableKeyRotation(r) => record(&[("keyId", r.key_id.as_str().into())]),
        Request::GetKeyRotationStatus(r) => record(&[("keyId", r.key_id.as_str().into())]),
        Request::RotateKeyOnDemand(r) => record(&[("keyId", r.key_id.as_str().into())]),
        Request::ListKeyRotations(r) => record(&[
            ("keyId", r.key_id.as_str().into()),
            ("includeKeyMaterial", r.include_key_material.as_deref().into()),
            ("limit", r.limit.into()),
            ("marker", r.marker.as_deref().into()),
        ]),
        Request::Encrypt(r) => record(&[
            ("keyId", r.key_id.as_str().into()),
            ("encryptionContext", (&r.encryption_context).into()),
            (
                "encryptionAlgorithm",
                r.encryption_algorithm.as_deref().map_or(ALGORITHM, Value::Str),
            ),
            ("dryRun", flag(r.dry_run)),
        ]),
        Request::Decrypt(r) => record(&[
            ("keyId", r.key_id.as_deref().into()),
            ("encryptionContext", (&r.encryption_context).into()),
            (
                "encryptionAlgorithm",
                r.encryption_algorithm.as_deref().map_or(ALGORITHM, Value::Str),
            ),
            ("dryRun", flag(r.dry_run)),
        ]),
        Request::ReEncrypt(r) => record(&[
            ("sourceKeyId", r.source_key_id.as_deref().into()),
            ("sourceEncryptionContext", (&r.source_encryption_context).into()),
            ("destinationKeyId", r.destination_key_id.as_str().into()),
            ("destinationEncryptionContext", (&r.destination_encryption_context).into()),
            ("sourceEncryptionAlgorithm", text("SYMMETRIC_DEFAULT")),
            ("destinationEncryptionAlgorithm", text("SYMMETRIC_DEFAULT")),
            ("dryRun", flag(r.dry_run)),
        ]),
        Request::GenerateDataKey(r) => record(&[
            ("keyId", r.key_id.as_str().into()),
            ("encryptionContext", (&r.encryption_context).into()),
            ("keySpec", r.key_spec.as_deref().into()),
            ("numberOfBytes", r.number_of_bytes.into()),
            ("dryRun", flag(r.dry_run)),
        ]),
        Request::GenerateDataKeyWithoutPlaintext(r) => record(&[
            ("keyId", r.key_id.as_str().into()),
            ("encryptionContext", (&r.encryption_context).into()),
            ("keySpec", r.key_spec.as_deref().into()),
            ("numberOfBytes", r.number_of_bytes.into()),
            ("dryRun", flag(r.dry_run)),
        ]),
        Request::GenerateRandom(r) => record(&[("numberOfBytes", r.number_of_bytes.into())]),
        Request::ReplicateKey(r) => {
            let tags: Vec<(&str, &str)> =
                r.tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str())).collect();
            record(&[
                ("keyId", r.key_id.as_str().into()),
                ("replicaRegion", r.replica_region.as_str().into()),
                ("description", r.description.as_deref().into()),
                ("tags", if tags.is_empty() { Value::Absent } else { Value::Tags(&tags) }),
                ("policy", r.policy.as_deref().into()),
            ])
        }
        Request::UpdatePrimaryRegion(r) => record(&[
            ("keyId", r.key_id.as_str().into()),
            ("primaryRegion", r.primary_region.as_str().into()),
        ]),
        Request::WaitForChange(r) => record(&[("change", r.change.as_str().into())]),
        Request::GetKeyReplicationStatus(r) => record(&[("keyId", r.key_id.as_str().into())]),
    }
}

/// The key that a request names, for the record of a call that did not get to answer.
pub(super) fn named_key(request: &Request) -> Option<&str> {
    match request {
        Request::CreateKey(_)
        | Request::ListKeys(_)
        | Request::DeleteAlias(_)
        | Request::WaitForChange(_)
        | Request::GenerateRandom(_) => None,
        Request::DescribeKey(r) => Some(&r.key_id),
        Request::UpdateKeyDescription(r) => Some(&r.key_id),
        Request::EnableKey(r) => Some(&r.key_id),
        Request::DisableKey(r) => Some(&r.key_id),
        Request::ScheduleKeyDeletion(r) => Some(&r.key_id),
        Request::CancelKeyDeletion(r) => Some(&r.key_id),
        Request::GetKeyDeletionStatus(r) => Some(&r.key_id),
        Request::CreateAlias(r) => Some(&r.target_key_id),
        Request::UpdateAlias(r) => Some(&r.target_key_id),
        Request::ListAliases(r) => r.key_id.as_deref(),
        Request::TagResource(r) => Some(&r.key_id),
        Request::UntagResource(r) => Some(&r.key_id),
        Request::ListResourceTags(r) => Some(&r.key_id),
        Request::EnableKeyRotation(r) => Some(&r.key_id),
        Request::DisableKeyRotation(r) => Some(&r.key_id),
        Request::GetKeyRotationStatus(r) => Some(&r.key_id),
        Request::RotateKeyOnDemand(r) => Some(&r.key_id),
        Request::ListKeyRotations(r) => Some(&r.key_id),
        Request::Encrypt(r) => Some(&r.key_id),
        Request::Decrypt(r) => r.key_id.as_deref(),
        Request::ReEncrypt(r) => Some(&r.destination_key_id),
        Request::GenerateDataKey(r) => Some(&r.key_id),
        Request::GenerateDataKeyWithoutPlaintext(r) => Some(&r.key_id),
        Request::ReplicateKey(r) => Some(&r.key_id),
        Request::UpdatePrimaryRegion(r) => Some(&r.key_id),
        Request::GetKeyReplicationStatus(r) => Some(&r.key_id),
    }
}

/// The ARN of the key that a text names, if it is one that the Region has.
pub(super) fn arn_of(state: &State, caller: &Caller, text: &str) -> Option<KeyArn> {
    let region = &state.region.as_ref()?.region;
    let key = match text.parse() {
        Ok(id) => state.key(&id)?,
        Err(_) => key_behind(state, caller, text)?,
    };
    Some(KeyArn::new(region, key.account, key.id))
}

/// The key that a text names which is not its id alone.
fn key_behind<'a>(state: &'a State, caller: &Caller, text: &str) -> Option<&'a Arc<Key>> {
    let account = caller.principal.account();
    match text.rsplit_once(":alias/").map(|(_, name)| format!("alias/{name}")) {
        Some(name) => state.key(&state.alias(account, &name.parse().ok()?)?.target),
        None if text.starts_with("alias/") => {
            state.key(&state.alias(account, &text.parse().ok()?)?.target)
        }
        None => state.key(&text.rsplit_once(":key/")?.1.parse().ok()?),
    }
}
