//! Outside authorities: whose certificates, beside those of Regions, are believed.
//!
//! One belongs to the Region whose operator added it, speaks for that Region's principals alone, and is told to all others
//! as principals are. Any Region may remove it, so that it can be removed while its own Region is lost; merging is a join, as
//! for principals.

use std::collections::BTreeMap;

use keyward_model::limits::{AUTHORITIES_MAX, AUTHORITY_BYTES_MAX};
use keyward_model::{ErrorCode, KmsError, Region};

use super::principals::join_shut;
use super::{DONE, Tx};
use crate::command::Outcome;
use crate::rows::{Fingerprint, OutsideAuthority};

impl Tx<'_> {
    /// Puts it in place, as this Region's latest change.
    fn put_told_authority(&mut self, mut row: OutsideAuthority) {
        row.changed = self.state.feed_head() + 1;
        row.changed_at = self.now;
        self.put_authority(row);
    }

    pub(super) fn add_authority(
        &mut self,
        fingerprint: Fingerprint,
        certificate: &[u8],
    ) -> Outcome {
        let Some(me) = self.state.region.clone() else { return DONE };
        let known = self.state.authority(&fingerprint, &me.region_id).cloned();
        if known.as_ref().is_some_and(|known| known.is_trusted()) {
            return Err(KmsError::new(
                ErrorCode::AlreadyExistsException,
                "this Region trusts that authority already",
            ));
        }
        let own = |row: &&std::sync::Arc<OutsideAuthority>| {
            row.home_id == me.region_id && row.is_trusted()
        };
        if self.state.authorities().filter(own).count() >= AUTHORITIES_MAX {
            return Err(KmsError::new(
                ErrorCode::LimitExceededException,
                format!(
                    "the Region trusts {AUTHORITIES_MAX} outside authorities, the most allowed"
                ),
            ));
        }
        let mut row = known.map_or_else(
            || OutsideAuthority {
                fingerprint,
                certificate: certificate.to_vec(),
                home: me.region.clone(),
                home_id: me.region_id,
                shut: BTreeMap::new(),
                created: self.now,
                changed: 0,
                changed_at: self.now,
            },
            |known| OutsideAuthority::clone(&known),
        );
        row.shut.values_mut().for_each(|shut| shut.lifted = shut.times);
        self.put_told_authority(row);
        DONE
    }

    /// Believes it no more, whichever Region has added it.
    pub(super) fn remove_authority(&mut self, fingerprint: Fingerprint) -> Outcome {
        let known: Vec<_> = self.state.authorities_of(&fingerprint).cloned().collect();
        if known.is_empty() {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                "no outside authority of that fingerprint; `keyward authority list` shows those there are",
            ));
        }
        let history = self.state.history_id();
        for row in known {
            let mut row = OutsideAuthority::clone(&row);
            // Once more, even if it is: somebody elsewhere may have lifted what this Region said before.
            row.shut.entry(history).or_default().times += 1;
            self.put_told_authority(row);
        }
        DONE
    }

    // --- What other Regions tell.

    pub(super) fn check_authority(
        &self,
        from: &Region,
        told: &OutsideAuthority,
    ) -> Result<(), KmsError> {
        if told.certificate.len() > AUTHORITY_BYTES_MAX {
            return Err(KmsError::validation(format!(
                "{from} tells of an authority whose certificate has {} bytes: {AUTHORITY_BYTES_MAX} are allowed",
                told.certificate.len()
            )));
        }
        Ok(())
    }

    pub(super) fn take_authority(&mut self, told: &OutsideAuthority) {
        let mine = self.state.region.as_ref().is_some_and(|me| me.region_id == told.home_id);
        // What a Region that is not linked believes is of no interest.
        if !mine && !self.state.is_linked(&told.home, &told.home_id) {
            return;
        }
        let known = self.state.authority(&told.fingerprint, &told.home_id);
        let known = known.map(|row| OutsideAuthority::clone(row));
        let mut row = known.clone().unwrap_or_else(|| told.clone());
        join_shut(&mut row.shut, &told.shut);
        row.created = row.created.min(told.created);
        if known.as_ref() != Some(&row) {
            self.put_told_authority(row);
        }
    }
}
