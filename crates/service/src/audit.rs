//! On record: what a call leaves in the audit trail, and the layer that sees to it.
//!
//! Every call leaves one record before its answer leaves, refused ones too, and those whose caller hung up. A
//! call whose record cannot be written is refused; a change that was made all the same is told as unknown.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use keyward_audit::{AuditError, Health, Identity, Pair, Record, Tls, Trail, Value};
use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::{ErrorCode, KmsError, Plane, Region, Timestamp, key_arn};
use keyward_raft::BoxFuture;
use keyward_state::State;
use tower::{Layer, Service};

use crate::api::{Call, Caller, Request, Response};
use crate::kms::Kms;

/// Where a call came from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The peer's address.
    pub ip: IpAddr,
    /// TLS version, as CloudTrail writes it.
    pub tls_version: &'static str,
    /// Cipher suite, by its IANA name.
    pub cipher_suite: String,
}

/// A call as far as its record is concerned.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Where it came from; none for calls that no door made.
    pub origin: Option<Arc<Origin>>,
    /// The client program, as it names itself.
    pub user_agent: Option<Arc<str>>,
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
    match caller {
        Some(caller) => {
            Identity::Principal { arn: &caller.principal, certificate_serial: &caller.serial }
        }
        None => Identity::Unknown,
    }
}

fn traced<'a>(record: Record<'a>, trace: &'a Trace) -> Record<'a> {
    Record {
        source_ip: trace.origin.as_ref().map(|origin| origin.ip),
        user_agent: trace.user_agent.as_deref(),
        tls: trace.origin.as_ref().map(|origin| Tls {
            version: origin.tls_version,
            cipher_suite: &origin.cipher_suite,
            host: None,
        }),
        request_id: Some(trace.request_id),
        ..record
    }
}

const ALGORITHM: Value<'static> = Value::Str("SYMMETRIC_DEFAULT");

fn flag(on: bool) -> Value<'static> {
    if on { Value::Bool(true) } else { Value::Absent }
}

