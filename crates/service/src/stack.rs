//! The stack that every door calls, readable from top to bottom in [`stack`]: measure, record, shed,
//! deadline, serve. Each is one small tower layer with one concern.

use std::future::{Future, Ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::Either;
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

/// A layer of the stack, or its bottom: always ready, and shared by all calls without a copy of its own for each.
pub trait Handler {
    /// A call under way.
    type Future: Future<Output = Result<Response, KmsError>> + Send + Unpin + 'static;

    /// Begins to serve a call.
    fn handle(&self, call: Call) -> Self::Future;
}

/// The bottom: the operations.
pub struct Serve<E: Env>(Arc<Kms<E>>);

impl<E: Env> Clone for Serve<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Env> Handler for Serve<E> {
    type Future = BoxFuture<'static, Result<Response, KmsError>>;

    fn handle(&self, call: Call) -> Self::Future {
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

impl<E: Env, S: Handler> Handler for Deadline<E, S> {
    type Future = InTime<E, S::Future>;

    fn handle(&self, mut call: Call) -> Self::Future {
        call.patience = call.patience.min(CALL_DEADLINE_MAX);
        let patience = call.patience;
        let changes = call.request.operation().plane() == Plane::Manage;
        InTime {
            served: self.inner.handle(call),
            env: self.env.clone(),
            patience,
            changes,
            timer: None,
        }
    }
}

/// A call until its deadline. Most are served without waiting for anything, and need no timer.
pub struct InTime<E, F> {
    served: F,
    env: E,
    patience: Duration,
    changes: bool,
    timer: Option<BoxFuture<'static, ()>>,
}

impl<E, F: Unpin> Unpin for InTime<E, F> {}

impl<E: Env, F> Future for InTime<E, F>
where
    F: Future<Output = Result<Response, KmsError>> + Unpin,
{
    type Output = Result<Response, KmsError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(result) = Pin::new(&mut this.served).poll(cx) {
            return Poll::Ready(result);
        }
        let timer = this.timer.get_or_insert_with(|| {
            // A change notices its own deadline and knows more about its outcome: it gets a moment longer.
            let grace = if this.changes { Duration::from_millis(50) } else { Duration::ZERO };
            let (env, wait) = (this.env.clone(), this.patience + grace);
            Box::pin(async move { env.sleep(wait).await })
        });
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(if this.changes {
            KmsError::unknown_outcome(
                "the deadline passed while the change was under way: it may have taken effect",
            )
        } else {
            KmsError::new(
                ErrorCode::DependencyTimeoutException,
                "the deadline passed before the call was served: try again, or allow more time",
            )
        }))
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

impl<S: Handler> Handler for Shed<S> {
    type Future = Either<Ready<Result<Response, KmsError>>, Placed<S::Future>>;

    fn handle(&self, call: Call) -> Self::Future {
        let place = Place(Arc::clone(&self.in_flight));
        if self.in_flight.fetch_add(1, Ordering::Relaxed) >= CALLS_IN_FLIGHT_MAX {
            drop(place);
            return Either::Left(std::future::ready(Err(KmsError::new(
                ErrorCode::ThrottlingException,
                format!(
                    "this node has {CALLS_IN_FLIGHT_MAX} calls under way: try again in a moment"
                ),
            ))));
        }
        Either::Right(Placed { served: self.inner.handle(call), _place: place })
    }
}

/// A call that has its place.
pub struct Placed<F> {
    served: F,
    _place: Place,
}

impl<F: Future + Unpin> Future for Placed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.served).poll(cx)
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

impl<E: Env, S: Handler> Handler for Measure<E, S> {
    type Future = Timed<E, S::Future>;

    fn handle(&self, call: Call) -> Self::Future {
        let operation = call.request.operation();
        let began = self.env.boot_now();
        let served = self.inner.handle(call);
        Timed {
            served,
            env: self.env.clone(),
            measured: Arc::clone(&self.measured),
            operation,
            began,
        }
    }
}

impl<E: Env, S: Handler> Service<Call> for Measure<E, S> {
    type Response = Response;
    type Error = KmsError;
    type Future = Timed<E, S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), KmsError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.handle(call)
    }
}

/// A call that is counted and timed when it ends.
pub struct Timed<E, F> {
    served: F,
    env: E,
    measured: Arc<[Measured; Operation::ALL.len()]>,
    operation: Operation,
    began: Duration,
}

impl<E, F: Unpin> Unpin for Timed<E, F> {}

impl<E: Env, F> Future for Timed<E, F>
where
    F: Future<Output = Result<Response, KmsError>> + Unpin,
{
    type Output = Result<Response, KmsError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.served).poll(cx));
        let took = this.env.boot_now().saturating_sub(this.began);
        let refusal = result.as_ref().err().map(|error| error.code);
        this.measured[this.operation as usize].ended(this.operation, refusal, took);
        Poll::Ready(result)
    }
}
