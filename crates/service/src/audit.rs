//! On record: what a call leaves in the audit trail, and the layer that sees to it.
//!
//! Every call leaves one record before its answer leaves, refused ones too, and those whose caller hung up. A
//! call whose record cannot be written is refused; a change that was made all the same is told as unknown.

mod asked;
mod layer;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use keyward_audit::{AuditError, Client, Health, Identity, Pair, Record, Tls, Trail, Value};
use keyward_env::Env;
use keyward_model::{ErrorCode, KmsError, Region, Timestamp};

use crate::api::Caller;
pub(crate) use layer::RecordLayer;
pub use layer::Recorded;

/// Where the calls of a connection come from.
#[derive(Debug)]
pub struct Origin {
    ip: IpAddr,
    tls_version: &'static str,
    cipher_suite: String,
    /// With the client program that called first.
    first: OnceLock<(Option<String>, Arc<Client>)>,
}

impl Origin {
    /// The peer's address, the TLS version as CloudTrail writes it, and the cipher suite by its IANA name.
    #[must_use]
    pub fn new(ip: IpAddr, tls_version: &'static str, cipher_suite: String) -> Self {
        Self { ip, tls_version, cipher_suite, first: OnceLock::new() }
    }

    /// The same with the client program, as it names itself: written down once for all calls of that program.
    #[must_use]
    pub fn client(&self, user_agent: Option<&str>) -> Arc<Client> {
        let write = || {
            let cipher_suite = &self.cipher_suite;
            let tls = Tls { version: self.tls_version, cipher_suite, host: None };
            Arc::new(Client::new(Some(self.ip), user_agent, Some(tls)))
        };
        let first = self.first.get_or_init(|| (user_agent.map(str::to_owned), write()));
        if first.0.as_deref() == user_agent { Arc::clone(&first.1) } else { write() }
    }
}

/// A call as far as its record is concerned.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Where it came from; none for calls that no door made.
    pub client: Option<Arc<Client>>,
    /// What the caller got as the call's id.
    pub request_id: [u8; 16],
}

/// The audit trail of one node, as the service uses it.
pub struct Audit {
    trail: Option<Trail>,
    region: Region,
    /// The upper half of request ids: drawn at the start.
    boot: [u8; 8],
    requests: AtomicU64,
}

/// Whether a change with this refusal, or none, has taken effect, or may have.
fn may_have_changed(refusal: Option<&KmsError>) -> bool {
    refusal.is_none_or(|refusal| refusal.outcome_unknown)
}

fn unwritten(error: &AuditError, changed: bool) -> KmsError {
    let why = format!("this node cannot write its audit trail: {error}");
    if changed {
        return KmsError::unknown_outcome(format!("{why}. The change may have taken effect"));
    }
    KmsError::new(ErrorCode::DependencyTimeoutException, format!("{why}; try another node"))
}

impl Audit {
    /// Records into `trail`. Without one nothing is on record: for simulated nodes only, whose disks are not
    /// files.
    #[must_use]
    pub fn new(trail: Option<Trail>, region: Region, boot: [u8; 8]) -> Self {
        Self { trail, region, boot, requests: AtomicU64::new(0) }
    }

    /// An id for a request: unique, and no secret.
    #[must_use]
    pub fn next_request_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.boot);
        id[8..].copy_from_slice(&self.requests.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        id
    }

    /// Why nothing can be recorded now, if so.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        match self.trail.as_ref()?.health() {
            Health::Good => None,
            Health::Failing { reason, .. } => Some(reason.to_string()),
        }
    }

    /// The number that the trail's next record gets; none of a node without a trail.
    pub(crate) fn next_sequence(&self) -> Option<u64> {
        self.trail.as_ref().map(Trail::next_sequence)
    }

    /// Refuses a call before it begins when it could not be recorded.
    pub fn check(&self) -> Result<(), KmsError> {
        match &self.trail {
            Some(trail) => trail.check().map_err(|error| unwritten(&error, false)),
            None => Ok(()),
        }
    }

    /// Puts a record where the operating system has it, then lets the answer go.
    async fn put<E: Env>(
        &self,
        env: &E,
        record: &Record<'_>,
        changed: bool,
    ) -> Result<(), KmsError> {
        let Some(trail) = &self.trail else { return Ok(()) };
        let put = trail.put(env, |trail| trail.append(record)).await;
        put.map_err(|error| unwritten(&error, changed))
    }

    /// Something that Keyward did by itself.
    pub(crate) fn event(&self, name: &str, now: Timestamp, key_arn: &str, details: &[Pair<'_>]) {
        let Some(trail) = &self.trail else { return };
        let arns = [key_arn];
        let record =
            Record { key_arns: &arns, ..Record::service_event(name, now, &self.region, details) };
        if let Err(error) = trail.append(&record).map(drop) {
            tracing::error!(%error, name, "an event is not on record");
        }
    }

    /// A call of the operator service, or one of the key service that did not get as far as an operation.
    #[expect(clippy::too_many_arguments, reason = "what a record holds")]
    pub async fn other_call<E: Env>(
        &self,
        env: &E,
        name: &str,
        changes: bool,
        operator: bool,
        caller: Option<&Caller>,
        trace: &Trace,
        parameters: &[(&'static str, String)],
        refusal: Option<&KmsError>,
    ) -> Result<(), KmsError> {
        let pairs: Vec<Pair<'_>> =
            parameters.iter().map(|(name, value)| (*name, Value::Str(value))).collect();
        let now = Timestamp(env.wall_now_ms());
        let mut record = Record::operator_call(name, !changes, now, &self.region, identity(caller));
        if !operator {
            record.source = keyward_audit::Source::Kms;
        }
        let record = Record {
            parameters: (!pairs.is_empty()).then_some(&pairs),
            refusal,
            ..traced(record, trace)
        };
        self.put(env, &record, changes && may_have_changed(refusal)).await
    }
}

fn identity(caller: Option<&Caller>) -> Identity<'_> {
    caller.map_or(Identity::Unknown, |caller| Identity::Principal(&caller.actor))
}

fn traced<'a>(record: Record<'a>, trace: &'a Trace) -> Record<'a> {
    Record { client: trace.client.as_deref(), request_id: Some(trace.request_id), ..record }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_may_have_been_made_is_never_told_as_one_that_was_not() {
        let refused = KmsError::new(ErrorCode::NotFoundException, "no such key");
        let unknown = KmsError::unknown_outcome("late");
        for (refusal, changed) in [(None, true), (Some(&unknown), true), (Some(&refused), false)] {
            let told = unwritten(&AuditError::Closed, may_have_changed(refusal));
            assert_eq!(told.outcome_unknown, changed, "{refusal:?}");
            assert!(told.code.is_retryable() && told.message.contains("audit trail"));
        }
    }
}
