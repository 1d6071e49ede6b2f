//! Join handles.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// The task was dropped, with its process or because it panicked, before it had a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task was cut off")
    }
}

impl std::error::Error for Cut {}

/// Waits for a task's result. Dropping it leaves the task running.
#[derive(Debug)]
pub struct JoinHandle<T>(pub(super) oneshot::Receiver<T>);

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Cut>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.get_mut().0).poll(cx).map_err(|_| Cut)
    }
}
