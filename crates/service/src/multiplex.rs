//! Many calls on one stream, each with a number of its own. Answers come as they are ready.
//!
//! A call on a stream goes through the same [`stack`](crate::stack()) as any other: its own deadline, decision, quota and
//! record. What is spared is what an RPC of its own costs.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::{FuturesUnordered, StreamExt};
use keyward_env::sabotage::{Bug, on};
use keyward_model::KmsError;
use tower::Service;

use crate::api::{Call, Response};

/// Calls under way on one stream. When there are as many, no more are read until one is answered.
pub const STREAM_CALLS_MAX: usize = 1024;

/// A call, or why it is none, with what its answer is known by.
pub type Numbered<Id> = (Id, Result<Call, KmsError>);

/// The answers to the calls of a stream. It ends when no more calls come and all are answered. Dropping it drops the
/// calls under way, as when a caller hangs up.
pub struct Multiplex<Id, S: Service<Call>, In> {
    stack: S,
    /// None once no more come.
    calls: Option<In>,
    under_way: FuturesUnordered<UnderWay<Id, S::Future>>,
}

/// A call that has to wait for something.
struct UnderWay<Id, F> {
    /// None once it is answered.
    id: Option<Id>,
    served: F,
}

impl<Id: Unpin, F: Future + Unpin> Future for UnderWay<Id, F> {
    type Output = (Option<Id>, F::Output);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        Pin::new(&mut this.served).poll(cx).map(|output| (this.id.take(), output))
    }
}

impl<Id, S, In> Multiplex<Id, S, In>
where
    S: Service<Call, Response = Response, Error = KmsError, Future: Unpin>,
    In: Stream<Item = Numbered<Id>> + Unpin,
{
    /// Serves `calls` with `stack`, which must be ready at all times.
    pub fn new(stack: S, calls: In) -> Self {
        Self { stack, calls: Some(calls), under_way: FuturesUnordered::new() }
    }
}

impl<Id: Unpin, S: Service<Call, Future: Unpin>, In> Multiplex<Id, S, In> {
    /// [`Bug::StreamMixesAnswers`]: makes it another call's.
    fn mix(&mut self, id: &mut Id) {
        if let Some(other) = self.under_way.iter_mut().find_map(|call| call.id.as_mut()) {
            std::mem::swap(id, other);
        }
    }
}

impl<Id, S: Service<Call>, In> Unpin for Multiplex<Id, S, In> {}

impl<Id, S, In> Stream for Multiplex<Id, S, In>
where
    Id: Unpin,
    S: Service<Call, Response = Response, Error = KmsError, Future: Unpin>,
    In: Stream<Item = Numbered<Id>> + Unpin,
{
    type Item = (Id, Result<Response, KmsError>);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(Some((Some(mut id), result))) = this.under_way.poll_next_unpin(cx) {
                if on(Bug::StreamMixesAnswers) {
                    this.mix(&mut id);
                }
                return Poll::Ready(Some((id, result)));
            }
            if this.under_way.len() >= STREAM_CALLS_MAX {
                return Poll::Pending;
            }
            let Some(calls) = &mut this.calls else {
                let done = this.under_way.is_empty();
                return if done { Poll::Ready(None) } else { Poll::Pending };
            };
            let (id, call) = match calls.poll_next_unpin(cx) {
                Poll::Ready(Some((id, Ok(call)))) => (id, call),
                Poll::Ready(Some((id, Err(refusal)))) => {
                    return Poll::Ready(Some((id, Err(refusal))));
                }
                Poll::Ready(None) => {
                    this.calls = None;
                    continue;
                }
                Poll::Pending => return Poll::Pending,
            };
            let mut served = this.stack.call(call);
            // Most calls are served at once.
            match Pin::new(&mut served).poll(cx) {
                Poll::Ready(result) => return Poll::Ready(Some((id, result))),
                Poll::Pending => this.under_way.push(UnderWay { id: Some(id), served }),
            }
        }
    }
}
