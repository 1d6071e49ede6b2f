//! Calls that go on while something is done to the Region.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_client::Client;
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
