//! Rotation of keys. A rotation is two commands (DESIGN section 5, rule 8): the material is introduced;
//! once that is fenced it begins to encrypt. So no node meets a ciphertext whose material it lacks.

use keyward_env::Env;
use keyward_model::limits::{PAGE_KEYS, ROTATION_PERIOD_DAYS, ROTATION_PERIOD_DAYS_DEFAULT};
use keyward_model::{KeyId, KeyState, KmsError};
use keyward_state::{Command, Key, Material, Reply, RotationKind};

use crate::api::{
    DisableKeyRotation, EnableKeyRotation, GetKeyRotationStatus, ListKeyRotations, Listing,
    Response, RotateKeyOnDemand, RotationEntry,
};
use crate::kms::{Kms, Serving, hsm_refused, internal};
use crate::resolve::{self, Forms};

impl<E: Env> Kms<E> {
    pub(crate) async fn enable_key_rotation(
        &self,
        s: &Serving<'_>,
        request: &EnableKeyRotation,
    ) -> Result<Response, KmsError> {
        let days = request.rotation_period_in_days.unwrap_or(ROTATION_PERIOD_DAYS_DEFAULT);
        if !ROTATION_PERIOD_DAYS.contains(&days) {
            return Err(KmsError::constraint_on(
                "rotationPeriodInDays",
                &days.to_string(),
                "Member must have value between 90 and 2560",
            ));
        }
        let key = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?.key.id;
        let command = Command::EnableRotation { key, period_days: days.unsigned_abs() };
        self.change(s.deadline, command).await?;
        Ok(Response::Done)
    }

    pub(crate) async fn disable_key_rotation(
        &self,
        s: &Serving<'_>,
        request: &DisableKeyRotation,
    ) -> Result<Response, KmsError> {
        let key = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?.key.id;
        self.change(s.deadline, Command::DisableRotation { key }).await?;
        Ok(Response::Done)
    }

    pub(crate) fn get_key_rotation_status(
        &self,
        s: &Serving<'_>,
        request: &GetKeyRotationStatus,
    ) -> Result<Response, KmsError> {
        let key = self.permitted_key(s, &request.key_id, "keyId", Forms::Key)?.key;
        // While a key waits for its deletion the setting reads as off; a cancelled deletion restores it.
        let enabled = key.rotation.enabled && key.state != KeyState::PendingDeletion;
        let on_demand = key
            .introduced()
            .filter(|material| material.kind == Some(RotationKind::OnDemand))
            .map(|material| material.introduced);
        Ok(Response::RotationStatus {
            key_id: key.id.to_string(),
            enabled,
            period_days: enabled.then_some(i32::try_from(key.rotation.period_days).unwrap_or(0)),
            next: enabled.then_some(key.rotation.next),
            on_demand_started: on_demand,
        })
    }

    pub(crate) async fn rotate_key_on_demand(
        &self,
        s: &Serving<'_>,
        request: &RotateKeyOnDemand,
    ) -> Result<Response, KmsError> {
        let permitted = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?;
        let key = permitted.key.id;
        let material = self.introduce(s.state, s.deadline, key, RotationKind::OnDemand).await?;
        // Where other Regions have the key, the leader goes on once they have the material.
        if key.is_multi_region() {
            return Ok(Response::KeyArn(permitted.arn));
        }
        // The rotation stands from here on. If this node or the leader dies now, whoever leads next
        // completes it; as with AWS, GetKeyRotationStatus shows that it is under way.
        let activated = self.change(s.deadline, Command::ActivateMaterial { key, material }).await;
        if let Err(error) = activated {
            tracing::warn!(%key, %error, "a rotation is half done; the leader completes it");
        }
        Ok(Response::KeyArn(permitted.arn))
    }

    /// First half of a rotation.
    pub(crate) async fn introduce(
        &self,
        state: &keyward_state::State,
        deadline: std::time::Duration,
        key: KeyId,
        kind: RotationKind,
    ) -> Result<keyward_model::KeyMaterialId, KmsError> {
        let domain_key = self.active_domain_key(state).await?;
        let (material, token) =
            self.hsm.generate_backing_key(domain_key, key).map_err(|e| hsm_refused(&e))?;
        let command = Command::IntroduceMaterial { key, material, token, kind };
        match self.change(deadline, command).await? {
            Reply::Introduced(material) => Ok(material),
            other => Err(internal("an unexpected reply", &format!("{other:?}"))),
        }
    }

    pub(crate) fn list_key_rotations(
        &self,
        s: &Serving<'_>,
        request: &ListKeyRotations,
    ) -> Result<Response, KmsError> {
        let all = match request.include_key_material.as_deref() {
            None | Some("ROTATIONS_ONLY") => false,
            Some("ALL_KEY_MATERIAL") => true,
            Some(other) => {
                return Err(KmsError::constraint_on(
                    "includeKeyMaterial",
                    other,
                    "Member must satisfy enum value set: [ALL_KEY_MATERIAL, ROTATIONS_ONLY]",
                ));
            }
        };
        let limit = resolve::limit(request.limit, PAGE_KEYS)?;
        let from = resolve::marker::<usize>('r', request.marker.as_deref())?.unwrap_or(0);
        let key = self.permitted_key(s, &request.key_id, "keyId", Forms::Key)?.key;
        let mut rest = key
            .materials
            .iter()
            .enumerate()
            .skip(from)
            .filter(|(_, material)| all || material.rotated.is_some());
        let page: Vec<(usize, &Material)> = rest.by_ref().take(limit).collect();
        let next_marker =
            rest.next().map(|(position, _)| resolve::marker_of('r', &position.to_string()));
        let items = page.into_iter().map(|(position, m)| entry(&key, position, m)).collect();
        Ok(Response::Rotations(Listing { items, next_marker }))
    }
}

fn entry(key: &Key, position: usize, material: &Material) -> RotationEntry {
    let current = key.current as usize;
    RotationEntry {
        key_id: key.id.to_string(),
        key_material_id: material.id.to_string(),
        key_material_state: match position.cmp(&current) {
            std::cmp::Ordering::Less => "NON_CURRENT",
            std::cmp::Ordering::Equal => "CURRENT",
            std::cmp::Ordering::Greater => "PENDING_ROTATION",
        },
        rotation_date: material.rotated.map(|(date, _)| date),
        rotation_type: material.rotated.map(|(_, kind)| kind.name()),
    }
}
