//! Calls that go on while something is done to the Region: one after the other ([`Load`]), or at a steady pace
//! ([`Offered`]).

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyward_client::{CallError, Client};
use keyward_env::{AsyncRuntime, Env, RealEnv};

use super::encrypt;

/// What became of the calls.
#[derive(Debug, Default)]
pub struct Calls {
    pub answered: u64,
    pub failures: Vec<String>,
    /// The slowest of those that were answered.
    pub slowest: Duration,
}

/// Encrypts over and over with each client, until told to end.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<<<RealEnv as Env>::Runtime as AsyncRuntime>::JoinHandle<Calls>>,
}

impl Load {
    /// Each client pauses for `pause` between calls.
    pub fn start(clients: Vec<Arc<Client>>, key: &str, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = clients
            .into_iter()
            .map(|client| {
                let (stop, key) = (Arc::clone(&stop), key.to_owned());
                <RealEnv as Env>::Runtime::spawn(async move {
                    let mut calls = Calls::default();
                    while !stop.load(Ordering::Relaxed) {
                        let began = RealEnv.boot_now();
                        match encrypt(&client, &key).await {
                            Ok(_) => {
                                calls.answered += 1;
                                calls.slowest = calls.slowest.max(RealEnv.boot_now() - began);
                            }
                            Err(error) => calls.failures.push(error.to_string()),
                        }
                        if pause > Duration::ZERO {
                            RealEnv.sleep(pause).await;
                        }
                    }
                    calls
                })
            })
            .collect();
        Self { stop, clients }
    }

    pub async fn end(self) -> Calls {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Calls::default();
        for client in self.clients {
            let calls = client.await.expect("it ends");
            all.answered += calls.answered;
            all.failures.extend(calls.failures);
            all.slowest = all.slowest.max(calls.slowest);
        }
        all
    }

    /// Ends, and expects that no call failed.
    pub async fn end_well(self) -> Calls {
        let calls = self.end().await;
        assert!(calls.failures.is_empty(), "calls failed: {:?}", calls.failures);
        assert!(calls.answered > 0, "no call was made");
        calls
    }
}

/// Calls at a steady pace, whether they are answered or not. Ends when dropped.
pub struct Offered {
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct Counts {
    /// When each began and was answered.
    admitted: Mutex<Vec<(Duration, Duration)>>,
    throttled: AtomicU64,
    failed: AtomicU64,
}

impl Offered {
    /// So many calls a second, on each of these clients in turn.
    pub fn start<F, Fut>(clients: Vec<Arc<Client>>, a_second: u64, call: F) -> Self
    where
        F: Fn(Arc<Client>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), CallError>> + Send + 'static,
    {
        let offered = Self { counts: Arc::default(), stop: Arc::default() };
        let (all, stop) = (Arc::clone(&offered.counts), Arc::clone(&offered.stop));
        drop(<RealEnv as Env>::Runtime::spawn(async move {
            let began = RealEnv.boot_now();
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let due = (RealEnv.boot_now() - began).as_millis() as u64 * a_second / 1000;
                while sent < due {
                    let answer = call(Arc::clone(&clients[sent as usize % clients.len()]));
                    let counts = Arc::clone(&all);
                    drop(<RealEnv as Env>::Runtime::spawn(async move {
                        let throttled =
                            |e: &CallError| e.code.as_deref() == Some("ThrottlingException");
                        let began = RealEnv.boot_now();
                        match answer.await {
                            Ok(()) => {
                                let span = (began, RealEnv.boot_now());
                                let admitted = counts.admitted.lock();
                                admitted.unwrap_or_else(PoisonError::into_inner).push(span);
                            }
                            Err(error) if throttled(&error) => {
                                counts.throttled.fetch_add(1, Ordering::SeqCst);
                            }
                            Err(_) => {
                                counts.failed.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    }));
                    sent += 1;
                }
                RealEnv.sleep(Duration::from_millis(2)).await;
            }
        }));
        offered
    }

    pub fn admitted(&self) -> u64 {
        self.spans().len() as u64
    }

    fn spans(&self) -> MutexGuard<'_, Vec<(Duration, Duration)>> {
        self.counts.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn throttled(&self) -> u64 {
        self.counts.throttled.load(Ordering::SeqCst)
    }

    /// Refused for another reason, or not answered.
    pub fn failed(&self) -> u64 {
        self.counts.failed.load(Ordering::SeqCst)
    }

    /// How many calls a second are admitted of several loads together, over that long.
    pub async fn rate(loads: &[&Self], seconds: u64) -> f64 {
        let sum = || loads.iter().map(|load| load.admitted()).sum::<u64>();
        let (began, before) = (RealEnv.boot_now(), sum());
        RealEnv.sleep(Duration::from_secs(seconds)).await;
        (sum() - before) as f64 / (RealEnv.boot_now() - began).as_secs_f64()
    }

    /// The most calls of these loads that any window holds beyond what the rate gives in that time: of all windows, the
    /// worst. A call counts where it began and was answered within the window, so it was admitted there for certain.
    pub fn burst(loads: &[&Self], a_second: u64) -> f64 {
        let mut spans: Vec<(f64, f64)> = Vec::new();
        for load in loads {
            let seconds =
                |(began, ended): &(Duration, Duration)| (began.as_secs_f64(), ended.as_secs_f64());
            spans.extend(load.spans().iter().map(seconds));
        }
        spans.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut late_first: Vec<usize> = (0..spans.len()).collect();
        late_first.sort_by(|a, b| spans[*b].0.total_cmp(&spans[*a].0));
        // By their ends: whether a call began since the window did.
        let mut within = vec![0.0; spans.len()];
        let mut worst = 0.0_f64;
        for at in late_first {
            within[at] = 1.0;
            let begins = spans[at].0;
            let mut count = 0.0;
            let first = spans.partition_point(|span| span.1 < begins);
            for (call, span) in within[first..].iter().zip(&spans[first..]) {
                count += call;
                worst = worst.max(count - a_second as f64 * (span.1 - begins));
            }
        }
        worst
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
