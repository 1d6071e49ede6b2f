//! Who is it, and may they? Two questions, asked on every call.

use keyward_model::{ErrorCode, KmsError, Operation, Plane, PrincipalArn, Timestamp};
use keyward_state::{Fingerprint, Key, Principal, State};

use crate::api::{Caller, Issuer};

/// The principal behind a certificate, if both still stand. Expiry and revocation are looked at on each
/// call, not only when the connection was made.
pub(crate) fn authenticate<'a>(
    state: &'a State,
    caller: &Caller,
    now: Timestamp,
) -> Result<&'a Principal, KmsError> {
    let arn = &caller.principal;
    let refuse = |message: String| KmsError::new(ErrorCode::UnrecognizedClientException, message);
    if now >= caller.not_after {
        return Err(refuse(format!(
            "the certificate of {arn} has expired: get a new one from an operator"
        )));
    }
    let own = || state.principal(arn).map(|own| &**own);
    let found = match caller.issuer {
        Issuer::Own => own(),
        Issuer::Region(home) => made_by(state, arn, &home),
        Issuer::Outside(authority) => certified_outside(state, arn, &authority).map_err(refuse)?,
    };
    let principal =
        found.ok_or_else(|| refuse(format!("{arn} is not a principal of this Region")))?;
    // Whom this Region has shut out is out, whichever Region has made a principal of that ARN since.
    let shut_here = || own().is_some_and(Principal::is_disabled);
    if principal.is_disabled() || (caller.issuer != Issuer::Own && shut_here()) {
        return Err(refuse(format!("principal {arn} is disabled")));
    }
    if !matches!(caller.issuer, Issuer::Outside(_)) {
        match principal.certificates.get(&caller.serial) {
            Some(record) if !record.revoked => {}
            Some(_) => {
                return Err(refuse(format!("this certificate of {arn} was revoked")));
            }
            None => {
                return Err(refuse(format!("this certificate of {arn} is not on record")));
            }
        }
    }
    Ok(principal)
}

/// The principal of that ARN that the Region of that id has made, if it is linked with this one.
fn made_by<'a>(state: &'a State, arn: &PrincipalArn, home: &[u8; 16]) -> Option<&'a Principal> {
    state
        .foreign_principal(arn, home)
        .filter(|row| state.is_linked(&row.home, &row.home_id))
        .map(|row| &row.principal)
}

/// Whom an outside authority's certificate stands for: a principal of a Region that trusts that authority, this one first;
/// of several elsewhere, one that is shut out counts. Another Region's authorities speak for nobody of this one.
fn certified_outside<'a>(
    state: &'a State,
    arn: &PrincipalArn,
    authority: &Fingerprint,
) -> Result<Option<&'a Principal>, String> {
    let me = state.region.as_ref().map(|me| me.region_id);
    let (mut believed, mut found): (bool, Option<&Principal>) = (false, None);
    for row in state.authorities_of(authority).filter(|row| state.believes(row)) {
        believed = true;
        if Some(row.home_id) == me {
            if let Some(own) = state.principal(arn) {
                return Ok(Some(own));
            }
        } else if let Some(one) = made_by(state, arn, &row.home_id)
            && found.is_none_or(|found| !found.is_disabled())
        {
            found = Some(one);
        }
    }
    if believed {
        return Ok(found);
    }
    Err(format!(
        "the authority that has issued the certificate of {arn} is trusted no more (`keyward authority list`)"
    ))
}

/// Somebody showed a certificate that is no longer good for anything: that is for the log. (It is counted as
/// the call's outcome.)
pub(crate) fn note_refusal(error: &KmsError) {
    tracing::warn!(%error, "a caller was refused");
}

/// A question to whoever decides.
pub struct Question<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// What for.
    pub operation: Operation,
    /// On which key, with its ARN; none for operations on no single key.
    pub key: Option<(&'a Key, &'a str)>,
}

/// Decides whether a call is allowed. The policy engine will stand behind it.
pub trait Authorize: Send + Sync + 'static {
    /// `Ok` allows; the refusal says why.
    fn decide(&self, question: &Question<'_>) -> Result<(), KmsError>;
}

/// Decides by the kind of the principal and the account of the key.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByKind;

impl Authorize for ByKind {
    fn decide(&self, question: &Question<'_>) -> Result<(), KmsError> {
        let kinds = question.principal.kinds;
        let (allowed, needed) = match (question.operation, question.operation.plane()) {
            (
                Operation::DescribeKey
                | Operation::ListKeys
                | Operation::ListAliases
                | Operation::WaitForChange,
                _,
            ) => (kinds.administrator || kinds.user, "key administrator or key user"),
            (_, Plane::Use) => (kinds.user, "key user"),
            (_, Plane::Manage | Plane::Read) => (kinds.administrator, "key administrator"),
        };
        let own =
            question.key.is_none_or(|(key, _)| key.account == question.principal.arn.account());
        if allowed && own {
            return Ok(());
        }
        let resource = question.key.map_or("*", |(_, arn)| arn);
        let reason = if allowed {
            "because the key belongs to another account".to_owned()
        } else {
            format!("because it is not a {needed}")
        };
        Err(KmsError::new(
            ErrorCode::AccessDeniedException,
            format!(
                "User: {} is not authorized to perform: kms:{} on resource: {resource} {reason}",
                question.principal.arn,
                question.operation.name(),
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use keyward_state::Kinds;

    use super::*;

    fn principal(kinds: Kinds) -> Principal {
        Principal {
            arn: "arn:aws:iam::111122223333:user/x".parse().unwrap(),
            kinds,
            shut: BTreeMap::new(),
            created: Timestamp(0),
            certificates: BTreeMap::new(),
            changed: 0,
            changed_at: Timestamp(0),
        }
    }

    /// Every operation with every kind: administrators are not users, operators are neither.
    #[test]
    fn every_operation_is_open_to_exactly_its_kinds() {
        let kinds = |operator, administrator, user| Kinds { operator, administrator, user };
        for operation in Operation::ALL {
            let open = |kinds| {
                let principal = principal(kinds);
                let question = Question { principal: &principal, operation: *operation, key: None };
                ByKind.decide(&question).is_ok()
            };
            let both = matches!(
                operation.name(),
                "DescribeKey" | "ListKeys" | "ListAliases" | "WaitForChange"
            );
            let uses = operation.plane() == Plane::Use;
            assert!(!open(kinds(true, false, false)), "{operation:?} by an operator");
            assert!(!open(kinds(false, false, false)), "{operation:?} by nobody");
            assert_eq!(
                open(kinds(false, true, false)),
                both || !uses,
                "{operation:?} by an administrator"
            );
            assert_eq!(open(kinds(false, false, true)), both || uses, "{operation:?} by a user");
            assert!(open(kinds(false, true, true)), "{operation:?} by both");
        }
    }
}
