//! The stack that every door calls, readable from top to bottom in [`stack`]: measure, record, shed,
//! deadline, serve. Each is one small tower layer with one concern.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use keyward_env::Env;
use keyward_model::limits::{CALL_DEADLINE_MAX, CALLS_IN_FLIGHT_MAX};
use keyward_model::{ErrorCode, KmsError, Operation, Plane};
use keyward_raft::BoxFuture;
use metrics::{Counter, Histogram};
use tower::{Layer, Service, ServiceBuilder};

use crate::api::{Call, Response};
use crate::audit::{RecordLayer, Recorded};
use crate::kms::Kms;

/// The whole stack, as one service.
pub type Stack<E> = Measure<E, Recorded<E, Shed<Deadline<E, Serve<E>>>>>;

/// Builds the stack on a node's service.
pub fn stack<E: Env>(kms: Arc<Kms<E>>) -> Stack<E> {
    let env = kms.node().env().clone();
    ServiceBuilder::new()
        .layer(MeasureLayer(env.clone()))
        .layer(RecordLayer(Arc::clone(&kms)))
        .layer(ShedLayer)
        .layer(DeadlineLayer(env))
        .service(Serve(kms))
}

/// The bottom: the operations.
pub struct Serve<E: Env>(Arc<Kms<E>>);

impl<E: Env> Clone for Serve<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Env> Service<Call> for Serve<E> {
    type Response = Response;
    type Error = KmsError;
    type Future = BoxFuture<'static, Result<Response, KmsError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), KmsError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let kms = Arc::clone(&self.0);
        Box::pin(async move { kms.serve(call).await })
    }
}

macro_rules! layer {
    ($layer:ident$(<$E:ident>)? => $service:ident, $self:ident, $inner:ident, $make:expr) => {
        impl<$($E: Env,)? S> Layer<S> for $layer$(<$E>)? {
            type Service = $service<$($E,)? S>;
            fn layer(&$self, $inner: S) -> Self::Service { $make }
        }
    };
}

/// Holds the caller's deadline. A change that was handed on may still take effect, and the refusal says
/// so.
#[derive(Clone)]
pub struct Deadline<E, S> {
    env: E,
    inner: S,
}

struct DeadlineLayer<E>(E);
layer!(DeadlineLayer<E> => Deadline, self, inner, Deadline { env: self.0.clone(), inner });

impl<E, S> Service<Call> for Deadline<E, S>
where
    E: Env,
    S: Service<Call, Response = Response, Error = KmsError, Future: Send + Unpin + 'static>,
{
    type Response = Response;
    type Error = KmsError;
    type Future = BoxFuture<'static, Result<Response, KmsError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), KmsError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        call.patience = call.patience.min(CALL_DEADLINE_MAX);
        let (env, patience) = (self.env.clone(), call.patience);
        let changes = call.request.operation().plane() == Plane::Manage;
        // A change notices its own deadline and knows more about its outcome: it gets a moment longer.
        let grace = if changes { Duration::from_millis(50) } else { Duration::ZERO };
        let mut served = self.inner.call(call);
        Box::pin(async move {
            // Most calls are served without waiting for anything, and need no timer.
            let at_once = poll_fn(|cx| Poll::Ready(Pin::new(&mut served).poll(cx))).await;
            if let Poll::Ready(result) = at_once {
                return result;
            }
            match env.timeout(patience + grace, served).await {
                Some(result) => result,
                None if changes => Err(KmsError::unknown_outcome(
                    "the deadline passed while the change was under way: it may have taken effect",
                )),
                None => Err(KmsError::new(
                    ErrorCode::DependencyTimeoutException,
                    "the deadline passed before the call was served: try again, or allow more time",
                )),
            }
        })
    }
}

/// Refuses at once what a node cannot hold, instead of letting a queue grow.
#[derive(Clone)]
pub struct Shed<S> {
    in_flight: Arc<AtomicUsize>,
    inner: S,
}

struct ShedLayer;
layer!(ShedLayer => Shed, self, inner, Shed { in_flight: Arc::default(), inner });

/// Gives its place back however the call ends, also when its future is dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Service<Call> for Shed<S>
where
    S: Service<Call, Response = Response, Error = KmsError, Future: Send + 'static>,
{
    type Response = Response;
    type Error = KmsError;
    type Future = BoxFuture<'static, Result<Response, KmsError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), KmsError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let place = Place(Arc::clone(&self.in_flight));
        if self.in_flight.fetch_add(1, Ordering::Relaxed) >= CALLS_IN_FLIGHT_MAX {
            drop(place);
            return Box::pin(std::future::ready(Err(KmsError::new(
                ErrorCode::ThrottlingException,
                format!(
                    "this node has {CALLS_IN_FLIGHT_MAX} calls under way: try again in a moment"
                ),
            ))));
        }
        let served = self.inner.call(call);
        Box::pin(async move {
            let _place = place;
            served.await
        })
    }
}

/// One operation's counters by outcome, and its times. Each is asked for once: it exists from the first such call on.
struct Measured {
    ok: OnceLock<Counter>,
    refused: [OnceLock<Counter>; ErrorCode::ALL.len()],
    seconds: OnceLock<Histogram>,
}

impl Measured {
    const fn new() -> Self {
        let refused = [const { OnceLock::new() }; ErrorCode::ALL.len()];
        Self { ok: OnceLock::new(), refused, seconds: OnceLock::new() }
    }

    fn ended(&self, operation: Operation, refusal: Option<ErrorCode>, took: Duration) {
        let operation = operation.name();
        let (ended, outcome) = match refusal {
            Some(code) => (&self.refused[code as usize], code.name()),
            None => (&self.ok, "ok"),
        };
        let counter = || metrics::counter!("keyward_calls_total", "operation" => operation, "outcome" => outcome);
        ended.get_or_init(counter).increment(1);
        let histogram = || metrics::histogram!("keyward_call_seconds", "operation" => operation);
        self.seconds.get_or_init(histogram).record(took.as_secs_f64());
    }
}

/// Counts and times calls by operation and outcome.
#[derive(Clone)]
pub struct Measure<E, S> {
    env: E,
    measured: Arc<[Measured; Operation::ALL.len()]>,
    inner: S,
}

struct MeasureLayer<E>(E);
layer!(MeasureLayer<E> => Measure, self, inner, Measure {
    env: self.0.clone(),
    measured: Arc::new([const { Measured::new() }; Operation::ALL.len()]),
    inner,
});

impl<E, S> Service<Call> for Measure<E, S>
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

    fn call(&mut self, call: Call) -> Self::Future {
        let (env, measured) = (self.env.clone(), Arc::clone(&self.measured));
        let operation = call.request.operation();
        let began = env.boot_now();
        let served = self.inner.call(call);
        Box::pin(async move {
            let result = served.await;
            let took = env.boot_now().saturating_sub(began);
            let refusal = result.as_ref().err().map(|error| error.code);
            measured[operation as usize].ended(operation, refusal, took);
            result
        })
    }
}
