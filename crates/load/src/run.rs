//! Makes the calls: in an open loop, whose arrivals wait for nobody, or in a closed one, whose callers wait for their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use keyward_client::{CallError, Client};
use keyward_env::{AsyncRuntime, Env, RealEnv};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::PlanError;
use crate::arrivals::{Schedule, Spacing};
use crate::tally::{Second, Shards, Tally, Times, add, times};
use crate::target::Job;
use crate::watch::{Observation, watch};

/// The pacer sleeps at least so long, and then begins all that is due: a thread that sleeps shorter does nothing else.
const NAP_MIN: Duration = Duration::from_micros(100);
const NAP_MAX: Duration = Duration::from_millis(10);
const SHARDS_MAX: usize = 16;
/// A caller in a closed loop waits so long when nobody answered: it would do nothing else.
const UNANSWERED_PAUSE: Duration = Duration::from_millis(10);
/// After the last call was begun, and beyond the patience of calls.
const MARGIN: Duration = Duration::from_secs(1);
/// Callers in a closed loop, or calls under way in an open one.
pub const IN_FLIGHT_MAX: usize = 200_000;

/// What is called, as a run sees it.
pub trait Workload: Send + Sync + 'static {
    /// Connections.
    fn lanes(&self) -> usize;

    /// The next call, by its number.
    fn draw(&self, number: u64, dice: &mut ChaCha8Rng) -> Job;

    /// Makes it.
    fn call(&self, job: Job) -> impl Future<Output = Result<(), CallError>> + Send;
}

/// At what pace calls are made.
#[derive(Clone, Debug)]
pub enum Pace {
    /// When the schedule says, however long others take. Latency counts from when a call was meant to begin.
    Open {
        /// When calls are meant to begin.
        schedule: Schedule,
        /// How they lie under its rates.
        spacing: Spacing,
        /// With so many under way no further one is begun, and that is told.
        in_flight_max: usize,
    },
    /// Each of so many callers makes its next call when the last one has ended: what is slow is called less.
    Closed {
        /// Callers.
        in_flight: usize,
        /// For how long.
        lasts: Duration,
    },
}

/// What is offered.
#[derive(Clone, Debug)]
pub struct Plan {
    /// At what pace.
    pub pace: Pace,
    /// Calls before anything counts.
    pub warm_up: Duration,
    /// The same seed draws the same calls at the same times.
    pub seed: u64,
    /// How long a call may take.
    pub patience: Duration,
}

impl Plan {
    /// Finds what cannot be done.
    ///
    /// # Errors
    /// What it is, and what would do.
    pub fn check(&self) -> Result<(), PlanError> {
        let in_flight = match &self.pace {
            Pace::Open { in_flight_max, .. } => *in_flight_max,
            Pace::Closed { in_flight, .. } => *in_flight,
        };
        if !(1..=IN_FLIGHT_MAX).contains(&in_flight) {
            return Err(PlanError::new(format!(
                "{in_flight} calls in flight: at least 1, at most {IN_FLIGHT_MAX}"
            )));
        }
        if self.lasts().is_zero() {
            return Err(PlanError::new(
                "a load that lasts no time measures nothing: give --duration",
            ));
        }
        Ok(())
    }

    /// How long it counts.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        match &self.pace {
            Pace::Open { schedule, .. } => schedule.lasts(),
            Pace::Closed { lasts, .. } => *lasts,
        }
    }
}

