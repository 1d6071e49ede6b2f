//! Multi-Region keys: replicas, hand-over, promotion, and taking over what other Regions tell
//! (AWS KMS developer guide, "Multi-Region keys in AWS KMS").

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keyward_hsm::SealedToken;
use keyward_model::limits::KEYS_PER_ACCOUNT_MAX;
use keyward_model::{
    AccountId, ErrorCode, KeyId, KeyMaterialId, KeyState, KmsError, Operation, Region, Timestamp,
};

use super::{DONE, Tx};
use crate::command::Outcome;
use crate::multi_region::{
    Cursor, Epoch, First, Here, KeyView, MultiRegionKey, Offer, OfferId, PeerRegion,
    Reconciliation, RegionKey, Related, Shared, Told, Version,
};
use crate::rows::{ForeignPrincipal, Key, Material, OutsideAuthority, Rotation, Tombstone};

/// Regions that one Region is linked with at most.
const REGIONS_MAX: usize = 32;

/// Puts materials in the order in which a key has them: those that only open, the one that encrypts, and one that waits.
fn arrange(
    mut materials: Vec<Material>,
    current: KeyMaterialId,
    waiting: Option<KeyMaterialId>,
) -> (Vec<Material>, u32) {
    let place = |material: &Material| {
        let rank = match material.id {
            id if id == current => 1,
            id if Some(id) == waiting => 2,
            _ => 0,
        };
        (rank, material.introduced, material.id)
    };
    materials.sort_by_key(place);
    let at = materials.iter().position(|material| material.id == current).unwrap_or(0);
    (materials, u32::try_from(at).unwrap_or(0))
}

/// What of a key follows its primary.
fn follows(key: &Key) -> (&[Material], u32, &Rotation) {
    (&key.materials, key.current, &key.rotation)
}

