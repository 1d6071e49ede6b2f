//! The layer that sees to it that a call is on record before its answer leaves.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use keyward_audit::{AuditError, Record, Ticket, Trail, Value};
use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::{KeyArn, KmsError, Plane, Timestamp};
use keyward_raft::BoxFuture;
use tower::Layer;

use super::asked::{arn_of, named_key, with_parameters};
use super::{Trace, identity, may_have_changed, traced, unwritten};
use crate::api::{Call, Caller, Request, Response};
use crate::kms::Kms;
use crate::stack::Handler;

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
                (Some(key_arn.as_str()), None)
            }
            Ok(
                Response::Decrypted { key_arn, key_material_id, .. }
                | Response::DataKey { key_arn, key_material_id, .. },
            ) => {
                material = Value::Str(key_material_id);
                (Some(key_arn.as_str()), None)
            }
            Ok(Response::ReEncrypted { source_key_arn, key_arn, .. }) => {
                (Some(source_key_arn.as_str()), Some(key_arn.as_str()))
            }
            Ok(Response::Key(metadata) | Response::Replicated(metadata)) => {
                (Some(metadata.arn.as_str()), None)
            }
            Ok(Response::DeletionScheduled { key_arn, deletion_date, .. }) => {
                date = deletion_date.map_or(Value::Absent, Value::Date);
                (Some(key_arn.as_str()), None)
            }
            Ok(Response::DeletionStatus(status)) => (Some(status.key_arn.as_str()), None),
            _ => {
                let state = self.kms.node.state();
                named = named_key(&self.request).and_then(|text| arn_of(&state, caller, text));
                (named.as_ref().map(KeyArn::as_str), None)
            }
        };
        let both = [first, second].map(Option::unwrap_or_default);
        let arns = &both[..usize::from(first.is_some()) + usize::from(second.is_some())];
        let response = [("keyId", first.into()), ("deletionDate", date)];
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

    /// Puts the call on record, and lets its answer go: at once, where the trail has room and answers do not wait for
    /// a disk. Else what is to be waited for is returned.
    fn end(self, result: Result<Response, KmsError>) -> Ended {
        if on(Bug::AuditAfterAnswer) {
            self.record_later();
            return Ended::Now(result);
        }
        let Some(trail) = &self.kms.audit.trail else { return Ended::Now(result) };
        match self.append(trail, &result) {
            Ok(ticket) if ticket.is_done() => Ended::Now(result),
            first => Ended::Later(Box::pin(self.end_later(first, result))),
        }
    }

    fn append(
        &self,
        trail: &Trail,
        result: &Result<Response, KmsError>,
    ) -> Result<Ticket, AuditError> {
        let appended = self.record(result.as_ref(), |record| trail.append(record));
        // A caller may hang up while the ring is full and the record waits for room.
        self.ended.store(appended.is_ok(), Ordering::Relaxed);
        appended
    }

    async fn end_later(
        self,
        first: Result<Ticket, AuditError>,
        result: Result<Response, KmsError>,
    ) -> Result<Response, KmsError> {
        let Some(trail) = &self.kms.audit.trail else { return result };
        let changes = self.request.operation().plane() == Plane::Manage;
        let changed = changes && may_have_changed(result.as_ref().err());
        let env = self.kms.node.env();
        let put = trail.put_after(env, first, |trail| self.append(trail, &result)).await;
        self.ended.store(true, Ordering::Relaxed);
        match put {
            Ok(()) => result,
            Err(error) => Err(unwritten(&error, changed)),
        }
    }
}

/// A call that has been decided.
enum Ended {
    /// It is on record.
    Now(Result<Response, KmsError>),
    /// It will be.
    Later(BoxFuture<'static, Result<Response, KmsError>>),
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

impl<E: Env, S: Handler> Handler for Recorded<E, S> {
    type Future = OnRecord<E, S::Future>;

    fn handle(&self, mut call: Call) -> Self::Future {
        if let Err(refusal) = self.kms.audit.check() {
            return OnRecord(Step::Ended(std::future::ready(Err(refusal))));
        }
        let pending = Pending {
            kms: Arc::clone(&self.kms),
            caller: Arc::clone(&call.caller),
            request: Arc::clone(&call.request),
            trace: std::mem::take(&mut call.trace),
            ended: AtomicBool::new(false),
        };
        OnRecord(Step::Serving(self.inner.handle(call), Some(pending)))
    }
}

/// A call until it is on record.
pub struct OnRecord<E: Env, F>(Step<E, F>);

enum Step<E: Env, F> {
    Serving(F, Option<Pending<E>>),
    /// Its record waits for a disk.
    Recording(BoxFuture<'static, Result<Response, KmsError>>),
    Ended(std::future::Ready<Result<Response, KmsError>>),
}

impl<E: Env, F> Unpin for OnRecord<E, F> {}

impl<E: Env, F> Future for OnRecord<E, F>
where
    F: Future<Output = Result<Response, KmsError>> + Unpin,
{
    type Output = Result<Response, KmsError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.0 {
                Step::Serving(served, pending) => {
                    let result = ready!(Pin::new(served).poll(cx));
                    let Some(pending) = pending.take() else { unreachable!("it ends once") };
                    match pending.end(result) {
                        Ended::Now(result) => return Poll::Ready(result),
                        Ended::Later(recording) => self.0 = Step::Recording(recording),
                    }
                }
                Step::Recording(recording) => return recording.as_mut().poll(cx),
                Step::Ended(ended) => return Pin::new(ended).poll(cx),
            }
        }
    }
}