/// Tells a run to stop before its time.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Stops.
    pub fn tell(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// It was told.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What came of a run.
pub struct Measured {
    /// When the first counted call was meant to begin, on the clock that counts from boot.
    pub began: Duration,
    /// How long calls were begun that count.
    pub lasted: Duration,
    /// Calls that were meant to begin.
    pub meant: u64,
    /// Calls that began.
    pub offered: u64,
    /// Calls that were not begun, since too many were under way.
    pub held_back: u64,
    /// How they ended, by operation.
    pub tally: Tally,
    /// How late calls began, beside when they were meant to.
    pub late: Times,
    /// Second by second.
    pub seconds: Vec<Second>,
    /// CPU of this process meanwhile.
    pub client_cpu: Duration,
    /// What the Region said of itself.
    pub seen: Vec<Observation>,
    /// It was stopped before its time.
    pub cut_short: bool,
}

struct Run<W> {
    target: Arc<W>,
    shards: Shards,
    /// From here on calls count.
    counts_from: Duration,
    /// No call is begun after.
    ends: Duration,
    stop: Stop,
    in_flight: AtomicUsize,
    /// Calls that count.
    meant: AtomicU64,
    offered: AtomicU64,
    held_back: AtomicU64,
}

impl<W: Workload> Run<W> {
    fn over(&self, now: Duration) -> bool {
        now >= self.ends || self.stop.is_told()
    }

    /// One call, from when it was meant to begin. False if nobody answered.
    async fn one(&self, job: Job, meant: Duration) -> bool {
        let counts = meant >= self.counts_from;
        if counts {
            self.offered.fetch_add(1, Ordering::Relaxed);
        }
        let late = RealEnv.boot_now().saturating_sub(meant);
        let ended = self.target.call(job).await;
        if counts {
            let took = RealEnv.boot_now().saturating_sub(meant);
            self.shards.note(job.lane, job.operation, late, took, &ended);
        }
        ended.err().is_none_or(|error| error.code.is_some())
    }

    /// A caller that makes its next call when the last one has ended.
    async fn caller(self: Arc<Self>, number: u64, callers: u64, seed: u64) {
        let mut dice = ChaCha8Rng::seed_from_u64(seed.wrapping_add(number));
        let mut call = number;
        loop {
            // Under way before it looks: the run ends when the time is over and nothing is under way.
            self.in_flight.fetch_add(1, Ordering::SeqCst);
            let now = RealEnv.boot_now();
            if self.over(now) {
                self.in_flight.fetch_sub(1, Ordering::SeqCst);
                break;
            }
            if now >= self.counts_from {
                self.meant.fetch_add(1, Ordering::Relaxed);
            }
            let answered = self.one(self.target.draw(call, &mut dice), now).await;
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            if !answered {
                RealEnv.sleep(UNANSWERED_PAUSE).await;
            }
            call += callers;
        }
    }

    /// Begins calls when they are meant to, on a thread of its own: timers of the runtime are a millisecond apart.
    fn pace(self: &Arc<Self>, began: Duration, plan: Pacing, runtime: &tokio::runtime::Handle) {
        let _within = runtime.enter();
        let mut dice = ChaCha8Rng::seed_from_u64(plan.seed ^ 1);
        for (number, at) in plan.schedule.arrivals(plan.spacing, plan.seed).enumerate() {
            let meant = began + at;
            loop {
                let now = RealEnv.boot_now();
                // What is late by so much when the time is over is not begun any more: it would count for a time that it
                // is not in.
                if self.stop.is_told() || now > self.ends + NAP_MAX {
                    return;
                }
                if now >= meant {
                    break;
                }
                RealEnv.block_for((meant - now).clamp(NAP_MIN, NAP_MAX));
            }
            let counts = meant >= self.counts_from;
            self.meant.fetch_add(u64::from(counts), Ordering::Relaxed);
            if self.in_flight.load(Ordering::Relaxed) >= plan.in_flight_max {
                self.held_back.fetch_add(u64::from(counts), Ordering::Relaxed);
                continue;
            }
            let job = self.target.draw(number as u64, &mut dice);
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            let run = Arc::clone(self);
            RealEnv.spawn(async move {
                run.one(job, meant).await;
                run.in_flight.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// What the pacer needs of a plan.
struct Pacing {
    schedule: Schedule,
    spacing: Spacing,
    in_flight_max: usize,
    seed: u64,
}

/// Adds up, second by second.
struct Collector {
    tally: Tally,
    late: Times,
    seconds: Vec<Second>,
    offered: u64,
    from: Duration,
}

impl Collector {
    /// Takes what was noted up to now.
    fn take(&mut self, run: &Run<impl Workload>, now: Duration) -> &Second {
        let (tally, late) = run.shards.take();
        add(&mut self.tally, &tally);
        self.late.add(&late).expect("the same bounds");
        let offered = run.offered.load(Ordering::Relaxed);
        let lasted = now.saturating_sub(self.from);
        let at = self.from.saturating_sub(run.counts_from);
        let in_flight = run.in_flight.load(Ordering::Relaxed);
        let second = Second::of(at, lasted, offered - self.offered, in_flight, &tally);
        (self.offered, self.from) = (offered, now);
        self.seconds.push(second);
        self.seconds.last().expect("it was just added")
    }

    /// Takes what ended after the time was over; it belongs to the last second.
    fn take_rest(&mut self, run: &Run<impl Workload>) {
        let (tally, late) = run.shards.take();
        add(&mut self.tally, &tally);
        self.late.add(&late).expect("the same bounds");
        if let Some(last) = self.seconds.last_mut() {
            last.add(&tally);
            last.offered += run.offered.load(Ordering::Relaxed) - self.offered;
            last.in_flight = run.in_flight.load(Ordering::Relaxed);
        }
    }
}

/// Makes the calls of a plan, and tells of each second. `operator` asks the Region what it used meanwhile.
///
/// # Errors
/// A plan that cannot be carried out.
pub async fn run(
    target: Arc<impl Workload>,
    plan: &Plan,
    operator: Option<Arc<Client>>,
    stop: Stop,
    mut tell: impl FnMut(&Second),
) -> Result<Measured, PlanError> {
    plan.check()?;
    let began = RealEnv.boot_now();
    let counts_from = began + plan.warm_up;
    let ends = counts_from + plan.lasts();
    let run = Arc::new(Run {
        shards: Shards::new(target.lanes().min(SHARDS_MAX)),
        target,
        counts_from,
        ends,
        stop: stop.clone(),
        in_flight: AtomicUsize::new(0),
        meant: AtomicU64::new(0),
        offered: AtomicU64::new(0),
        held_back: AtomicU64::new(0),
    });
    let pacer = match plan.pace.clone() {
        Pace::Open { schedule, spacing, in_flight_max } => {
            let schedule = schedule.after(plan.warm_up);
            let pacing = Pacing { schedule, spacing, in_flight_max, seed: plan.seed };
            let (run, runtime) = (Arc::clone(&run), tokio::runtime::Handle::current());
            let pace = RealEnv.blocking(move || run.pace(began, pacing, &runtime));
            Some(<RealEnv as Env>::Runtime::spawn(pace))
        }
        Pace::Closed { in_flight, .. } => {
            let callers = in_flight as u64;
            for number in 0..callers {
                RealEnv.spawn(Arc::clone(&run).caller(number, callers, plan.seed));
            }
            None
        }
    };
    sleep_until(counts_from, &stop).await;
    let began_cpu = RealEnv.usage().cpu;
    let watched = Stop::default();
    let watcher =
        operator.map(|operator| <RealEnv as Env>::Runtime::spawn(watch(operator, watched.clone())));
    let from = RealEnv.boot_now();
    let mut collected =
        Collector { tally: Tally::new(), late: times(), seconds: Vec::new(), offered: 0, from };
    let mut tick = 1;
    while !run.over(RealEnv.boot_now()) {
        sleep_until((counts_from + Duration::from_secs(1) * tick).min(ends), &stop).await;
        tell(collected.take(&run, RealEnv.boot_now()));
        tick += 1;
    }
    let over = RealEnv.boot_now();
    watched.tell();
    let client_cpu = RealEnv.usage().cpu.saturating_sub(began_cpu);
    // What it has begun is under way, and it begins nothing more.
    if let Some(pacer) = pacer {
        pacer.await.expect("the pacer does not panic");
    }
    let patience = over + plan.patience + MARGIN;
    while run.in_flight.load(Ordering::SeqCst) > 0 && RealEnv.boot_now() < patience {
        RealEnv.sleep(Duration::from_millis(5)).await;
    }
    collected.take_rest(&run);
    let seen = match watcher {
        Some(watcher) => watcher.await.unwrap_or_default(),
        None => Vec::new(),
    };
    Ok(Measured {
        began: counts_from,
        lasted: over.saturating_sub(from),
        meant: run.meant.load(Ordering::Relaxed),
        offered: run.offered.load(Ordering::Relaxed),
        held_back: run.held_back.load(Ordering::Relaxed),
        tally: collected.tally,
        late: collected.late,
        seconds: collected.seconds,
        client_cpu,
        seen,
        cut_short: over < ends,
    })
}

async fn sleep_until(until: Duration, stop: &Stop) {
    loop {
        let left = until.saturating_sub(RealEnv.boot_now());
        if left.is_zero() || stop.is_told() {
            return;
        }
        RealEnv.sleep(left.min(Duration::from_millis(50))).await;
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::mix::Operation;

    /// Answers after a while, and notes when calls began.
    struct Slow {
        /// How long it takes to draw a call.
        draws: Duration,
        takes: Duration,
        began: Mutex<Vec<Duration>>,
    }

    impl Workload for Slow {
        fn lanes(&self) -> usize {
            1
        }

        fn draw(&self, _: u64, _: &mut ChaCha8Rng) -> Job {
            if !self.draws.is_zero() {
                RealEnv.block_for(self.draws);
            }
            Job { operation: Operation::Encrypt, lane: 0, key: 0, size: 0 }
        }

        async fn call(&self, _: Job) -> Result<(), CallError> {
            self.began.lock().push(RealEnv.boot_now());
            RealEnv.sleep(self.takes).await;
            Ok(())
        }
    }

    fn slow(takes: Duration) -> Arc<Slow> {
        Arc::new(Slow { draws: Duration::ZERO, takes, began: Mutex::default() })
    }

    fn open(rate: f64, lasts: Duration, in_flight_max: usize) -> Plan {
        let schedule = Schedule::steady(rate, lasts);
        let pace = Pace::Open { schedule, spacing: Spacing::Uniform, in_flight_max };
        let patience = Duration::from_secs(5);
        Plan { pace, warm_up: Duration::from_millis(100), seed: 1, patience }
    }

    async fn measure(load: &Arc<Slow>, plan: &Plan) -> Measured {
        run(Arc::clone(load), plan, None, Stop::default(), |_| {}).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn arrivals_wait_for_nobody_and_all_of_them_are_counted() {
        // Each call takes as long as 30 gaps between them.
        let load = slow(Duration::from_millis(300));
        let measured = measure(&load, &open(100.0, Duration::from_millis(1000), 1000)).await;
        let counts = &measured.tally[&Operation::Encrypt].counts;
        assert!((99..=101).contains(&measured.meant), "{}", measured.meant);
        assert_eq!((measured.offered, measured.held_back), (measured.meant, 0));
        assert_eq!((counts.answered, counts.all()), (measured.meant, measured.meant));
        assert!(load.began.lock().len() as u64 > measured.meant, "there was a warm-up");
        assert!(!measured.cut_short);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn calls_that_are_held_back_are_told() {
        let load = slow(Duration::from_millis(300));
        let measured = measure(&load, &open(1000.0, Duration::from_millis(500), 10)).await;
        assert!(measured.held_back > 300, "{}", measured.held_back);
        assert_eq!(measured.offered + measured.held_back, measured.meant);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_late_when_the_time_is_over_is_not_begun_any_more() {
        // Ten times as many are meant as can be drawn, on any machine.
        let draws = Duration::from_micros(100);
        let load = Arc::new(Slow { draws, takes: Duration::ZERO, began: Mutex::default() });
        let plan = open(100_000.0, Duration::from_millis(300), IN_FLIGHT_MAX);
        let plan = Plan { warm_up: Duration::ZERO, ..plan };
        let measured = measure(&load, &plan).await;
        assert!(measured.meant > 0 && measured.meant <= 3_100, "{} were meant", measured.meant);
        let ends = measured.began + plan.lasts();
        let last = load.began.lock().iter().max().copied().unwrap();
        assert!(last < ends + Duration::from_secs(1), "{:?} too late", last - ends);
        let begun = load.began.lock().len();
        RealEnv.sleep(Duration::from_millis(300)).await;
        assert_eq!(load.began.lock().len(), begun, "and none goes on behind the run's back");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_in_a_closed_loop_wait_for_their_answers_and_stop_when_told() {
        let load = slow(Duration::from_millis(10));
        let pace = Pace::Closed { in_flight: 3, lasts: Duration::from_secs(60) };
        let plan = Plan { pace, ..open(1.0, Duration::from_secs(1), 1) };
        let stop = Stop::default();
        let measured = run(Arc::clone(&load), &plan, None, stop.clone(), |_| stop.tell());
        let measured = measured.await.unwrap();
        assert!(measured.cut_short && measured.lasted < Duration::from_secs(10));
        // Three at a time, each at least 10 ms long.
        let most = 3.0 * (measured.lasted.as_secs_f64() + 0.2) / 0.01;
        assert!(measured.offered > 10 && (measured.offered as f64) < most, "{}", measured.offered);
    }
}