/// What was asked, as CloudTrail shows it: never a plaintext, never a ciphertext.
fn with_parameters<T>(request: &Request, record: impl FnOnce(&[Pair<'_>]) -> T) -> T {
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
    }
}

/// The key that a request names, for the record of a call that did not get to answer.
fn named_key(request: &Request) -> Option<&str> {
    match request {
        Request::CreateKey(_)
        | Request::ListKeys(_)
        | Request::DeleteAlias(_)
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
    }
}

/// The ARN of the key that a text names, if it is one that the Region has.
fn arn_of(state: &State, caller: &Caller, text: &str) -> Option<String> {
    let region = &state.region.as_ref()?.region;
    let account = caller.principal.account();
    let key = match text.rsplit_once(":alias/").map(|(_, name)| format!("alias/{name}")) {
        Some(name) => state.key(&state.alias(account, &name.parse().ok()?)?.target)?,
        None if text.starts_with("alias/") => {
            state.key(&state.alias(account, &text.parse().ok()?)?.target)?
        }
        None => {
            let id = text.rsplit_once(":key/").map_or(text, |(_, id)| id);
            state.key(&id.parse().ok()?)?
        }
    };
    Some(key_arn(region, key.account, key.id))
}

/// Sees to it that a call is on record however it ends, also when its caller hangs up.
struct Pending<E: Env> {
    kms: Arc<Kms<E>>,
    caller: Arc<Caller>,
    request: Arc<Request>,
    trace: Trace,
    /// Its record is in the ring, or there is none and the caller is refused for that.
    ended: AtomicBool,
}

impl<E: Env> Pending<E> {
    /// Builds the record of the call's end, and hands it on.
    fn record<T>(
        &self,
        result: Result<&Response, &KmsError>,
        put: impl FnOnce(&Record<'_>) -> T,
    ) -> T {
        let caller = &*self.caller;
        let operation = self.request.operation();
        let changes = operation.plane() == Plane::Manage;
        let named;
        let (mut material, mut date) = (Value::Absent, Value::Absent);
        let (first, second) = match result {
            Ok(Response::Encrypted { key_arn, .. } | Response::KeyArn(key_arn)) => {
                (Some(key_arn), None)
            }
            Ok(
                Response::Decrypted { key_arn, key_material_id, .. }
                | Response::DataKey { key_arn, key_material_id, .. },
            ) => {
                material = Value::Str(key_material_id);
                (Some(key_arn), None)
            }
            Ok(Response::ReEncrypted { source_key_arn, key_arn, .. }) => {
                (Some(source_key_arn), Some(key_arn))
            }
            Ok(Response::Key(metadata)) => (Some(&metadata.arn), None),
            Ok(Response::DeletionScheduled { key_arn, deletion_date, .. }) => {
                date = Value::Date(*deletion_date);
                (Some(key_arn), None)
            }
            Ok(Response::DeletionStatus(status)) => (Some(&status.key_arn), None),
            _ => {
                let state = self.kms.node.state();
                named = named_key(&self.request).and_then(|text| arn_of(&state, caller, text));
                (named.as_ref(), None)
            }
        };
        let both = [first, second].map(|arn| arn.map_or("", String::as_str));
        let arns = &both[..usize::from(first.is_some()) + usize::from(second.is_some())];
        let key = first.map(String::as_str);
        let response = [("keyId", key.into()), ("deletionDate", date)];
        let additional = [("keyMaterialId", material)];
        let now = Timestamp(self.kms.node.env().wall_now_ms());
        with_parameters(&self.request, |parameters| {
            let region = &self.kms.audit.region;
            let record = Record::call(operation, now, region, identity(Some(caller)));
            put(&Record {
                parameters: Some(parameters),
                response: (changes && result.is_ok()).then_some(&response),
                additional: &additional,
                key_arns: arns,
                refusal: result.err(),
                ..traced(record, &self.trace)
            })
        })
    }

    /// [`Bug::AuditAfterAnswer`]: the record is made some time after the answer has left.
    fn record_later(self) {
        let env = self.kms.node.env().clone();
        env.clone().spawn(async move {
            env.sleep(Duration::from_millis(5)).await;
            drop(self);
        });
    }

    async fn end(self, result: Result<Response, KmsError>) -> Result<Response, KmsError> {
        if on(Bug::AuditAfterAnswer) {
            self.record_later();
            return result;
        }
        let Some(trail) = &self.kms.audit.trail else { return result };
        let changes = self.request.operation().plane() == Plane::Manage;
        let changed = changes && may_have_changed(result.as_ref().err());
        // A caller may hang up while the ring is full and the record waits for room.
        let append = |trail: &Trail| {
            let appended = self.record(result.as_ref(), |record| trail.append(record));
            self.ended.store(appended.is_ok(), Ordering::Relaxed);
            appended
        };
        let put = trail.put(self.kms.node.env(), append).await;
        self.ended.store(true, Ordering::Relaxed);
        match put {
            Ok(()) => result,
            Err(error) => Err(unwritten(&error, changed)),
        }
    }
}

impl<E: Env> Drop for Pending<E> {
    fn drop(&mut self) {
        if *self.ended.get_mut() {
            return;
        }
        let Some(trail) = &self.kms.audit.trail else { return };
        let gone = KmsError::unknown_outcome("the caller hung up before the call was answered");
        let put = self.record(Err(&gone), |record| trail.append(record).map(drop));
        if let Err(error) = put {
            tracing::error!(%error, "a call whose caller hung up is not on record");
        }
    }
}

/// The layer.
pub struct Recorded<E: Env, S> {
    kms: Arc<Kms<E>>,
    inner: S,
}

impl<E: Env, S: Clone> Clone for Recorded<E, S> {
    fn clone(&self) -> Self {
        Self { kms: Arc::clone(&self.kms), inner: self.inner.clone() }
    }
}

pub(crate) struct RecordLayer<E: Env>(pub(crate) Arc<Kms<E>>);

impl<E: Env, S> Layer<S> for RecordLayer<E> {
    type Service = Recorded<E, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Recorded { kms: Arc::clone(&self.0), inner }
    }
}

impl<E, S> Service<Call> for Recorded<E, S>
where
    E: Env,
    S: Service<Call, Response = Response, Error = KmsError, Future: Send + 'static>,
{
    type Response = Response;
    type Error = KmsError;
    type Future = BoxFuture<'static, Result<Response, KmsError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), KmsError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        if let Err(refusal) = self.kms.audit.check() {
            return Box::pin(std::future::ready(Err(refusal)));
        }
        let pending = Pending {
            kms: Arc::clone(&self.kms),
            caller: Arc::clone(&call.caller),
            request: Arc::clone(&call.request),
            trace: std::mem::take(&mut call.trace),
            ended: AtomicBool::new(false),
        };
        let served = self.inner.call(call);
        Box::pin(async move {
            let result = served.await;
            pending.end(result).await
        })
    }
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
