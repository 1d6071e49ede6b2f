//! The loop, and the thread-local through which static functions find their world.

use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::world::{Next, World};

thread_local! {
    static CURRENT: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
}

/// Calls `work` with the world installed on this thread.
pub(super) fn with<T>(work: impl FnOnce(&Arc<World>) -> T) -> T {
    match try_with(work) {
        Some(value) => value,
        None => panic!("this runs inside a simulated world only"),
    }
}

pub(super) fn try_with<T>(work: impl FnOnce(&Arc<World>) -> T) -> Option<T> {
    // Borrowed while the work is done: who drops the world is outside.
    CURRENT.try_with(|current| current.borrow().as_ref().map(work)).ok().flatten()
}

/// Removes the world from the thread on the way out, a panic's too.
struct Installed;

impl Installed {
    fn new(world: &Arc<World>) -> Self {
        CURRENT.with(|current| {
            let before = current.borrow_mut().replace(Arc::clone(world));
            assert!(before.is_none(), "a world within a world");
        });
        Self
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = CURRENT.try_with(|current| current.borrow_mut().take());
    }
}

#[derive(Default)]
struct MainWaker(AtomicBool);

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl World {
    /// Runs `main` in the harness's group until it is done, and with it everything that was spawned. What
    /// is left then is dropped.
    pub fn run<F: Future>(self: &Arc<Self>, main: F) -> F::Output {
        let _installed = Installed::new(self);
        let output = self.drive(main);
        self.drop_everything();
        output
    }

    fn drive<F: Future>(self: &Arc<Self>, main: F) -> F::Output {
        let mut main = pin!(main);
        let flag = Arc::new(MainWaker::default());
        let waker = Waker::from(Arc::clone(&flag));
        flag.0.store(true, Ordering::Relaxed);
        loop {
            if flag.0.swap(false, Ordering::Relaxed)
                && let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&waker))
            {
                return output;
            }
            match self.next() {
                Next::Task(key, mut future, waker) => {
                    let mut context = Context::from_waker(&waker);
                    let polled =
                        catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
                    match polled {
                        Ok(Poll::Pending) => self.put_back(key, future),
                        Ok(Poll::Ready(())) => {
                            drop(future);
                            self.finish(key);
                        }
                        Err(panic) => {
                            self.note_panic(panic.as_ref());
                            drop(future);
                            self.finish(key);
                        }
                    }
                }
                Next::Skip => {}
                Next::Nothing => {
                    if !self.advance() && !flag.0.load(Ordering::Relaxed) {
                        panic!("the simulated world stands still: nothing is ready or will be");
                    }
                }
            }
        }
    }
}
