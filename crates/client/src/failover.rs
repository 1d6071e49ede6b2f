//! Calls on multi-Region keys, in whichever Region answers.
//!
//! A key's related keys are the same key elsewhere, so a use of it that one Region does not answer can be made in the next.
//! Changes cannot: they stay with the Region that was asked. Three things keep a Region's loss from becoming everybody's:
//! a Region that does not answer is passed over for a while (*circuit breaker*), one try in a Region takes a part of the
//! time that the call has, and calls made again are a part of all calls at most (*retry budget*).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use parking_lot::Mutex;

use crate::connection::{CallError, Client, ClientConfig, ConfigError};

/// How a call goes from Region to Region.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FailoverConfig {
    /// Failures in a row after which a Region is passed over.
    pub failures_max: u32,
    /// For how long at first; doubled with each further failure.
    pub pause: Duration,
    /// For how long at most.
    pub pause_max: Duration,
    /// Calls made again, as a part of all calls.
    pub budget: f64,
    /// Calls that may be made again at once after a quiet while.
    pub budget_burst: f64,
}

impl Default for FailoverConfig {
    fn default() -> Self {
        Self {
            failures_max: 3,
            pause: Duration::from_secs(1),
            pause_max: Duration::from_secs(30),
            budget: 0.2,
            budget_burst: 20.0,
        }
    }
}

/// One Region, as its calls went.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    closed_until: Duration,
}

impl Breaker {
    /// Whether it may be asked at `now`. One that was passed over is asked once, and passed over again at once if it still
    /// does not answer.
    fn may_be_asked(&mut self, now: Duration, config: &FailoverConfig) -> bool {
        if self.failures < config.failures_max {
            return true;
        }
        if now < self.closed_until {
            return false;
        }
        self.closed_until = now + self.pause(config);
        true
    }

    fn pause(&self, config: &FailoverConfig) -> Duration {
        let doublings = self.failures.saturating_sub(config.failures_max).min(16);
        (config.pause * 2u32.saturating_pow(doublings)).min(config.pause_max)
    }

    fn answered(&mut self) {
        *self = Self::default();
    }

    fn failed(&mut self, now: Duration, config: &FailoverConfig) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= config.failures_max {
            self.closed_until = now + self.pause(config);
        }
    }
}

/// How many calls may be made again.
#[derive(Debug)]
struct Budget(f64);

impl Budget {
    fn earn(&mut self, config: &FailoverConfig) {
        self.0 = (self.0 + config.budget).min(config.budget_burst);
    }

    fn spend(&mut self) -> bool {
        let enough = self.0 >= 1.0;
        if enough {
            self.0 -= 1.0;
        }
        enough
    }
}

struct Leg {
    region: String,
    client: Arc<Client>,
    breaker: Mutex<Breaker>,
}

/// Uses keys in several Regions, in an order of preference. Cheap to share.
pub struct RegionalClient {
    legs: Vec<Leg>,
    config: FailoverConfig,
    budget: Mutex<Budget>,
}

/// The id that a multi-Region key has in every Region; any other text as it is.
#[must_use]
pub fn in_any_region(key_id: &str) -> &str {
    match key_id.rsplit_once(":key/") {
        Some((_, id)) if id.starts_with("mrk-") => id,
        _ => key_id,
    }
}

/// Whether another Region may do better: this one did not answer, or cannot serve now. A quota is a refusal: going
/// elsewhere to escape it would make it worthless.
fn elsewhere(error: &CallError) -> bool {
    const CANNOT: [&str; 3] =
        ["DependencyTimeoutException", "KeyUnavailableException", "KMSInternalException"];
    error.throttle.is_none() && error.code.as_deref().is_none_or(|code| CANNOT.contains(&code))
}

