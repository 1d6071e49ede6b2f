//! Keys, aliases and tags.

use keyward_env::Env;
use keyward_model::limits::{
    PAGE_ALIASES, PAGE_KEYS, PAGE_TAGS, PENDING_WINDOW_DAYS, PENDING_WINDOW_DAYS_DEFAULT,
};
use keyward_model::{AliasName, ErrorCode, KeyId, KmsError, key_arn};
use keyward_state::{Command, Key, Reply};

use crate::api::{
    AliasEntry, CancelKeyDeletion, CreateAlias, CreateKey, DeleteAlias, DescribeKey, KeyMetadata,
    ListAliases, ListKeys, ListResourceTags, Listing, Response, ScheduleKeyDeletion, Tag,
    TagResource, UntagResource, UpdateAlias, UpdateKeyDescription,
};
use crate::kms::{Kms, Serving, hsm_refused, internal};
use crate::regions::configuration;
use crate::resolve::{self, Forms};

const USAGES: [&str; 4] =
    ["SIGN_VERIFY", "ENCRYPT_DECRYPT", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT"];
const SPECS: [&str; 18] = [
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "SYMMETRIC_DEFAULT",
    "HMAC_224",
    "HMAC_256",
    "HMAC_384",
    "HMAC_512",
    "SM2",
    "ML_DSA_44",
    "ML_DSA_65",
    "ML_DSA_87",
    "ECC_NIST_EDWARDS25519",
    "ECC_NIST_EDWARDS25519_PH",
];
const ORIGINS: [&str; 4] = ["AWS_KMS", "EXTERNAL", "AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"];

/// An enum parameter of which one value is offered: others that AWS knows are unsupported, the rest is
/// malformed.
fn only(offered: &str, known: &[&str], member: &str, value: Option<&str>) -> Result<(), KmsError> {
    match value {
        None => Ok(()),
        Some(value) if value == offered => Ok(()),
        Some(value) if known.contains(&value) => Err(KmsError::new(
            ErrorCode::UnsupportedOperationException,
            format!("{member} {value} is not offered by this version: only {offered} is"),
        )),
        Some(value) => Err(KmsError::constraint_on(
            member,
            value,
            &format!("Member must satisfy enum value set: [{}]", known.join(", ")),
        )),
    }
}

impl<E: Env> Kms<E> {
    pub(crate) async fn create_key(
        &self,
        s: &Serving<'_>,
        request: &CreateKey,
    ) -> Result<Response, KmsError> {
        let description = request.description.clone().unwrap_or_default();
        resolve::description(&description)?;
        let tags = resolve::tags(&request.tags)?;
        only("SYMMETRIC_DEFAULT", &SPECS, "keySpec", request.key_spec.as_deref())?;
        only("ENCRYPT_DECRYPT", &USAGES, "keyUsage", request.key_usage.as_deref())?;
        only("AWS_KMS", &ORIGINS, "origin", request.origin.as_deref())?;
        let unsupported =
            |message| Err(KmsError::new(ErrorCode::UnsupportedOperationException, message));
        if request.policy.is_some() {
            return unsupported("key policies are not offered by this version: leave Policy out");
        }
        self.permit(s)?;

        let domain_key = self.active_domain_key(s.state).await?;
        let mut bytes = [0; 16];
        self.entropy.fill(&mut bytes);
        let key = match request.multi_region {
            Some(true) => KeyId::from_parts(true, bytes),
            _ => KeyId::from_random(bytes),
        };
        let (material, token) =
            self.hsm.generate_backing_key(domain_key, key).map_err(|e| hsm_refused(&e))?;
        let account = s.principal.arn.account();
        let command = Command::CreateKey { key, account, description, tags, material, token };
        self.change(s.deadline, command).await?;
        // Acknowledged, so fenced: this node's own state has it, or will within a moment.
        let state = self.state_with(s, |state| state.key(&key).is_some()).await;
        let created = state.key(&key).ok_or_else(|| {
            KmsError::unknown_outcome(format!(
                "key {key} was created; this node has yet to learn it"
            ))
        })?;
        let s = Serving { state: &state, ..*s };
        Ok(Response::Key(Box::new(metadata(&s, created))))
    }

    /// This node's state once `there` holds, or at the deadline.
    pub(crate) async fn state_with(
        &self,
        s: &Serving<'_>,
        there: impl Fn(&keyward_state::State) -> bool,
    ) -> std::sync::Arc<keyward_state::State> {
        let env = self.node.env();
        loop {
            let state = self.node.state();
            if there(&state) || env.boot_now() >= s.deadline {
                return state;
            }
            env.sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn describe_key(
        &self,
        s: &Serving<'_>,
        request: &DescribeKey,
    ) -> Result<Response, KmsError> {
        let permitted = self.permitted_key(s, &request.key_id, "keyId", Forms::KeyOrAlias)?;
        Ok(Response::Key(Box::new(metadata(s, &permitted.key))))
    }

    pub(crate) fn list_keys(
        &self,
        s: &Serving<'_>,
        request: &ListKeys,
    ) -> Result<Response, KmsError> {
        let limit = resolve::limit(request.limit, PAGE_KEYS)?;
        let after = resolve::marker::<KeyId>('k', request.marker.as_deref())?;
        self.permit(s)?;
        let account = s.principal.arn.account();
        let page = s.state.list_keys(account, after, limit);
        let last = page.items.last().copied();
        let next_marker = match (page.truncated, last) {
            (true, Some(last)) => Some(resolve::marker_of('k', &last.to_string())),
            _ => None,
        };
        let items = page
            .items
            .into_iter()
            .map(|id| (id.to_string(), key_arn(s.region, account, id)))
            .collect();
        Ok(Response::Keys(Listing { items, next_marker }))
    }

    pub(crate) async fn update_key_description(
        &self,
        s: &Serving<'_>,
        request: &UpdateKeyDescription,
    ) -> Result<Response, KmsError> {
        resolve::description(&request.description)?;
        let key = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?.key.id;
        let command = Command::SetDescription { key, description: request.description.clone() };
        self.change(s.deadline, command).await?;
        Ok(Response::Done)
    }

    pub(crate) async fn set_enabled(
        &self,
        s: &Serving<'_>,
        key_id: &str,
        enabled: bool,
    ) -> Result<Response, KmsError> {
        let key = self.usable_key(s, key_id, "keyId", Forms::Key)?.key.id;
        self.change(s.deadline, Command::SetEnabled { key, enabled }).await?;
        Ok(Response::Done)
    }

    pub(crate) async fn schedule_key_deletion(
        &self,
        s: &Serving<'_>,
        request: &ScheduleKeyDeletion,
    ) -> Result<Response, KmsError> {
        let window_days = request.pending_window_in_days.unwrap_or(PENDING_WINDOW_DAYS_DEFAULT);
        if !PENDING_WINDOW_DAYS.contains(&window_days) {
            return Err(KmsError::constraint_on(
                "pendingWindowInDays",
                &window_days.to_string(),
                "Member must have value between 7 and 30",
            ));
        }
        let permitted = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?;
        let command = Command::ScheduleDeletion {
            key: permitted.key.id,
            window_days: window_days.unsigned_abs(),
        };
        match self.change(s.deadline, command).await? {
            Reply::DeletionDate(date) => Ok(Response::DeletionScheduled {
                key_arn: permitted.arn,
                deletion_date: Some(date),
                window_days,
            }),
            Reply::WaitsForReplicas => Ok(Response::DeletionScheduled {
                key_arn: permitted.arn,
                deletion_date: None,
                window_days,
            }),
            other => Err(internal("an unexpected reply", &format!("{other:?}"))),
        }
    }

    pub(crate) async fn cancel_key_deletion(
        &self,
        s: &Serving<'_>,
        request: &CancelKeyDeletion,
    ) -> Result<Response, KmsError> {
        let permitted = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?;
        self.change(s.deadline, Command::CancelDeletion { key: permitted.key.id }).await?;
        Ok(Response::KeyArn(permitted.arn))
    }

    pub(crate) async fn create_alias(
        &self,
        s: &Serving<'_>,
        request: &CreateAlias,
    ) -> Result<Response, KmsError> {
        let name = resolve::alias_name(&request.alias_name)?;
        if name.is_reserved() {
            return Err(KmsError::new(
                ErrorCode::InvalidAliasNameException,
                "alias names that begin with alias/aws/ are reserved: choose another",
            ));
        }
        let target = self.usable_key(s, &request.target_key_id, "targetKeyId", Forms::Key)?.key;
        let command = Command::CreateAlias { account: target.account, name, target: target.id };
        self.change(s.deadline, command).await?;
        Ok(Response::Done)
    }

    pub(crate) async fn update_alias(
        &self,
        s: &Serving<'_>,
        request: &UpdateAlias,
    ) -> Result<Response, KmsError> {
        let name = resolve::alias_name(&request.alias_name)?;
        let target = self.usable_key(s, &request.target_key_id, "targetKeyId", Forms::Key)?.key;
        let command = Command::UpdateAlias { account: target.account, name, target: target.id };
        self.change(s.deadline, command).await?;
        Ok(Response::Done)
    }

    pub(crate) async fn delete_alias(
        &self,
        s: &Serving<'_>,
        request: &DeleteAlias,
    ) -> Result<Response, KmsError> {
        let name = resolve::alias_name(&request.alias_name)?;
        self.permitted_key(s, &request.alias_name, "aliasName", Forms::KeyOrAlias)?;
        let account = s.principal.arn.account();
        self.change(s.deadline, Command::DeleteAlias { account, name }).await?;
        Ok(Response::Done)
    }

    pub(crate) fn list_aliases(
        &self,
        s: &Serving<'_>,
        request: &ListAliases,
    ) -> Result<Response, KmsError> {
        let limit = resolve::limit(request.limit, PAGE_ALIASES)?;
        let after = resolve::marker::<AliasName>('a', request.marker.as_deref())?;
        let view = s.view();
        let target = match &request.key_id {
            Some(text) => Some(view.key(text, "keyId", Forms::Key)?.id),
            None => None,
        };
        self.permit(s)?;
        let page = s.state.list_aliases(view.account, target, after.as_ref(), limit);
        let next_marker = match (page.truncated, page.items.last()) {
            (true, Some(last)) => Some(resolve::marker_of('a', last.name.as_str())),
            _ => None,
        };
        let entry = |alias: &keyward_state::Alias| AliasEntry {
            name: alias.name.to_string(),
            arn: keyward_model::alias_arn(s.region, alias.account, &alias.name),
            target_key_id: alias.target.to_string(),
            creation_date: alias.created,
            last_updated_date: alias.updated,
        };
        let items = page.items.iter().map(|alias| entry(alias)).collect();
        Ok(Response::Aliases(Listing { items, next_marker }))
    }

    pub(crate) async fn tag_resource(
        &self,
        s: &Serving<'_>,
        request: &TagResource,
    ) -> Result<Response, KmsError> {
        let tags = resolve::tags(&request.tags)?;
        let key = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?.key.id;
        self.change(s.deadline, Command::Tag { key, tags }).await?;
        Ok(Response::Done)
    }

    pub(crate) async fn untag_resource(
        &self,
        s: &Serving<'_>,
        request: &UntagResource,
    ) -> Result<Response, KmsError> {
        for (position, tag) in request.tag_keys.iter().enumerate() {
            resolve::tag_key(tag, &format!("tagKeys.{}.member", position + 1))?;
        }
        let key = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?.key.id;
        self.change(s.deadline, Command::Untag { key, tag_keys: request.tag_keys.clone() }).await?;
        Ok(Response::Done)
    }

    pub(crate) fn list_resource_tags(
        &self,
        s: &Serving<'_>,
        request: &ListResourceTags,
    ) -> Result<Response, KmsError> {
        let limit = resolve::limit(request.limit, PAGE_TAGS)?;
        let after = resolve::marker::<String>('t', request.marker.as_deref())?;
        let key = self.permitted_key(s, &request.key_id, "keyId", Forms::Key)?.key;
        let mut rest = key
            .tags
            .iter()
            .filter(|(tag, _)| after.as_ref().is_none_or(|after| *tag > after))
            .map(|(key, value)| Tag { key: key.clone(), value: value.clone() });
        let items: Vec<Tag> = rest.by_ref().take(limit).collect();
        let next_marker = match (rest.next(), items.last()) {
            (Some(_), Some(last)) => Some(resolve::marker_of('t', &last.key)),
            _ => None,
        };
        Ok(Response::Tags(Listing { items, next_marker }))
    }
}

fn metadata(s: &Serving<'_>, key: &Key) -> KeyMetadata {
    KeyMetadata {
        account: key.account.to_string(),
        key_id: key.id.to_string(),
        arn: key_arn(s.region, key.account, key.id),
        creation_date: key.created,
        description: key.description.clone(),
        state: key.state,
        deletion_date: key.deletion_date,
        pending_window_days: s
            .state
            .multi_region(&key.id)
            .and_then(|row| row.here.as_ref())
            .and_then(|here| here.window_days),
        current_key_material_id: key.current_material().id.to_string(),
        multi_region: configuration(s.state, key),
    }
}
