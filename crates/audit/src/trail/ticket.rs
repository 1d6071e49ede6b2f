//! What an append gives back: done when the call may be answered.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};

use super::Shared;
use crate::error::AuditError;

/// Done when the record is safe: from the death of the process, or from a power cut, as configured. Not tied to any
/// runtime.
#[must_use = "a call must not be answered before its record is handed over"]
pub struct Ticket {
    /// None: it is done already.
    pub(super) waits_in: Option<Arc<Shared>>,
    pub(super) sequence: u64,
}

impl Ticket {
    /// The record's number in this node's trail.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// True when there is nothing to wait for: the call may be answered.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.waits_in.is_none()
    }

    /// Waits on this thread. Not for async threads: await the ticket there.
    ///
    /// # Errors
    /// As when it is awaited.
    pub fn wait(mut self) -> Result<(), AuditError> {
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            match Pin::new(&mut self).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(result) => return result,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}

impl Future for Ticket {
    /// An error means that the record may not be in the trail, and the call must be refused. It may turn
    /// up there later: a record more than answers, never one less.
    type Output = Result<(), AuditError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(shared) = &self.waits_in else { return Poll::Ready(Ok(())) };
        if shared.done.load(Ordering::Acquire) > self.sequence {
            return Poll::Ready(Ok(()));
        }
        let mut queue = shared.queue.lock();
        let done = shared.done.load(Ordering::Acquire);
        if done > self.sequence {
            return Poll::Ready(Ok(()));
        }
        if let Some(failure) = &queue.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        let place = usize::try_from(self.sequence - done).ok();
        let place = place.and_then(|place| queue.waiting.get_mut(place));
        let Some(place) = place else { unreachable!("every record that is not done has a place") };
        if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *place = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}
