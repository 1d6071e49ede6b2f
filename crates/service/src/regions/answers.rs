//! What nodes of other Regions ask, and are told.

use std::sync::Arc;

use keyward_env::Env;
use keyward_model::{ErrorCode, KeyId, KeyMaterialId, KmsError, Region};
use keyward_raft::BoxFuture;
use keyward_regions::{
    About, RegionRequest, RegionResponse, SealedMaterial, answer_pull, decode, encode,
};
use keyward_state::{MultiRegionKey, PeerRegion, SealedToken, State};

use crate::kms::{Kms, hsm_refused, internal, not_founded};
use crate::operator::refused;

impl<E: Env> Kms<E> {
    /// Answers a message of another Region's node, which has shown that it is one.
    ///
    /// # Errors
    /// A message that this build does not know, or a Region that is not approved here.
    pub fn answer_region(
        self: &Arc<Self>,
        from: Region,
        from_id: [u8; 16],
        body: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<u8>, KmsError>> {
        let this = Arc::clone(self);
        Box::pin(async move {
            let request: RegionRequest = decode(&body)
                .map_err(|e| KmsError::validation(format!("a message of another version: {e}")))?;
            let peer = this.approved(&from, from_id)?;
            let answer = match request {
                RegionRequest::Pull(request) => answer_pull(&*this, &from, &request).await,
                RegionRequest::Materials { key, materials, version } => {
                    match this.export(&peer, key, &materials, &version).await {
                        Ok(sealed) => RegionResponse::Materials(sealed),
                        Err(error) => RegionResponse::Refused(error.to_string()),
                    }
                }
            };
            Ok(encode(&answer))
        })
    }

    fn approved(&self, from: &Region, from_id: [u8; 16]) -> Result<Arc<PeerRegion>, KmsError> {
        let state = self.node.state();
        let peer = state.peer_region(from).filter(|peer| peer.region_id == from_id).cloned();
        peer.ok_or_else(|| {
            KmsError::new(
                ErrorCode::AccessDeniedException,
                format!(
                    "Region {from} ({}) is not approved here: an operator adds it (`keyward region add`)",
                    hex::encode(from_id)
                ),
            )
        })
    }

    /// Seals materials to a Region that has the key, or is to have it.
    async fn export(
        &self,
        peer: &PeerRegion,
        key: KeyId,
        materials: &[KeyMaterialId],
        version: &keyward_state::Version,
    ) -> Result<Vec<SealedMaterial>, KmsError> {
        let state = self.node.state();
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        let related = |row: &Arc<MultiRegionKey>| {
            row.here.as_ref().is_some_and(|here| here.related.contains_key(&peer.region))
        };
        if !state.multi_region(&key).is_some_and(related) {
            return Err(KmsError::new(
                ErrorCode::AccessDeniedException,
                format!("{} has no replica of {key}", peer.region),
            ));
        }
        let own = self.own_region_key(&state).await?;
        let mut sealed = Vec::with_capacity(materials.len());
        for material in materials {
            let token = self.node.token(*material).await;
            let token = token.map_err(|e| internal("a sealed token could not be read", &e))?;
            let token = token.map(SealedToken::from_bytes).ok_or_else(|| {
                KmsError::new(
                    ErrorCode::NotFoundException,
                    format!("material {material} of {key} is not here any more"),
                )
            })?;
            let domain_key = token
                .domain_key_id()
                .ok_or_else(|| internal("a sealed token is damaged", material))?;
            self.open_domain_key(&state, domain_key).await?;
            let about = About {
                source: &facts.region,
                history: state.history_id(),
                target: &peer.region,
                target_id: peer.region_id,
                key,
                material: *material,
                version,
            };
            let message = self
                .hsm
                .export_material(&own, &peer.public_key, key, *material, &token, &about.bytes())
                .map_err(|e| hsm_refused(&e))?;
            sealed.push(SealedMaterial { material: *material, message });
        }
        Ok(sealed)
    }

    /// This Region's private key for material from others, sealed; the domain key that it is sealed under is open.
    pub(super) async fn own_region_key(&self, state: &State) -> Result<SealedToken, KmsError> {
        let key = state.region_key.as_ref().ok_or_else(|| {
            refused("this Region has no key for material from others yet: `keyward region card` makes it".to_owned())
        })?;
        let domain_key = key
            .private_key
            .domain_key_id()
            .ok_or_else(|| internal("the Region's key is damaged", &"no domain key named"))?;
        self.open_domain_key(state, domain_key).await?;
        Ok(key.private_key.clone())
    }
}
