//! Principals, and what other Regions tell of theirs.
//!
//! A principal belongs to the Region that made it, and is told to all others. Any of them may shut it out or revoke a
//! certificate of it, so that it can be shut out while its own Region is lost; what is told is merged, never replaced:
//! certificates are added, a revoked one stays revoked, and a principal is shut out until somebody who knew of that lets it
//! in again. So all Regions agree, in whatever order they hear.

use std::collections::BTreeMap;

use keyward_model::limits::{CERTIFICATES_PER_PRINCIPAL_MAX, PRINCIPALS_MAX};
use keyward_model::{ErrorCode, KmsError, PrincipalArn, Region, Timestamp};

use super::{DONE, Tx};
use crate::command::Outcome;
use crate::multi_region::HistoryId;
use crate::rows::{CertificateRecord, ForeignPrincipal, Kinds, Principal, Shut};

/// Adds what was told of who has shut it out, and who lifted that.
pub(super) fn join_shut(own: &mut BTreeMap<HistoryId, Shut>, told: &BTreeMap<HistoryId, Shut>) {
    for (region, shut) in told {
        let known = own.entry(*region).or_default();
        known.times = known.times.max(shut.times);
        known.lifted = known.lifted.max(shut.lifted);
    }
}

/// Adds what was told of a principal to what is known of it.
fn join(own: &mut Principal, told: &Principal, now: Timestamp) {
    join_shut(&mut own.shut, &told.shut);
    own.created = own.created.min(told.created);
    // They differ only where a Region on old disks has made it a second time.
    own.kinds.administrator &= told.kinds.administrator;
    own.kinds.user &= told.kinds.user;
    for (serial, record) in &told.certificates {
        match own.certificates.get_mut(serial) {
            Some(known) => known.revoked |= record.revoked,
            // What has ended is refused by its date.
            None if record.not_after <= now => {}
            None => drop(own.certificates.insert(serial.clone(), record.clone())),
        }
    }
}