impl RegionalClient {
    /// A client of these Regions, the preferred one first. The patience of each is that of one try there: a Region that
    /// does not answer costs a call so much.
    ///
    /// # Errors
    /// What is wrong with the configuration of a Region; none at all.
    pub fn new(
        regions: Vec<(String, ClientConfig)>,
        config: FailoverConfig,
    ) -> Result<Self, ConfigError> {
        if regions.is_empty() {
            return Err(ConfigError::NoEndpoint);
        }
        let leg = |(region, config): (String, ClientConfig)| {
            let client = Arc::new(Client::new(&config)?);
            Ok(Leg { region, client, breaker: Mutex::default() })
        };
        Ok(Self {
            legs: regions.into_iter().map(leg).collect::<Result<_, ConfigError>>()?,
            config,
            budget: Mutex::new(Budget(config.budget_burst)),
        })
    }

    /// The Regions that are passed over now.
    #[must_use]
    pub fn passed_over(&self) -> Vec<&str> {
        let now = RealEnv.boot_now();
        let over = |leg: &&Leg| {
            let breaker = leg.breaker.lock();
            breaker.failures >= self.config.failures_max && now < breaker.closed_until
        };
        self.legs.iter().filter(over).map(|leg| leg.region.as_str()).collect()
    }

    /// Makes a call that may be made again, on a key that every Region has. Returns the Region that answered, too.
    ///
    /// # Errors
    /// A refusal, as the Region that was asked last gave it; or that none answered.
    pub async fn anywhere<T, F, Fut>(&self, call: F) -> Result<(T, &str), CallError>
    where
        F: Fn(Arc<Client>) -> Fut,
        Fut: Future<Output = Result<T, CallError>>,
    {
        self.budget.lock().earn(&self.config);
        let mut last = None;
        for leg in self.order() {
            // The first try is free.
            if last.is_some() && !self.budget.lock().spend() {
                break;
            }
            match call(Arc::clone(&leg.client)).await {
                Ok(answer) => {
                    leg.breaker.lock().answered();
                    return Ok((answer, &leg.region));
                }
                Err(error) if elsewhere(&error) => {
                    leg.breaker.lock().failed(RealEnv.boot_now(), &self.config);
                    last = Some(error);
                }
                Err(refusal) => {
                    // It answers, so it is well.
                    leg.breaker.lock().answered();
                    return Err(refusal);
                }
            }
        }
        Err(last.unwrap_or_else(|| CallError {
            code: None,
            message: "no Region is known".to_owned(),
            retryable: false,
            outcome_unknown: false,
            throttle: None,
        }))
    }

    /// Those that may be asked, in order; all of them, when none may.
    fn order(&self) -> Vec<&Leg> {
        let now = RealEnv.boot_now();
        let may = |leg: &&Leg| leg.breaker.lock().may_be_asked(now, &self.config);
        let open: Vec<&Leg> = self.legs.iter().filter(may).collect();
        if open.is_empty() { self.legs.iter().collect() } else { open }
    }

    /// Encrypts under a multi-Region key.
    ///
    /// # Errors
    /// As [`RegionalClient::anywhere`].
    pub async fn encrypt(
        &self,
        mut request: v1::EncryptRequest,
    ) -> Result<v1::EncryptResponse, CallError> {
        request.key_id = in_any_region(&request.key_id).to_owned();
        let call = |client: Arc<Client>| {
            let request = request.clone();
            async move { client.key_once(request, |mut c, r| async move { c.encrypt(r).await }).await }
        };
        self.anywhere(call).await.map(|(answer, _)| answer)
    }

    /// Decrypts what a multi-Region key has encrypted, in any Region.
    ///
    /// # Errors
    /// As [`RegionalClient::anywhere`].
    pub async fn decrypt(
        &self,
        mut request: v1::DecryptRequest,
    ) -> Result<v1::DecryptResponse, CallError> {
        request.key_id = request.key_id.as_deref().map(|id| in_any_region(id).to_owned());
        let call = |client: Arc<Client>| {
            let request = request.clone();
            async move { client.key_once(request, |mut c, r| async move { c.decrypt(r).await }).await }
        };
        self.anywhere(call).await.map(|(answer, _)| answer)
    }