impl Tx<'_> {
    pub(super) fn me(&self) -> Result<Region, KmsError> {
        let facts = self.state.region.as_ref();
        facts.map(|facts| facts.region.clone()).ok_or_else(|| {
            KmsError::new(ErrorCode::KMSInvalidStateException, "this Region has not been founded")
        })
    }

    /// Puts the row in place as this Region's latest change.
    fn put_changed(&mut self, mut row: MultiRegionKey) {
        row.changed = self.state.feed_head() + 1;
        row.changed_at = self.now;
        self.put_multi_region(row);
    }

    /// The row of a key that is here.
    fn here(&self, key: &Key) -> Result<(MultiRegionKey, Here), KmsError> {
        let row = self.state.multi_region(&key.id).map(|row| MultiRegionKey::clone(row));
        let found = row.and_then(|row| row.here.clone().map(|here| (row, here)));
        found.ok_or_else(|| {
            KmsError::new(
                ErrorCode::UnsupportedOperationException,
                format!("{} is not a multi-region key.", self.key_arn(key)),
            )
        })
    }

    /// Shared properties are changed at the primary alone, and not while its place is on offer.
    pub(super) fn check_primary(&self, key: &Key) -> Result<(), KmsError> {
        if !key.id.is_multi_region() {
            return Ok(());
        }
        let (_, here) = self.here(key)?;
        if here.version.epoch.region != self.me()? {
            return Err(KmsError::new(
                ErrorCode::UnsupportedOperationException,
                format!("{} is not a multi-region primary key.", self.key_arn(key)),
            ));
        }
        if here.offer.is_some() || here.waits_for.is_some() {
            return Err(KmsError::new(
                ErrorCode::KMSInvalidStateException,
                format!("{} is updating.", self.key_arn(key)),
            ));
        }
        Ok(())
    }

    /// A key was changed in this Region: if it is a primary and what follows it changed, that is its next version.
    pub(super) fn note_shared(&mut self, before: &Key, after: &Key) {
        if follows(before) == follows(after) {
            return;
        }
        let Some(row) = self.state.multi_region(&after.id) else { return };
        let mut row = MultiRegionKey::clone(row);
        let Some(here) = &mut row.here else { return };
        if self.state.region.as_ref().is_some_and(|me| me.region == here.version.epoch.region) {
            here.version.sequence += 1;
            self.put_changed(row);
        }
    }

    /// The first key of its kind.
    pub(super) fn create_primary(&mut self, key: &Key) -> Result<(), KmsError> {
        let me = self.me()?;
        let related = BTreeMap::from([(me.clone(), Related { generation: 1, first: None })]);
        self.put_changed(MultiRegionKey {
            key: key.id,
            account: key.account,
            here: Some(Here {
                generation: 1,
                version: Version { epoch: Epoch { number: 1, region: me }, sequence: 0 },
                base: None,
                generations: 1,
                related,
                offer: None,
                waits_for: None,
                window_days: None,
            }),
            gone: BTreeMap::new(),
            refused: None,
            declined: None,
            changed: 0,
            changed_at: self.now,
        });
        Ok(())
    }

    fn known_region(&self, region: &Region) -> Result<&Arc<PeerRegion>, KmsError> {
        self.state.peer_region(region).ok_or_else(|| {
            let known: Vec<&str> =
                self.state.peer_regions().map(|peer| peer.region.as_str()).collect();
            KmsError::validation(format!(
                "this Region has no link with {region}: it has {}",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ))
        })
    }

    pub(super) fn replicate_key(&mut self, id: KeyId, to: &Region, first: &First) -> Outcome {
        let key = self.key_for(Operation::ReplicateKey, id)?;
        self.here(&key)?;
        self.check_primary(&key)?;
        let (mut row, mut here) = self.here(&key)?;
        if *to == self.me()? {
            return Err(KmsError::validation(format!(
                "{to} is the primary's own Region: name another one"
            )));
        }
        if here.related.contains_key(to) {
            return Err(KmsError::new(
                ErrorCode::AlreadyExistsException,
                format!("{id} has a related key in {to} already"),
            ));
        }
        self.known_region(to)?;
        here.generations += 1;
        let related = Related { generation: here.generations, first: Some(first.clone()) };
        here.related.insert(to.clone(), related);
        here.version.sequence += 1;
        row.here = Some(here);
        self.put_changed(row);
        DONE
    }

    pub(super) fn offer_primary(&mut self, id: KeyId, to: &Region, offer: OfferId) -> Outcome {
        let key = self.key_for(Operation::UpdatePrimaryRegion, id)?;
        self.check_primary(&key)?;
        let (mut row, mut here) = self.here(&key)?;
        let there = here.related.get(to).is_some_and(|related| related.first.is_none());
        if !there || *to == here.version.epoch.region {
            return Err(KmsError::new(
                ErrorCode::UnsupportedOperationException,
                format!("{} has no replica in {to} that could be primary", self.key_arn(&key)),
            ));
        }
        self.known_region(to)?;
        here.offer = Some(Offer { id: offer, to: to.clone() });
        here.version.sequence += 1;
        row.here = Some(here);
        self.put_changed(row);
        self.put_key(Key { state: KeyState::Updating, ..Key::clone(&key) });
        DONE
    }

    /// Whether a primary has to wait for replicas before its waiting period begins: then it says so.
    pub(super) fn wait_for_replicas(&mut self, key: &Key, days: u32) -> Result<bool, KmsError> {
        if !key.id.is_multi_region() {
            return Ok(false);
        }
        let (mut row, mut here) = self.here(key)?;
        if here.version.epoch.region != self.me()? || here.related.len() < 2 {
            return Ok(false);
        }
        here.window_days = Some(days);
        row.here = Some(here);
        self.put_changed(row);
        self.put_key(Key { state: KeyState::PendingReplicaDeletion, ..key.clone() });
        Ok(true)
    }

    /// Nobody waits for the last replica any more.
    pub(super) fn wait_no_more(&mut self, key: &Key) -> Result<(), KmsError> {
        if key.state != KeyState::PendingReplicaDeletion {
            return Ok(());
        }
        let (mut row, mut here) = self.here(key)?;
        here.window_days = None;
        row.here = Some(here);
        self.put_changed(row);
        Ok(())
    }

    /// A multi-Region key was deleted in this Region.
    pub(super) fn note_gone(&mut self, id: &KeyId) -> Result<(), KmsError> {
        let me = self.me()?;
        let Some(row) = self.state.multi_region(id) else { return Ok(()) };
        let mut row = MultiRegionKey::clone(row);
        if let Some(here) = row.here.take() {
            let gone = row.gone.entry(me).or_default();
            *gone = (*gone).max(here.generation);
            self.put_changed(row);
        }
        Ok(())
    }

    // --- Regions.

    pub(super) fn set_region_key(&mut self, key: &RegionKey) -> Outcome {
        if self.state.region_key.is_none() {
            self.put_region_key(key.clone());
        }
        DONE
    }

    pub(super) fn add_region(&mut self, peer: &PeerRegion) -> Outcome {
        let facts = self.state.region.clone();
        if facts.as_ref().is_some_and(|me| me.region == peer.region) {
            return Err(KmsError::validation(format!(
                "{} is this Region's own name: two Regions of one name cannot be linked",
                peer.region
            )));
        }
        let mut peer = PeerRegion { approved: self.now, cursor: Cursor::default(), ..peer.clone() };
        match self.state.peer_region(&peer.region) {
            Some(known) if known.region_id != peer.region_id => {
                return Err(KmsError::new(
                    ErrorCode::AlreadyExistsException,
                    format!(
                        "another Region of the name {} is linked already: if that one never comes back, \
                         `keyward region forget {}` first",
                        peer.region, peer.region
                    ),
                ));
            }
            Some(known) => peer.cursor = known.cursor,
            None if self.state.peer_regions().count() >= REGIONS_MAX => {
                return Err(KmsError::new(
                    ErrorCode::LimitExceededException,
                    format!("this Region is linked with {REGIONS_MAX} others, the most allowed"),
                ));
            }
            None => {}
        }
        self.put_peer_region(peer);
        DONE
    }

    /// A Region that never comes back: nothing waits for it any more.
    pub(super) fn forget_region(&mut self, region: &Region) -> Outcome {
        if self.state.peer_region(region).is_none() {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!("this Region has no link with {region}"),
            ));
        }
        let still_primary =
            self.state.multi_region_keys().find(|row| row.primary() == Some(region));
        if let Some(row) = still_primary {
            return Err(KmsError::new(
                ErrorCode::KMSInvalidStateException,
                format!(
                    "{region} is the primary's Region of {} and maybe of others: `keyward region promote \
                     {region}` first",
                    row.key
                ),
            ));
        }
        let me = self.me()?;
        let waiting: Vec<Arc<MultiRegionKey>> = self
            .state
            .multi_region_keys()
            .filter(|row| {
                row.here.as_ref().is_some_and(|here| {
                    here.version.epoch.region == me
                        && (here.related.contains_key(region)
                            || here.waits_for.as_ref() == Some(region))
                })
            })
            .cloned()
            .collect();
        for row in waiting {
            let mut row = MultiRegionKey::clone(&row);
            if let Some(here) = &mut row.here {
                here.related.remove(region);
                here.version.sequence += 1;
                if here.waits_for.as_ref() == Some(region) {
                    here.waits_for = None;
                }
                if here.offer.as_ref().is_some_and(|offer| offer.to == *region) {
                    here.offer = None;
                }
            }
            let id = row.key;
            self.put_changed(row);
            self.settle(id)?;
        }
        self.remove_peer_region(region);
        DONE
    }

    /// Replicas here become primaries in the place of those of a Region that is lost.
    pub(super) fn promote(&mut self, lost: &Region, keys: &[KeyId]) -> Outcome {
        let me = self.me()?;
        for id in keys {
            let Some(key) = self.state.key(id).cloned() else { continue };
            let Ok((mut row, mut here)) = self.here(&key) else { continue };
            if here.version.epoch.region == *lost {
                // An offer under way may have been taken: its epoch is one higher, this one is above that.
                let step = if here.offer.is_some() { 2 } else { 1 };
                let number = here.version.epoch.number + step;
                here.base = Some(here.version.clone());
                here.version = Version { epoch: Epoch { number, region: me.clone() }, sequence: 0 };
                here.offer = None;
            } else if here.version.epoch.region != me || here.waits_for.as_ref() != Some(lost) {
                continue;
            }
            here.waits_for = None;
            row.here = Some(here);
            self.put_changed(row);
            self.settle(*id)?;
        }
        DONE
    }

    /// Brings a key's state to what is known of its replicas. Run after everything that could change that.
    fn settle(&mut self, id: KeyId) -> Result<(), KmsError> {
        let Some(key) = self.state.key(&id).cloned() else { return Ok(()) };
        let (mut row, mut here) = self.here(&key)?;
        let me = self.me()?;
        let primary = here.version.epoch.region == me;
        if primary {
            let gone = &row.gone;
            let before = here.related.len();
            here.related.retain(|region, related| {
                *region == me || gone.get(region).is_none_or(|gone| *gone < related.generation)
            });
            // Nobody is left who could take the offer or refuse it.
            let void = here.offer.as_ref().is_some_and(|o| !here.related.contains_key(&o.to));
            if void {
                here.offer = None;
            }
            // Its key is gone: it cannot take note any more, and is no primary.
            let left = here.waits_for.as_ref().is_some_and(|r| !here.related.contains_key(r));
            if left {
                here.waits_for = None;
            }
            if here.related.len() < before || void || left {
                here.version.sequence += 1;
                row.here = Some(here.clone());
                self.put_changed(row.clone());
            }
        }
        let mut key = Key::clone(&key);
        let alone = here.related.len() < 2;
        let updating = here.offer.is_some() || here.waits_for.is_some();
        match key.state {
            KeyState::Updating if !updating || !(primary || here.waits_for.is_some()) => {
                key.state = KeyState::Enabled;
            }
            KeyState::PendingReplicaDeletion if alone || !primary => {
                key.state = KeyState::PendingDeletion;
                key.deletion_date = Some(self.now.plus_days(here.window_days.unwrap_or(30)));
                here.window_days = None;
            }
            // It waited as a replica; as the primary it waits for the others first.
            KeyState::PendingDeletion if primary && !alone => {
                let left = key.deletion_date.map_or(0, |date| date.0 - self.now.0).max(0);
                let days = (left + Timestamp::DAY_MS - 1) / Timestamp::DAY_MS;
                here.window_days = Some(u32::try_from(days).unwrap_or(30).max(1));
                key.state = KeyState::PendingReplicaDeletion;
                key.deletion_date = None;
            }
            _ => return Ok(()),
        }
        if row.here.as_ref() != Some(&here) {
            row.here = Some(here);
            self.put_changed(row);
        }
        self.put_key(key);
        Ok(())
    }

    // --- What other Regions tell.

    /// Takes over a part of another Region's feed. Twice or late is harmless.
    pub(super) fn merge(
        &mut self,
        from: &Region,
        cursor: &Cursor,
        told: &[Told],
        principals: &[ForeignPrincipal],
        authorities: &[OutsideAuthority],
    ) -> Outcome {
        let peer = PeerRegion::clone(self.known_region(from)?);
        for one in told {
            self.check_sound(from, one)?;
        }
        for principal in principals {
            self.check_principal(from, principal)?;
        }
        for authority in authorities {
            self.check_authority(from, authority)?;
        }
        for one in told {
            self.take(from, one)?;
        }
        for principal in principals {
            self.take_principal(principal);
        }
        for authority in authorities {
            self.take_authority(authority);
        }
        let behind = peer.cursor.history == cursor.history && peer.cursor.index > cursor.index;
        if !behind {
            self.put_peer_region(PeerRegion { cursor: *cursor, ..peer });
        }
        DONE
    }

    /// Whether this Region is to have the key and has not.
    fn to_be_made(&self, row: &MultiRegionKey, view: &KeyView) -> Option<u64> {
        let me = self.me().ok()?;
        if row.here.is_some() {
            return None;
        }
        let generation = view.shared.as_ref()?.related.get(&me)?.generation;
        let gone = row.gone.get(&me).copied().unwrap_or(0);
        let declined = row.declined.as_ref().map_or(0, |(number, _)| *number);
        (generation > gone.max(declined)).then_some(generation)
    }

    /// Nothing is taken over by halves: a material that is named is here or comes along.
    fn check_sound(&self, from: &Region, told: &Told) -> Result<(), KmsError> {
        let known = self.state.multi_region(&told.view.key);
        if !told.view.key.is_multi_region()
            || known.is_some_and(|row| row.account != told.view.account)
        {
            return Err(KmsError::validation(format!(
                "{from} tells of {} of account {}: no multi-Region key, or another owner's",
                told.view.key, told.view.account
            )));
        }
        let missing = self.state.materials_missing(&told.view);
        let come: BTreeSet<KeyMaterialId> = told.tokens.iter().map(|(id, _)| *id).collect();
        match missing.iter().find(|id| !come.contains(id)) {
            None => Ok(()),
            Some(id) => Err(KmsError::new(
                ErrorCode::ConflictException,
                format!("material {id} of {} is neither here nor did it come along", told.view.key),
            )),
        }
    }

    fn take(&mut self, from: &Region, told: &Told) -> Result<(), KmsError> {
        let view = &told.view;
        let me = self.me()?;
        let known = self.state.multi_region(&view.key).map(|row| MultiRegionKey::clone(row));
        let mut row = known.clone().unwrap_or_else(|| MultiRegionKey {
            key: view.key,
            account: view.account,
            here: None,
            gone: BTreeMap::new(),
            refused: None,
            declined: None,
            changed: 0,
            changed_at: self.now,
        });
        for (region, generation) in &view.gone {
            let gone = row.gone.entry(region.clone()).or_default();
            *gone = (*gone).max(*generation);
        }
        // Others remember that it was deleted here: these disks are older than that.
        let deleted = row
            .here
            .as_ref()
            .is_some_and(|here| row.gone.get(&me).is_some_and(|gone| *gone >= here.generation));
        if deleted {
            row.here = None;
            self.bury(&view.key);
        }
        let to_make = self.to_be_made(&row, view);
        if known.is_none() && to_make.is_none() && view.gone.is_empty() {
            // Nothing of it concerns this Region.
            return Ok(());
        }
        if let Some(shared) = &view.shared {
            match (row.here.clone(), to_make) {
                (Some(here), _) => self.take_shared(&mut row, here, from, view, shared, told)?,
                (None, Some(generation)) => {
                    self.make_replica(&mut row, generation, shared, told)?
                }
                (None, None) => {}
            }
        }
        if known.as_ref() != Some(&row) {
            self.put_changed(row);
        }
        if view.shared.is_none() {
            self.hear_declined(from, view)?;
        }
        self.settle_if_here(view.key)
    }

    fn settle_if_here(&mut self, id: KeyId) -> Result<(), KmsError> {
        if self.state.key(&id).is_some() { self.settle(id) } else { Ok(()) }
    }

    /// A key leaves that others know to be gone.
    fn bury(&mut self, id: &KeyId) {
        let Some(key) = self.state.key(id).cloned() else { return };
        self.remove_key(&key);
        self.put_tombstone(Tombstone {
            key: *id,
            account: key.account,
            due: key.deletion_date.unwrap_or(self.now),
            deleted: self.now,
            number: self.state.deletions() + 1,
            materials: key.materials.iter().map(|material| material.id).collect(),
        });
    }

    fn take_tokens(&mut self, tokens: &[(KeyMaterialId, SealedToken)]) -> Result<(), KmsError> {
        tokens.iter().try_for_each(|(id, token)| self.take_token(id, token))
    }

    fn make_replica(
        &mut self,
        row: &mut MultiRegionKey,
        generation: u64,
        shared: &Shared,
        told: &Told,
    ) -> Result<(), KmsError> {
        let me = self.me()?;
        let (account, id): (AccountId, KeyId) = (row.account, row.key);
        if self.state.account_key_count(account) >= KEYS_PER_ACCOUNT_MAX {
            let why = format!(
                "account {account} has {KEYS_PER_ACCOUNT_MAX} keys in {me}, the most allowed"
            );
            row.declined = Some((generation, why));
            return Ok(());
        }
        self.take_tokens(&told.tokens)?;
        let mut related = shared.related.clone();
        let first = related.get_mut(&me).and_then(|related| related.first.take());
        let First { description, tags } = first.unwrap_or_default();
        let (materials, current) =
            arrange(shared.materials.clone(), shared.current, shared.waiting);
        let mut here = Here {
            generation,
            version: shared.version.clone(),
            base: shared.base.clone(),
            generations: shared.generations,
            related,
            offer: shared.offer.clone(),
            waits_for: None,
            window_days: None,
        };
        let mut key = Key {
            id,
            account,
            description,
            state: KeyState::Enabled,
            created: self.now,
            deletion_date: None,
            tags,
            materials,
            current,
            rotation: shared.rotation,
            aliases: 0,
        };
        // Made again by a Region that had lost it: the primary's place may be on offer to it.
        self.answer_offer(row, &mut here, &mut key);
        row.here = Some(here);
        self.put_multi_region(row.clone());
        self.put_key(key);
        Ok(())
    }

    fn take_shared(
        &mut self,
        row: &mut MultiRegionKey,
        mut here: Here,
        from: &Region,
        view: &KeyView,
        shared: &Shared,
        told: &Told,
    ) -> Result<(), KmsError> {
        let me = self.me()?;
        let Some(before) = self.state.key(&row.key).cloned() else { return Ok(()) };
        self.take_tokens(&told.tokens)?;
        let mut key = Key::clone(&before);
        for material in &shared.materials {
            if key.material(&material.id).is_none() {
                key.materials.push(material.clone());
            }
        }
        let mut current = before.current_material().id;
        let mut waiting = before.introduced().map(|material| material.id);
        if shared.version > here.version {
            if shared.version.epoch > here.version.epoch {
                self.note_lost(&before, &here, shared);
            }
            here.version = shared.version.clone();
            here.base = shared.base.clone();
            here.generations = here.generations.max(shared.generations);
            here.related = shared.related.clone();
            // This Region knows that its own is there, whoever has not heard of it yet; and two primaries that asked
            // for it mean the same one.
            if let Some(own) = here.related.get_mut(&me) {
                here.generation = here.generation.max(own.generation);
                own.first = None;
            }
            here.offer = shared.offer.clone();
            here.waits_for = None;
            key.rotation = shared.rotation;
            (current, waiting) = (shared.current, shared.waiting);
            // Dates of rotations are the primary's.
            for told in &shared.materials {
                if let Some(own) = key.materials.iter_mut().find(|own| own.id == told.id) {
                    *own = told.clone();
                }
            }
            self.answer_offer(row, &mut here, &mut key);
        } else if here.version.epoch.region == me {
            self.hear_replica(row, &mut here, from, view, shared);
        }
        if here.waits_for.as_ref() == Some(from) && shared.version.epoch >= here.version.epoch {
            here.waits_for = None;
        }
        (key.materials, key.current) = arrange(key.materials, current, waiting);
        row.here = Some(here);
        // First the row: who is primary now decides what a change of the key means.
        self.put_multi_region(row.clone());
        if key != *before {
            self.put_key(key);
            if let Some(noted) = self.state.multi_region(&row.key) {
                *row = MultiRegionKey::clone(noted);
            }
        }
        Ok(())
    }

    /// The primary's place is offered to this Region: it takes it or says no, once.
    fn answer_offer(&self, row: &mut MultiRegionKey, here: &mut Here, key: &mut Key) {
        let Some(facts) = &self.state.region else { return };
        let Some(offer) = here.offer.clone().filter(|offer| offer.to == facts.region) else {
            return;
        };
        if row.refused == Some(offer.id) {
            return;
        }
        if key.state != KeyState::Enabled {
            row.refused = Some(offer.id);
            return;
        }
        here.waits_for = Some(here.version.epoch.region.clone());
        here.base = Some(here.version.clone());
        let number = here.version.epoch.number + 1;
        here.version =
            Version { epoch: Epoch { number, region: facts.region.clone() }, sequence: 0 };
        here.offer = None;
        key.state = KeyState::Updating;
    }

    /// What a primary learns from a replica's telling.
    fn hear_replica(
        &self,
        row: &MultiRegionKey,
        here: &mut Here,
        from: &Region,
        view: &KeyView,
        shared: &Shared,
    ) {
        let before = here.clone();
        if let Some(offer) = &here.offer
            && view.refused == Some(offer.id)
        {
            here.offer = None;
        }
        let gone = row.gone.get(from).copied().unwrap_or(0);
        if shared.generation > gone {
            match here.related.get_mut(from) {
                // It is there: it needs no beginning any more.
                Some(related) if related.generation <= shared.generation => {
                    *related = Related { generation: shared.generation, first: None };
                    here.generations = here.generations.max(shared.generation);
                }
                // It has yet to hear that it counts as a later one.
                Some(_) => {}
                // A replica that a lost primary had made, and the one that was promoted had not heard of.
                None => {
                    let related = Related { generation: shared.generation, first: None };
                    here.related.insert(from.clone(), related);
                    here.generations = here.generations.max(shared.generation);
                }
            }
        }
        if *here != before {
            here.version.sequence += 1;
        }
    }

    /// A replica that could not be made is struck off the list. Its Region has no key, so nothing of the rest of
    /// [`Tx::take_shared`] applies.
    fn hear_declined(&mut self, from: &Region, view: &KeyView) -> Result<(), KmsError> {
        let Some((generation, _)) = &view.declined else { return Ok(()) };
        let Some(key) = self.state.key(&view.key).cloned() else { return Ok(()) };
        let (mut row, mut here) = self.here(&key)?;
        if here.version.epoch.region != self.me()? {
            return Ok(());
        }
        if here.related.get(from).is_some_and(|related| related.generation == *generation) {
            here.related.remove(from);
            here.version.sequence += 1;
            row.here = Some(here);
            self.put_changed(row);
            self.settle(view.key)?;
        }
        Ok(())
    }

    /// A higher epoch has begun from less than what was known here: what differs is put on record, so that somebody
    /// can decide.
    fn note_lost(&mut self, key: &Key, here: &Here, shared: &Shared) {
        let nothing_lost = shared.base.as_ref().is_some_and(|base| *base >= here.version);
        let same = shared.rotation == key.rotation
            && shared.current == key.current_material().id
            && shared.waiting == key.introduced().map(|material| material.id)
            && here.related.keys().all(|region| shared.related.contains_key(region));
        if nothing_lost || same {
            return;
        }
        let Some(view) = self.state.view_of(&key.id) else { return };
        let Some(had) = view.shared else { return };
        self.put_reconciliation(Reconciliation {
            key: key.id,
            account: key.account,
            had,
            winner: shared.version.clone(),
            base: shared.base.clone(),
            noticed: self.now,
        });
    }

    pub(super) fn reconciled(&mut self, id: KeyId) -> Outcome {
        if self.state.reconciliation(&id).is_none() {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!("nothing of {id} waits for a decision"),
            ));
        }
        self.remove_reconciliation(&id);
        DONE
    }

    /// What a Region had acknowledged and lost is made the primary's after all.
    pub(super) fn apply_reconciled(
        &mut self,
        id: KeyId,
        rotation: Rotation,
        current: KeyMaterialId,
    ) -> Outcome {
        let key = self.key_for(Operation::RotateKeyOnDemand, id)?;
        self.check_primary(&key)?;
        if key.introduced().is_some_and(|waiting| waiting.id != current) {
            return Err(KmsError::new(
                ErrorCode::ConflictException,
                format!(
                    "a rotation of {} is under way; try again when it is done",
                    self.key_arn(&key)
                ),
            ));
        }
        if key.material(&current).is_none() {
            return Err(KmsError::new(
                ErrorCode::ConflictException,
                format!("{} has not got material {current} yet: try again", self.key_arn(&key)),
            ));
        }
        let mut changed = Key::clone(&key);
        changed.rotation =
            Rotation { on_demand: rotation.on_demand.max(key.rotation.on_demand), ..rotation };
        let now = key.current_material().id;
        let waiting = (now != current).then_some(current);
        (changed.materials, changed.current) = arrange(changed.materials, now, waiting);
        self.put_key(changed);
        DONE
    }
}
