//! Instants, sleeps and timeouts on the clock of the task that makes them.

use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::clock::ClockId;
use super::executor;
use super::world::Arm;

/// A point on the monotonic clock of a process, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimInstant(u64);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for SimInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for SimInstant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for SimInstant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

impl SubAssign<Duration> for SimInstant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for SimInstant {
    type Output = Duration;

    /// Zero where the other is later, as `std::time::Instant` has it.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl openraft_rt::Instant for SimInstant {
    fn now() -> Self {
        executor::with(|world| Self(world.monotonic_here().1))
    }
}

/// Completes when the clock that it was made on has reached its deadline.
#[derive(Debug)]
pub struct Sleep {
    clock: ClockId,
    deadline_ns: u64,
    armed: Option<Armed>,
}

/// The event that a sleep waits for, and whom it wakes.
#[derive(Debug)]
struct Armed {
    event: (u64, u64),
    waker: Waker,
}

impl Sleep {
    pub(super) fn after(duration: Duration) -> Self {
        executor::with(|world| {
            let (clock, now_ns) = world.monotonic_here();
            Self { clock, deadline_ns: now_ns.saturating_add(nanos(duration)), armed: None }
        })
    }

    pub(super) fn until(deadline: SimInstant) -> Self {
        let clock = executor::with(|world| world.monotonic_here().0);
        Self { clock, deadline_ns: deadline.0, armed: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        executor::with(|world| {
            // Polled for another reason: most are, again and again.
            let before = this.armed.as_ref().map(|armed| armed.event);
            let wakes = this.armed.as_ref().is_some_and(|armed| armed.waker.will_wake(cx.waker()));
            match world.arm(this.clock, this.deadline_ns, before, wakes, cx.waker()) {
                Arm::Due => Poll::Ready(()),
                Arm::Still => Poll::Pending,
                Arm::Set(event) => {
                    this.armed = Some(Armed { event, waker: cx.waker().clone() });
                    Poll::Pending
                }
            }
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(armed) = self.armed.take() {
            executor::try_with(|world| world.disarm(armed.event));
        }
    }
}

/// The time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time was up")
    }
}

impl std::error::Error for Elapsed {}

/// A future and its deadline. When both are ready at once, the future wins.
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F> Timeout<F> {
    pub(super) fn new(future: F, sleep: Sleep) -> Self {
        Self { future: Box::pin(future), sleep }
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => Pin::new(&mut this.sleep).poll(cx).map(|()| Err(Elapsed)),
        }
    }
}