    /// Makes a data key under a multi-Region key.
    ///
    /// # Errors
    /// As [`RegionalClient::anywhere`].
    pub async fn generate_data_key(
        &self,
        mut request: v1::GenerateDataKeyRequest,
    ) -> Result<v1::GenerateDataKeyResponse, CallError> {
        request.key_id = in_any_region(&request.key_id).to_owned();
        let call = |client: Arc<Client>| {
            let request = request.clone();
            async move {
                client
                    .key_once(request, |mut c, r| async move { c.generate_data_key(r).await })
                    .await
            }
        };
        self.anywhere(call).await.map(|(answer, _)| answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: FailoverConfig = FailoverConfig {
        failures_max: 3,
        pause: Duration::from_secs(1),
        pause_max: Duration::from_secs(4),
        budget: 0.25,
        budget_burst: 2.0,
    };

    #[test]
    fn a_region_that_fails_is_passed_over_and_asked_once_in_a_while() {
        let mut breaker = Breaker::default();
        let at = Duration::from_millis;
        for _ in 0..2 {
            breaker.failed(at(0), &CONFIG);
            assert!(breaker.may_be_asked(at(0), &CONFIG));
        }
        breaker.failed(at(0), &CONFIG);
        assert!(!breaker.may_be_asked(at(999), &CONFIG));
        assert!(breaker.may_be_asked(at(1000), &CONFIG), "one asks");
        assert!(!breaker.may_be_asked(at(1000), &CONFIG), "and no other meanwhile");
        breaker.failed(at(1000), &CONFIG);
        assert!(!breaker.may_be_asked(at(2999), &CONFIG));
        assert!(breaker.may_be_asked(at(3000), &CONFIG));
        for _ in 0..20 {
            breaker.failed(at(3000), &CONFIG);
        }
        assert!(breaker.may_be_asked(at(7000), &CONFIG), "no longer than the longest pause");
        breaker.answered();
        assert!(breaker.may_be_asked(at(7000), &CONFIG));
    }

    #[test]
    fn calls_made_again_are_a_part_of_all() {
        let mut budget = Budget(CONFIG.budget_burst);
        assert!(budget.spend() && budget.spend() && !budget.spend());
        let again = (0..100)
            .filter(|_| {
                budget.earn(&CONFIG);
                budget.spend()
            })
            .count();
        assert_eq!(again, 25);
    }

    #[test]
    fn what_another_region_may_do_better() {
        let error = |code: Option<&str>| CallError {
            code: code.map(str::to_owned),
            message: String::new(),
            retryable: true,
            outcome_unknown: false,
            throttle: None,
        };
        assert!(elsewhere(&error(None)));
        assert!(elsewhere(&error(Some("DependencyTimeoutException"))));
        for refusal in ["AccessDeniedException", "NotFoundException", "InvalidCiphertextException"]
        {
            assert!(!elsewhere(&error(Some(refusal))), "{refusal}");
        }
        let throttled = CallError {
            throttle: Some(v1::Throttle::default()),
            ..error(Some("ThrottlingException"))
        };
        assert!(!elsewhere(&throttled));
    }

    #[test]
    fn a_multi_region_key_has_one_id_everywhere() {
        let id = "mrk-0123456789abcdef0123456789abcdef";
        assert_eq!(in_any_region(&format!("arn:aws:kms:eu-west-1:111122223333:key/{id}")), id);
        assert_eq!(in_any_region(id), id);
        let single = "arn:aws:kms:eu-west-1:111122223333:key/12345678-1234-4234-8234-123456789012";
        assert_eq!(in_any_region(single), single);
        assert_eq!(in_any_region("alias/x"), "alias/x");
    }
}