impl Tx<'_> {
    fn unknown_principal(&self, arn: &PrincipalArn) -> KmsError {
        let elsewhere = self.state.foreign_principals_named(arn).next();
        KmsError::new(
            ErrorCode::NotFoundException,
            match elsewhere {
                Some(other) => format!(
                    "{arn} is a principal of {}: its certificates are issued there",
                    other.home
                ),
                None => {
                    format!("no principal {arn}; `keyward principal list` shows those there are")
                }
            },
        )
    }

    fn known_principal(&self, arn: &PrincipalArn) -> Result<Principal, KmsError> {
        let known = self.state.principal(arn).map(|p| Principal::clone(p));
        known.ok_or_else(|| self.unknown_principal(arn))
    }

    /// Puts it in place, as this Region's latest change if others are told of it.
    fn put_told_principal(&mut self, mut principal: Principal) {
        if !principal.kinds.operator {
            principal.changed = self.state.feed_head() + 1;
            principal.changed_at = self.now;
        }
        self.put_principal(principal);
    }

    fn put_told_foreign(&mut self, mut row: ForeignPrincipal) {
        row.principal.changed = self.state.feed_head() + 1;
        row.principal.changed_at = self.now;
        self.put_foreign_principal(row);
    }

    pub(super) fn create_principal(
        &mut self,
        arn: &PrincipalArn,
        kinds: Kinds,
        certificate: Option<&(Vec<u8>, Timestamp)>,
    ) -> Outcome {
        if self.state.principal(arn).is_some() {
            return Err(KmsError::new(
                ErrorCode::AlreadyExistsException,
                format!("principal {arn} exists already"),
            ));
        }
        if self.state.principals.size() >= PRINCIPALS_MAX {
            return Err(KmsError::new(
                ErrorCode::LimitExceededException,
                format!("the Region has {PRINCIPALS_MAX} principals, the most allowed"),
            ));
        }
        let certificates = certificate
            .map(|(serial, not_after)| {
                (serial.clone(), CertificateRecord { not_after: *not_after, revoked: false })
            })
            .into_iter()
            .collect::<BTreeMap<_, _>>();
        self.put_told_principal(Principal {
            arn: arn.clone(),
            kinds,
            shut: BTreeMap::new(),
            created: self.now,
            certificates,
            changed: 0,
            changed_at: self.now,
        });
        DONE
    }

    pub(super) fn add_certificate(
        &mut self,
        arn: &PrincipalArn,
        serial: &[u8],
        not_after: Timestamp,
    ) -> Outcome {
        let mut principal = self.known_principal(arn)?;
        // Records of certificates that have ended are of no more use: they are refused by their date.
        let now = self.now;
        principal.certificates.retain(|_, record| record.not_after > now);
        if principal.certificates.len() >= CERTIFICATES_PER_PRINCIPAL_MAX {
            return Err(KmsError::new(
                ErrorCode::LimitExceededException,
                format!(
                    "{arn} has {CERTIFICATES_PER_PRINCIPAL_MAX} certificates, the most allowed"
                ),
            ));
        }
        principal
            .certificates
            .insert(serial.to_vec(), CertificateRecord { not_after, revoked: false });
        self.put_told_principal(principal);
        DONE
    }

    /// Switches off or on whoever bears that ARN, whichever Region made it.
    pub(super) fn set_principal_disabled(&mut self, arn: &PrincipalArn, disabled: bool) -> Outcome {
        let own = self.state.principal(arn).cloned();
        let foreign: Vec<_> = self.state.foreign_principals_named(arn).cloned().collect();
        if own.is_none() && foreign.is_empty() {
            return Err(self.unknown_principal(arn));
        }
        if disabled && own.as_ref().is_some_and(|own| own.kinds.operator) {
            let others = self
                .state
                .principals
                .values()
                .any(|p| p.arn != *arn && p.kinds.operator && !p.is_disabled());
            if !others {
                return Err(KmsError::new(
                    ErrorCode::KMSInvalidStateException,
                    format!("{arn} is the last operator: create another one first"),
                ));
            }
        }
        let history = self.state.history_id();
        let switch = |principal: &Principal| {
            let mut principal = principal.clone();
            match disabled {
                true => principal.shut.entry(history).or_default().times += 1,
                false => principal.shut.values_mut().for_each(|shut| shut.lifted = shut.times),
            }
            principal
        };
        // Shut out once more, even if it is: somebody elsewhere may have lifted what this Region said before.
        let changes = |principal: &Principal| disabled || principal.is_disabled();
        if let Some(own) = own.filter(|own| changes(own)) {
            self.put_told_principal(switch(&own));
        }
        for row in foreign.iter().filter(|row| changes(&row.principal)) {
            let principal = switch(&row.principal);
            self.put_told_foreign(ForeignPrincipal { principal, ..ForeignPrincipal::clone(row) });
        }
        DONE
    }

    /// Revokes a certificate, whichever Region issued it.
    pub(super) fn revoke_certificate(&mut self, arn: &PrincipalArn, serial: &[u8]) -> Outcome {
        let own = self.state.principal(arn).map(|own| Principal::clone(own));
        if let Some(mut own) = own
            && let Some(record) = own.certificates.get_mut(serial)
        {
            record.revoked = true;
            self.put_told_principal(own);
            return DONE;
        }
        let foreign: Vec<_> = self.state.foreign_principals_named(arn).cloned().collect();
        for row in &foreign {
            let mut row = ForeignPrincipal::clone(row);
            if let Some(record) = row.principal.certificates.get_mut(serial) {
                record.revoked = true;
                self.put_told_foreign(row);
                return DONE;
            }
        }
        if self.state.principal(arn).is_none() && foreign.is_empty() {
            return Err(self.unknown_principal(arn));
        }
        Err(KmsError::new(
            ErrorCode::NotFoundException,
            format!("{arn} has no certificate of that serial number on record"),
        ))
    }

    // --- What other Regions tell.

    pub(super) fn check_principal(
        &self,
        from: &Region,
        told: &ForeignPrincipal,
    ) -> Result<(), KmsError> {
        if told.principal.kinds.operator {
            return Err(KmsError::validation(format!(
                "{from} tells of {}, an operator: operators are those of one Region alone",
                told.principal.arn
            )));
        }
        Ok(())
    }

    pub(super) fn take_principal(&mut self, told: &ForeignPrincipal) {
        let arn = &told.principal.arn;
        let mine = self.state.region.as_ref().is_some_and(|me| me.region_id == told.home_id);
        if mine {
            // It comes home: changed elsewhere, or made here before these disks.
            let known = self.state.principal(arn).map(|own| Principal::clone(own));
            if known.as_ref().is_some_and(|own| own.kinds.operator) {
                return;
            }
            let mut own = known.clone().unwrap_or_else(|| told.principal.clone());
            join(&mut own, &told.principal, self.now);
            if known.as_ref() != Some(&own) {
                self.put_told_principal(own);
            }
            return;
        }
        // Nobody could be let in as one whose Region is not linked.
        if !self.state.is_linked(&told.home, &told.home_id) {
            return;
        }
        let known = self.state.foreign_principal(arn, &told.home_id);
        let known = known.map(|row| ForeignPrincipal::clone(row));
        let mut row = known.clone().unwrap_or_else(|| told.clone());
        join(&mut row.principal, &told.principal, self.now);
        if known.as_ref() != Some(&row) {
            self.put_told_foreign(row);
        }
    }
}
