//! Keys, aliases, tags and rotation. Semantics follow the AWS KMS API reference; each refusal is AWS's.

use std::collections::BTreeMap;
use std::sync::Arc;

use keyward_hsm::SealedToken;
use keyward_model::limits::{
    ALIASES_PER_KEY_MAX, KEYS_PER_ACCOUNT_MAX, ON_DEMAND_ROTATIONS_MAX,
    ROTATION_CONFLICT_WINDOW_MS, TAGS_PER_KEY_MAX,
};
use keyward_model::{
    AccountId, AliasName, ErrorCode, KeyId, KeyMaterialId, KeyState, KmsError, Operation,
    Timestamp, alias_arn, check_state, key_arn,
};

use super::{DONE, Tx};
use crate::command::{Outcome, Reply};
use crate::rows::{Alias, Key, Material, Rotation, RotationKind, Tombstone};

impl Tx<'_> {
    pub(super) fn key_arn(&self, key: &Key) -> String {
        match &self.state.region {
            Some(facts) => key_arn(&facts.region, key.account, key.id),
            None => key.id.to_string(),
        }
    }

    fn alias_arn(&self, account: AccountId, name: &AliasName) -> String {
        match &self.state.region {
            Some(facts) => alias_arn(&facts.region, account, name),
            None => name.to_string(),
        }
    }

    /// The key, if it exists and its state allows the operation.
    pub(super) fn key_for(&self, operation: Operation, id: KeyId) -> Result<Arc<Key>, KmsError> {
        let key = self.state.key(&id).ok_or_else(|| {
            KmsError::new(ErrorCode::NotFoundException, format!("Key '{id}' does not exist"))
        })?;
        check_state(operation, key.state, &self.key_arn(key))?;
        Ok(Arc::clone(key))
    }

    /// Changes a key if its state allows the operation.
    fn edit(&mut self, operation: Operation, id: KeyId, change: impl FnOnce(&mut Key)) -> Outcome {
        let mut key = Key::clone(&*self.key_for(operation, id)?);
        change(&mut key);
        self.put_key(key);
        DONE
    }

    pub(super) fn create_key(
        &mut self,
        id: KeyId,
        account: AccountId,
        description: &str,
        tags: &BTreeMap<String, String>,
        material: KeyMaterialId,
        token: &SealedToken,
    ) -> Outcome {
        if self.state.key(&id).is_some() {
            return Err(KmsError::new(
                ErrorCode::AlreadyExistsException,
                format!("Key '{id}' exists already"),
            ));
        }
        if self.state.tombstone(&id).is_some() {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!("Key '{id}' was deleted: a key that is gone never comes back"),
            ));
        }
        if self.state.account_key_count(account) >= KEYS_PER_ACCOUNT_MAX {
            return Err(KmsError::new(
                ErrorCode::LimitExceededException,
                format!("account {account} has {KEYS_PER_ACCOUNT_MAX} keys, the most allowed"),
            ));
        }
        self.take_token(&material, token)?;
        let key = Key {
            id,
            account,
            description: description.to_owned(),
            state: KeyState::Enabled,
            created: self.now,
            deletion_date: None,
            tags: tags.clone(),
            materials: vec![Material {
                id: material,
                introduced: self.now,
                rotated: None,
                kind: None,
            }],
            current: 0,
            rotation: Rotation::default(),
            aliases: 0,
        };
        if id.is_multi_region() {
            self.create_primary(&key)?;
        }
        self.put_key(key);
        DONE
    }

    /// The key, if this Region may change what all Regions share of it.
    fn shared_key_for(&self, operation: Operation, id: KeyId) -> Result<Arc<Key>, KmsError> {
        let key = self.key_for(operation, id)?;
        self.check_primary(&key)?;
        Ok(key)
    }

    /// Material must be sealed under a domain key that the Region knows, or nobody could open it. An empty
    /// token was scrubbed from the log: its key's deletion follows in the same log.
    pub(super) fn take_token(
        &mut self,
        material: &KeyMaterialId,
        token: &SealedToken,
    ) -> Result<(), KmsError> {
        if token.as_bytes().is_empty() {
            return Ok(());
        }
        let known =
            token.domain_key_id().is_some_and(|id| self.state.domain_keys.contains_key(&id));
        if known {
            self.put_token(material, token.as_bytes());
            return Ok(());
        }
        Err(KmsError::new(
            ErrorCode::KMSInternalException,
            "the material is sealed under a domain key that this Region does not know",
        ))
    }

    pub(super) fn set_description(&mut self, key: KeyId, description: &str) -> Outcome {
        self.edit(Operation::UpdateKeyDescription, key, |key| {
            key.description = description.to_owned();
        })
    }

    pub(super) fn set_enabled(&mut self, key: KeyId, enabled: bool) -> Outcome {
        let (operation, state) = if enabled {
            (Operation::EnableKey, KeyState::Enabled)
        } else {
            (Operation::DisableKey, KeyState::Disabled)
        };
        self.edit(operation, key, |key| key.state = state)
    }

    pub(super) fn schedule_deletion(&mut self, key: KeyId, window_days: u32) -> Outcome {
        let present = self.key_for(Operation::ScheduleKeyDeletion, key)?;
        if self.wait_for_replicas(&present, window_days)? {
            return Ok(Reply::WaitsForReplicas);
        }
        let date = self.now.plus_days(window_days);
        self.edit(Operation::ScheduleKeyDeletion, key, |key| {
            key.state = KeyState::PendingDeletion;
            key.deletion_date = Some(date);
        })?;
        Ok(Reply::DeletionDate(date))
    }

    pub(super) fn cancel_deletion(&mut self, key: KeyId) -> Outcome {
        let present = self.key_for(Operation::CancelKeyDeletion, key)?;
        self.wait_no_more(&present)?;
        self.edit(Operation::CancelKeyDeletion, key, |key| {
            key.state = KeyState::Disabled;
            key.deletion_date = None;
        })
    }

    pub(super) fn delete_key(&mut self, id: KeyId, date: Timestamp) -> Outcome {
        if self.state.tombstone(&id).is_some() {
            return DONE;
        }
        let key = self.key_for(Operation::DescribeKey, id)?;
        if key.state != KeyState::PendingDeletion
            || key.deletion_date != Some(date)
            || date > self.now
        {
            return Err(KmsError::new(
                ErrorCode::KMSInvalidStateException,
                format!("{} is not due for deletion", self.key_arn(&key)),
            ));
        }
        self.note_gone(&id)?;
        self.remove_key(&key);
        self.put_tombstone(Tombstone {
            key: id,
            account: key.account,
            due: date,
            deleted: self.now,
            number: self.state.deletions() + 1,
            materials: key.materials.iter().map(|material| material.id).collect(),
        });
        DONE
    }

    fn alias_target(
        &self,
        operation: Operation,
        account: AccountId,
        target: KeyId,
    ) -> Result<Arc<Key>, KmsError> {
        let key = self.key_for(operation, target)?;
        if key.account != account {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!("Key '{}' does not exist", self.key_arn(&key)),
            ));
        }
        Ok(key)
    }

    fn count_alias(&mut self, target: KeyId, up: bool) -> Outcome {
        let Some(key) = self.state.key(&target) else { return DONE };
        if up && key.aliases >= ALIASES_PER_KEY_MAX {
            return Err(KmsError::new(
                ErrorCode::LimitExceededException,
                format!(
                    "{} has {ALIASES_PER_KEY_MAX} aliases, the most allowed",
                    self.key_arn(key)
                ),
            ));
        }
        let mut key = Key::clone(key);
        key.aliases = if up { key.aliases + 1 } else { key.aliases.saturating_sub(1) };
        self.put_key(key);
        DONE
    }

    pub(super) fn create_alias(
        &mut self,
        account: AccountId,
        name: &AliasName,
        target: KeyId,
    ) -> Outcome {
        self.alias_target(Operation::CreateAlias, account, target)?;
        if self.state.alias(account, name).is_some() {
            return Err(KmsError::new(
                ErrorCode::AlreadyExistsException,
                format!("An alias with the name {} already exists", self.alias_arn(account, name)),
            ));
        }
        self.count_alias(target, true)?;
        self.put_alias(Alias {
            account,
            name: name.clone(),
            target,
            created: self.now,
            updated: self.now,
        });
        DONE
    }

    fn known_alias(&self, account: AccountId, name: &AliasName) -> Result<Arc<Alias>, KmsError> {
        self.state.alias(account, name).cloned().ok_or_else(|| {
            KmsError::new(
                ErrorCode::NotFoundException,
                format!("Alias {} is not found.", self.alias_arn(account, name)),
            )
        })
    }

    pub(super) fn update_alias(
        &mut self,
        account: AccountId,
        name: &AliasName,
        target: KeyId,
    ) -> Outcome {
        let alias = self.known_alias(account, name)?;
        self.alias_target(Operation::UpdateAlias, account, target)?;
        if alias.target != target {
            self.count_alias(target, true)?;
            self.count_alias(alias.target, false)?;
        }
        self.put_alias(Alias { target, updated: self.now, ..Alias::clone(&alias) });
        DONE
    }

    pub(super) fn delete_alias(&mut self, account: AccountId, name: &AliasName) -> Outcome {
        let alias = self.known_alias(account, name)?;
        self.remove_alias(&alias);
        self.count_alias(alias.target, false)
    }

    pub(super) fn tag(&mut self, key: KeyId, tags: &BTreeMap<String, String>) -> Outcome {
        let present = self.key_for(Operation::TagResource, key)?;
        let added = tags.keys().filter(|tag| !present.tags.contains_key(*tag)).count();
        if present.tags.len() + added > TAGS_PER_KEY_MAX {
            return Err(KmsError::new(ErrorCode::LimitExceededException, "Too many tags"));
        }
        self.edit(Operation::TagResource, key, |key| key.tags.extend(tags.clone()))
    }

    pub(super) fn untag(&mut self, key: KeyId, tag_keys: &[String]) -> Outcome {
        self.edit(Operation::UntagResource, key, |key| {
            key.tags.retain(|tag, _| !tag_keys.contains(tag));
        })
    }

    pub(super) fn enable_rotation(&mut self, key: KeyId, period_days: u32) -> Outcome {
        let next = self.now.plus_days(period_days);
        self.shared_key_for(Operation::EnableKeyRotation, key)?;
        self.edit(Operation::EnableKeyRotation, key, |key| {
            key.rotation = Rotation { enabled: true, period_days, next, ..key.rotation };
        })
    }

    pub(super) fn disable_rotation(&mut self, key: KeyId) -> Outcome {
        self.shared_key_for(Operation::DisableKeyRotation, key)?;
        self.edit(Operation::DisableKeyRotation, key, |key| key.rotation.enabled = false)
    }

    pub(super) fn introduce_material(
        &mut self,
        id: KeyId,
        material: KeyMaterialId,
        token: &SealedToken,
        kind: RotationKind,
    ) -> Outcome {
        let key = self.shared_key_for(Operation::RotateKeyOnDemand, id)?;
        let arn = self.key_arn(&key);
        if let Some(waiting) = key.introduced() {
            if kind == RotationKind::Automatic {
                return Ok(Reply::Introduced(waiting.id));
            }
            return Err(KmsError::new(
                ErrorCode::ConflictException,
                format!("a rotation of {arn} is under way; try again when it is done"),
            ));
        }
        match kind {
            RotationKind::OnDemand => {
                let due_in = key.rotation.next.0 - self.now.0;
                if key.rotation.enabled && due_in <= ROTATION_CONFLICT_WINDOW_MS {
                    return Err(KmsError::new(
                        ErrorCode::ConflictException,
                        format!("an automatic rotation of {arn} is due within 20 minutes"),
                    ));
                }
                if key.rotation.on_demand >= ON_DEMAND_ROTATIONS_MAX {
                    return Err(KmsError::new(
                        ErrorCode::LimitExceededException,
                        format!(
                            "The on-demand rotations limit has been reached for the given keyId. No \
                             more on-demand rotations can be performed for this key: {arn}"
                        ),
                    ));
                }
            }
            RotationKind::Automatic => {
                if !key.rotation.enabled || key.rotation.next > self.now {
                    return Err(KmsError::new(
                        ErrorCode::KMSInvalidStateException,
                        format!("no automatic rotation of {arn} is due"),
                    ));
                }
            }
        }
        self.take_token(&material, token)?;
        let now = self.now;
        self.edit(Operation::RotateKeyOnDemand, id, |key| {
            key.materials.push(Material {
                id: material,
                introduced: now,
                rotated: None,
                kind: Some(kind),
            });
            match kind {
                RotationKind::OnDemand => key.rotation.on_demand += 1,
                RotationKind::Automatic => {
                    key.rotation.next = now.plus_days(key.rotation.period_days);
                }
            }
        })?;
        Ok(Reply::Introduced(material))
    }

    /// A key that was disabled or scheduled for deletion since its material was introduced still
    /// completes its rotation: the material is on record either way, and a half-done rotation is stuck
    /// in no state.
    pub(super) fn activate_material(&mut self, id: KeyId, material: KeyMaterialId) -> Outcome {
        let key = self.key_for(Operation::DescribeKey, id)?;
        match key.introduced() {
            Some(waiting) if waiting.id == material => {
                // Where a multi-Region key's primary is, or is about to be, it is completed there.
                self.check_primary(&key)?;
                let kind = waiting.kind.unwrap_or(RotationKind::OnDemand);
                let now = self.now;
                self.edit(Operation::DescribeKey, id, |key| {
                    key.current += 1;
                    let current = key.current as usize;
                    key.materials[current].rotated = Some((now, kind));
                })
            }
            // Somebody else completed it: the caller's wish is fulfilled.
            _ if key.material(&material).is_some() => DONE,
            _ => Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!("{} has no material {material}", self.key_arn(&key)),
            )),
        }
    }
}
